"""Everything that can be added, by name: each newcomer is one file, and one row here.

A row says where an object is, "module:attribute"; it is imported on first use, so that reading a config needs no jax. Users of this
package as a library add their own objects with `register`.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from ssdd_jax.errors import InputError, nearest


class Registry(Mapping[str, Any]):
    """Objects by name, in the order of tables; imported on first use.

    Args:
        what: what one of the objects is called in messages.
        rows: name -> where the object is, "module:attribute".
        specs: name -> where the dataclass of its settings is, if that can be imported without the object; otherwise the object's `spec`.
    """

    def __init__(self, what: str, rows: Mapping[str, str], specs: Mapping[str, str] | None = None):
        self.what, self._rows, self._specs = what, dict(rows), dict(specs or {})
        self._objects: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.check(name)
        if name not in self._objects:
            self._objects[name] = _imported(self._rows[name])
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def check(self, name: str, where: str = "") -> None:
        """Raise an InputError unless there is an object of this name."""
        if not isinstance(name, str) or name not in self._rows:
            where = where or f"{self.what} {name!r} is unknown"
            raise InputError(f"{where}, expected one of {', '.join(self)}{nearest(str(name), self)}")

    def spec(self, name: str) -> type:
        """Return the dataclass of an object's settings."""
        self.check(name)
        return _imported(self._specs[name]) if name in self._specs else self[name].spec

    def register(self, name: str, value: Any) -> None:
        """Add an object under a name that is not taken.

        Raises:
            InputError: the name is taken, or cannot be written on a command line.
        """
        if name in self._rows:
            raise InputError(f"{self.what} {name!r} exists already; choose another name")
        if not name.isidentifier():
            raise InputError(f"{self.what} {name!r} cannot be a setting's name, expected letters, digits and underscores")
        self._rows[name], self._objects[name] = "", value

    def remove(self, name: str) -> None:
        """Remove what `register` added."""
        del self._rows[name], self._objects[name]


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


_EVALUATION = "ssdd_jax.settings.evaluation"

NETS = Registry(
    "network",
    {
        "convnet": "ssdd_jax.nets.convnet:NET",
        "vgg11": "ssdd_jax.nets.vgg:NET",
        "alexnet": "ssdd_jax.nets.alexnet:NET",
        "resnet10": "ssdd_jax.nets.resnet:RESNET10",
        "resnet18": "ssdd_jax.nets.resnet:RESNET18",
        "mobilenet": "ssdd_jax.nets.mobilenet:NET",
        "vit": "ssdd_jax.nets.vit:NET",
        "convnet_in": "ssdd_jax.nets.convnet_in:NET",
        "convnet_frepo": "ssdd_jax.nets.convnet_frepo:NET",
        "convnet_no_norm": "ssdd_jax.nets.convnet_frepo:NO_NORM",
    },
)
"""Students and teachers' networks: `ssdd_jax.nets.net.Net`."""

STORES = Registry(
    "store",
    {
        "plain": "ssdd_jax.core.stores.plain:STORE",
        "factored": "ssdd_jax.core.stores.factored:STORE",
        "cosine": "ssdd_jax.core.stores.cosine:STORE",
        "classes": "ssdd_jax.core.stores.classes:STORE",
    },
)
"""How rows of images or targets are kept: `ssdd_jax.core.stores.store.Store`."""

_INFINITE = "ssdd_jax.kernels.infinite"
_INFINITELY_WIDE = ("fc_ntk", "fc_nngp", "conv_ntk", "conv_nngp", "convnet_ntk", "convnet_nngp")

KERNELS = Registry(
    "kernel",
    {
        "feature": "ssdd_jax.kernels.feature:feature_kernel",
        "fc_ntk": f"{_INFINITE}:fc_ntk",
        "fc_nngp": f"{_INFINITE}:fc_nngp",
        "conv_ntk": f"{_INFINITE}:conv_ntk",
        "conv_nngp": f"{_INFINITE}:conv_nngp",
        "convnet_ntk": "ssdd_jax.kernels.pooled:convnet_ntk",
        "convnet_nngp": "ssdd_jax.kernels.pooled:convnet_nngp",
        "empirical_ntk": "ssdd_jax.kernels.empirical:empirical_ntk",
        **{f"nt_{name}": f"ssdd_jax.kernels.neural_tangents:nt_{name}" for name in _INFINITELY_WIDE},
    },
)
"""What the outer loss predicts with: makers of a `ssdd_jax.core.kernel.Kernel`."""

_METHODS = "ssdd_jax.settings.methods"

METHODS = Registry(
    "method",
    {
        "regression": "ssdd_jax.methods.regression:METHOD",
        "random_labels": "ssdd_jax.methods.labels:METHOD",
        "dsa": "ssdd_jax.methods.dsa:METHOD",
        "idm": "ssdd_jax.methods.idm:METHOD",
        "datm": "ssdd_jax.methods.datm:METHOD",
        "frepo": "ssdd_jax.methods.frepo:METHOD",
        "kip": "ssdd_jax.methods.kip:METHOD",
    },
    {
        "regression": f"{_METHODS}:RegressionSpec",
        "random_labels": f"{_METHODS}:RandomLabelsSpec",
        "dsa": f"{_METHODS}:DsaSpec",
        "idm": f"{_METHODS}:IdmSpec",
        "datm": f"{_METHODS}:DatmSpec",
        "frepo": f"{_METHODS}:FrepoSpec",
        "kip": f"{_METHODS}:KipSpec",
    },
)
"""What moves a distilled set: `ssdd_jax.methods.method.Method`."""

PROTOCOLS = Registry(
    "protocol",
    {
        "linear": "ssdd_jax.evals.linear:PROTOCOL",
        "few": "ssdd_jax.evals.few:PROTOCOL",
        "knn": "ssdd_jax.evals.knn:PROTOCOL",
        "finetune": "ssdd_jax.evals.finetune:PROTOCOL",
    },
    {
        "linear": f"{_EVALUATION}:LinearSpec",
        "few": f"{_EVALUATION}:FewSpec",
        "knn": f"{_EVALUATION}:KnnSpec",
        "finetune": f"{_EVALUATION}:FinetuneSpec",
    },
)
"""How a student is evaluated: `ssdd_jax.evals.protocol.Protocol`."""

LOGGERS = Registry(
    "logger",
    {
        "console": "ssdd_jax.io.loggers.console:make_console",
        "tensorboard": "ssdd_jax.io.loggers.tensorboard:make_tensorboard",
        "wandb": "ssdd_jax.io.loggers.wandb:make_wandb",
        "trackio": "ssdd_jax.io.loggers.trackio:make_trackio",
    },
)
"""Where lines of metrics go besides metrics.jsonl: makers of a `ssdd_jax.io.loggers.Logger`."""
