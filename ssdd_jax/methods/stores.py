"""How a regression method's settings become stores."""

from math import isfinite
from typing import Any

from ssdd_jax.core.stores.factored import SCALES
from ssdd_jax.core.stores.store import Start, StoreSizes
from ssdd_jax.errors import InputError
from ssdd_jax.registry import STORES
from ssdd_jax.settings.methods import RegressionSpec


def make_stores(where: str, spec: RegressionSpec, image_pca: Any, repr_pca: Any) -> dict[str, Start]:
    """Return how images and representations are kept, as `init_distilled` takes it; each `pca`: number of components -> PCA.

    Raises:
        InputError: a store is not for these, or a setting of theirs cannot be used.
    """

    def store(setting: str, pca: Any, **counts: str) -> Start:
        """Return a store's start; `counts` are the settings that say how many of each there are in its `StoreSizes`."""
        values = {count: getattr(spec, name) for count, name in counts.items()}
        chosen = getattr(spec, setting) or ("cosine" if values.get("frequencies") else "factored" if values["num_bases"] else "plain")
        kind = STORES[chosen]
        try:
            start = kind.start(StoreSizes(**values, factor_scale=factor_scale(where, spec), pca=pca))
        except ValueError as error:
            raise InputError(f"{where}.{setting}: {error}") from error
        for count in kind.uses:
            if not values.get(count):
                fault = f"is 0; store {chosen!r} needs it above 0" if count in counts else f"is not for {setting}"
                raise InputError(f"{where}.{counts.get(count, count)} {fault}; choose another store in {where}.{setting}")
        for count, value in values.items():
            if value and count not in kind.uses:
                advice = f"set it to 0, or choose another store in {where}.{setting}"
                raise InputError(f"{where}.{counts[count]} is {value}, which store {chosen!r} has no use for; {advice}")
        return start

    return {
        "image_store": store("image_store", image_pca, num_bases="image_bases", frequencies="frequencies"),
        "repr_store": store("repr_store", repr_pca, num_bases="repr_bases"),
    }


def factor_scale(where: str, spec: RegressionSpec) -> float | str:
    """Return what bases are multiplied with.

    Raises:
        InputError: it is none that can be.
    """
    if spec.factor_scale in SCALES:
        return spec.factor_scale
    try:
        scale = float(spec.factor_scale)
    except ValueError:
        scale = 0.0
    if not isfinite(scale) or scale == 0:
        words = " or ".join(map(repr, SCALES))
        raise InputError(f"{where}.factor_scale is {spec.factor_scale!r}, expected {words}, or a number other than 0")
    return scale
