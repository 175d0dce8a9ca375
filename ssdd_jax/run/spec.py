"""The settings of a run: frozen dataclasses, their defaults and their ranges. Nothing here imports jax.

The defaults below are the only ones. A config file starts from `default_config()`, changes what its experiment needs,
and is turned back into a `RunSpec` by `to_spec`, which names what is unknown or out of range.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.core.augment_spec import AugmentSpec
from ssdd_jax.errors import InputError


def one_of(*choices: Any, **kwargs: Any) -> Any:
    """Declare a field whose value is among `choices`; the first is the default."""
    return field(default=kwargs.pop("default", choices[0]), metadata={"choices": choices})


def within(default: Any, low: float, high: float = float("inf")) -> Any:
    """Declare a number, or a tuple of numbers, of [low, high]."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class DataSpec:
    """Which images.

    Attributes:
        source: a name among `ssdd_jax.data.sources.SOURCES`.
        path: of the file or folder, where the source needs one.
        size: side to pad the images to with zeros; 0 leaves them.
        validation: share of the training images that is never trained on: settings are chosen on it.
        limit: how many of the remaining training images to use; 0 uses all.
    """

    source: str = "digits"
    path: str = ""
    size: int = within(0, 0)
    validation: float = within(0.1, 0.0, 0.9)
    limit: int = within(0, 0)


@dataclass(frozen=True)
class TeacherSpec:
    """Barlow Twins pretraining. A convnet's representation is its pooled features, `widths[-1]` wide, as a resnet's is.

    `standardize` centres the frozen teacher's representation and divides it by its one overall standard deviation.
    """

    net: str = one_of("convnet", "resnet10", "resnet18")
    widths: tuple[int, ...] = within((32, 64, 128), 1)
    steps: int = within(1000, 0)
    batch_size: int = within(256, 2)
    optimizer: str = one_of("adamw", "lars")
    learning_rate: float = within(2e-3, 0.0)
    weight_decay: float = within(1e-4, 0.0)
    warmup_steps: int = within(50, 0)
    projector_width: int = within(256, 1)
    projector_layers: int = within(2, 0)
    off_diagonal: float = within(0.0051, 0.0)
    loss_scale: float = within(0.1, 0.0)
    first_view: AugmentSpec = field(default_factory=AugmentSpec)
    second_view: AugmentSpec = field(default_factory=lambda: AugmentSpec(solarize=0.2))
    standardize: bool = True
    seed: int = within(0, 0)


@dataclass(frozen=True)
class NetSpec:
    """A network by name and widths."""

    net: str = one_of("convnet", "resnet10", "resnet18")
    widths: tuple[int, ...] = within((16, 32, 64), 1)


@dataclass(frozen=True)
class PoolSpec:
    """The pool of inner models; all have the student's architecture. SGD with coupled weight decay (KRR-ST)."""

    size: int = within(5, 1)
    max_age: int = within(60, 1)
    members_per_step: int = within(1, 1)
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.9, 0.0, 1.0)
    weight_decay: float = within(1e-3, 0.0)


@dataclass(frozen=True)
class OuterSpec:
    """What every method's outer loop shares. AdamW with a linear schedule from the method's rate to `final_rate` of it.

    `real_views` are the exact views under which real images enter, one drawn a image and step; the teacher's
    representations of all of them are computed once.
    """

    steps: int = within(600, 0)
    batch_size: int = within(256, 1)
    final_rate: float = within(1e-3, 0.0, 1.0)
    b1: float = within(0.9, 0.0, 1.0)
    b2: float = within(0.999, 0.0, 1.0)
    weight_decay: float = within(0.0, 0.0)
    ridge: float = within(1e-6, 0.0)
    ridge_scale: str = one_of("trace", "mean_trace", "absolute")
    real_views: tuple[str, ...] = ("identity",)


