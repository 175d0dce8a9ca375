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

    def store(setting: str, num_bases: int, pca: Any, frequencies: int = 0) -> Start:
        chosen = getattr(spec, setting) or ("cosine" if frequencies else "factored" if num_bases else "plain")
        sizes = StoreSizes(num_bases, factor_scale(where, spec), pca, frequencies)
        try:
            return STORES[chosen].start(sizes)
        except ValueError as error:
            raise InputError(f"{where}.{setting}: {error}") from error

    return {
        "image_store": store("image_store", spec.image_bases, image_pca, spec.frequencies),
        "repr_store": store("repr_store", spec.repr_bases, repr_pca),
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
