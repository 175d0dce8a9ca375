"""The bases that sets start from: principal components of the training images, or of their representations."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.bases import PCA, fit_pca
from ssdd_jax.core.distilled import resize_images
from ssdd_jax.data import select_rows
from ssdd_jax.errors import InputError
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.stages.dataset import Data

# Limit on the data that a PCA is fitted to: all of CIFAR at 16 x 16 pixels.
PCA_BYTES = 160_000_000


def fit_bases(
    data: Data,
    reprs: Callable[[], np.ndarray],
    base_shape: tuple[int, int, int] | None,
    num_components: int,
    where: str,
    rows: np.ndarray | None = None,
) -> PCA:
    """Return the PCA of the training images at a size, flattened, or of the representations.

    Args:
        data: the images.
        reprs: () -> the teacher's representations "n d" of the training images.
        base_shape: (H, W, C) of the bases; None for bases of the representations.
        num_components: number of bases.
        where: config.methods.NAME, for messages.
        rows: training images that they are components of, integers "k"; all if None.

    Raises:
        InputError: there are fewer components than are asked for.
    """
    what, setting = ("representations", "repr_bases") if base_shape is None else ("images", "image_bases")
    rows = np.arange(len(data.train_images)) if rows is None else rows
    # Evenly spaced images are enough for a basis, and more images of a large dataset would not fit into memory.
    width = reprs().shape[1] if base_shape is None else prod(base_shape)
    sample = rows[:: -(-len(rows) // max(num_components + 1, PCA_BYTES // (4 * width)))]
    if base_shape is None:
        found = reprs()[sample]
    else:
        shrink = jax.jit(lambda batch: resize_images(data.normalize(batch), base_shape).reshape(len(batch), -1))
        found = in_batches(shrink, select_rows(data.train_images, sample))
    limit = min(len(found) - 1, found.shape[1])
    if limit < 1:
        raise InputError(f"{where} needs bases of the training {what}, of which there is one; expected two or more")
    fitted = jax.jit(fit_pca, static_argnums=1)(jnp.asarray(found), min(num_components, limit))
    rank = int(np.sum(np.asarray(fitted.variances) > 1e-6 * float(fitted.variances[0])))
    if num_components > min(rank, limit):
        raise InputError(
            f"{where}.{setting} is {num_components}, expected at most {min(rank, limit)}, the rank of the training {what}; lower it"
        )
    return fitted