@dataclass(frozen=True)
class MethodSpec:
    """A method: a parameterization, its views, and how long it is optimised.

    Attributes:
        base_size: side of the stored images or image bases; 0 is the full resolution.
        image_bases: U; 0 stores plain images.
        repr_bases: V; 0 stores plain representations.
        views: predefined augmentations, the identity first.
        target_kinds: one of stored, shared, network a view (the first stored), or ("auto",): shared where the
            teacher's shift is at most `shared_below` of its variance, else whichever of network and stored fits more images.
        shared_below: see `target_kinds`.
        hidden: h of the approximation networks.
        network_steps: Adam steps of their fit.
        joint: last share of the outer steps in which the networks take part and are trained by the outer loss.
        factor_scale: 'balanced', or the number that bases are multiplied and coefficients divided by.
        images: m; 0 takes as many as the budget holds.
        steps: outer steps; -1 takes `outer.steps`.
        learning_rate: of the outer optimizer.
        support_images: distilled images that take part in one step, drawn afresh; 0 takes all.
    """

    base_size: int = within(0, 0)
    image_bases: int = within(0, 0)
    repr_bases: int = within(0, 0)
    views: tuple[str, ...] = ("identity",)
    target_kinds: tuple[str, ...] = ("auto",)
    shared_below: float = within(0.05, 0.0)
    hidden: int = within(4, 0)
    network_steps: int = within(2000, 1)
    joint: float = within(0.0, 0.0, 1.0)
    factor_scale: str = "balanced"
    images: int = within(0, 0)
    steps: int = within(-1, -1)
    learning_rate: float = within(1e-2, 0.0)
    support_images: int = within(0, 0)


@dataclass(frozen=True)
class EvaluationSpec:
    """Student pretraining and the probes, with the settings of KRR-ST. Exactly one of `epochs` and `updates` is positive.

    `split` is 'test', or 'validation' while settings are being chosen.
    """

    split: str = one_of("test", "validation")
    epochs: int = within(0, 0)
    updates: int = within(300, 0)
    batch_size: int = within(256, 1)
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.9, 0.0, 1.0)
    weight_decay: float = within(1e-3, 0.0)
    probe_steps: int = within(5000, 1)
    probe_batch_size: int = within(512, 1)
    probe_learning_rate: float = within(0.2, 0.0)
    low_fraction: float = within(0.01, 0.0, 1.0)
    low_per_class: int = within(5, 1)


@dataclass(frozen=True)
class RunSpec:
    """A whole run. `only` restricts it to some of `methods`, by name and separated by commas.

    Attributes:
        num_pairs: N; the budget of every method is N (H W C + d) numbers.
        seeds: of the distillations and their students.
        seeds_at_once: how many seeds are vmapped together; 0 takes all on accelerators and one on a CPU, where
            batched kernels turn convolutions into slow grouped ones.
        steps_per_dispatch: outer steps in one call of the device; 0 takes 50 on accelerators and 1 on a CPU, where
            XLA runs convolutions inside a loop several times slower.
        checkpoint_every: outer or teacher steps between checkpoints.
        log_every: steps between lines of metrics.jsonl.
    """

    name: str = "run"
    num_pairs: int = within(10, 1)
    seeds: tuple[int, ...] = within((0, 1, 2), 0)
    seeds_at_once: int = within(0, 0)
    steps_per_dispatch: int = within(0, 0)
    checkpoint_every: int = within(1000, 1)
    log_every: int = within(50, 1)
    only: str = ""
    data: DataSpec = DataSpec()
    teacher: TeacherSpec = TeacherSpec()
    student: NetSpec = NetSpec()
    pool: PoolSpec = PoolSpec()
    outer: OuterSpec = OuterSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"config.seeds is {self.seeds}, expected distinct whole numbers; e.g. --config.seeds='(0, 1, 2)'")
        if self.pool.members_per_step > self.pool.size:
            raise InputError(
                f"config.pool.members_per_step is {self.pool.members_per_step}, expected at most config.pool.size = {self.pool.size}"
            )
        if (self.evaluation.epochs > 0) == (self.evaluation.updates > 0):
            raise InputError("config.evaluation: give either epochs or updates, and set the other to 0")
        if self.evaluation.split == "validation" and self.data.validation == 0:
            raise InputError("config.evaluation.split is 'validation' but config.data.validation is 0; hold out a share, such as 0.1")
        for name in self.chosen_methods():
            if name not in self.methods:
                raise InputError(
                    f"config.only names {name!r}, expected methods among {', '.join(self.methods)}{nearest(name, self.methods)}"
                )

    def chosen_methods(self) -> tuple[str, ...]:
        """Return the names of the methods to run."""
        return tuple(name.strip() for name in self.only.split(",")) if self.only else tuple(self.methods)


PLAIN = MethodSpec()
METHODS: dict[str, MethodSpec] = {
    # N real images with the teacher's representations: KRR-ST before its first step.
    "random": dataclasses.replace(PLAIN, steps=0),
    "krr_st": PLAIN,
    # The controls of `basis`: its start, and as small images without bases.
    "basis_init": MethodSpec(base_size=14, image_bases=24, repr_bases=16, steps=0),
    "raw_small": MethodSpec(base_size=14),
    "basis": MethodSpec(base_size=14, image_bases=24, repr_bases=16),
    "ours": MethodSpec(base_size=14, image_bases=24, repr_bases=16, views=("identity", "rot90", "rot180", "rot270")),
}


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return '; did you mean ...?' for the known name nearest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def to_config(spec: Any) -> ConfigDict:
    """Return a spec as the ConfigDict that a config file edits."""
    return ConfigDict(json_ready(spec, tuples=True))


def default_config(**methods: MethodSpec) -> ConfigDict:
    """Return the defaults as a ConfigDict to edit, with all methods, or with those given."""
    return to_config(RunSpec(methods=methods or METHODS))


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Raise an InputError unless a config's variant is '' or among `known`."""
    if variant and variant not in known:
        raise InputError(f"variant {variant!r} is unknown, expected none or one of {', '.join(known)}{nearest(variant, known)}")


def smoke(config: Any) -> None:
    """Shrink a config to seconds: every stage and method runs, no number means anything."""
    config.num_pairs = 4
    config.seeds = (0,)
    config.log_every = 2
    config.checkpoint_every = 4
    config.data.limit = 256
    config.teacher.update(net="convnet", widths=(8, 16), steps=4, batch_size=32, warmup_steps=1, projector_width=16)
    config.student.update(net="convnet", widths=(4, 8))
    config.pool.update(size=2, max_age=3)
    config.outer.update(steps=6, batch_size=32)
    config.evaluation.update(epochs=0, updates=5, probe_steps=5, probe_batch_size=64)
    for method in config.methods.values():
        method.network_steps = 20
        method.images = 6 if method.image_bases else 0
        method.image_bases, method.repr_bases = min(method.image_bases, 4), min(method.repr_bases, 4)
        method.base_size = min(method.base_size, 4)
        method.steps = min(method.steps, 6)


def json_ready(spec: Any, *, tuples: bool = False) -> Any:
    """Return a spec as nested dicts and lists (or tuples)."""
    if is_dataclass(spec):
        return {f.name: json_ready(getattr(spec, f.name), tuples=tuples) for f in fields(spec)}
    if isinstance(spec, Mapping):
        return {name: json_ready(value, tuples=tuples) for name, value in spec.items()}
    if isinstance(spec, tuple | list):
        return (tuple if tuples else list)(json_ready(value, tuples=tuples) for value in spec)
    return spec


def to_spec(config: Mapping[str, Any]) -> RunSpec:
    """Return the frozen settings.

    Raises:
        InputError: a key is unknown, or a value has the wrong type or is out of range.
    """
    return _build(RunSpec, config.to_dict() if isinstance(config, ConfigDict) else config, "config")


def _build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}, expected a section with {', '.join(f.name for f in fields(cls))}")
    known = {f.name: f for f in fields(cls)}
    for name in values:
        if name not in known:
            raise InputError(f"{where}.{name} is unknown; {where} has {', '.join(known)}{nearest(name, known)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], known[name].metadata, value, f"{where}.{name}") for name, value in values.items()})


def _convert(hint: Any, metadata: Mapping[str, Any], value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where)
    if typing.get_origin(hint) not in (None, tuple):  # the mapping of methods
        # A ConfigDict sorts its keys; tables show the methods in the order of METHODS, others after them.
        names = [name for name in METHODS if name in value] + [name for name in value if name not in METHODS]
        return types.MappingProxyType({name: _build(MethodSpec, value[name], f"{where}.{name}") for name in names})
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            raise InputError(f"{where} is {value!r}, expected a tuple such as ({', '.join(['...'] * 2)})")
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, metadata, item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"{where} is {value!r}, expected {'a whole number' if hint is int else f'a {hint.__name__}'}")
    if "choices" in metadata and value not in metadata["choices"]:
        expected = f"expected one of {', '.join(map(str, metadata['choices']))}"
        raise InputError(f"{where} is {value!r}, {expected}{nearest(str(value), map(str, metadata['choices']))}")
    low, high = metadata.get("range", (float("-inf"), float("inf")))
    if isinstance(value, int | float) and not low <= value <= high:
        raise InputError(f"{where} is {value}, expected {f'at least {low}' if high == float('inf') else f'{low} to {high}'}")
    return value


def digest(*parts: Any) -> str:
    """Return a short name for settings: equal settings, equal name."""
    return hashlib.sha256(json.dumps(json_ready(parts), sort_keys=True).encode()).hexdigest()[:12]
