"""How real images enter the outer step: under exact views, as one of a few fixed crops, or cropped afresh (`OuterSpec.real_augment`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from ssdd_jax.core.augment import augment, augment_each
from ssdd_jax.core.views import VIEWS
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.augment import crop_and_flip
from ssdd_jax.settings.spec import OuterSpec

Count = int | Int[Array, ""]
"""The number of a step, or a seed; it may be traced."""


class RealImages:
    """Draws real batches; everything is a function of (seed, step), or of (row, crop) for the fixed crops."""

    def __init__(self, spec: OuterSpec, num_rows: int, normalize: Callable[[Array], Array], among: Int[Array, "k"] | None = None):
        """`among` are the rows that batches are drawn from, all if None."""
        self.spec, self.num_rows, self.normalize, self.among = spec, num_rows, normalize, among
        self.crop = crop_and_flip(spec.real_padding, spec.real_flip)
        crops = tuple(f"crop{r}_padding{spec.real_padding}_flip{spec.real_flip:g}" for r in range(spec.real_crops))
        self.names = {"views": spec.real_views, "crops": crops, "fresh": ()}[spec.real_augment]
        """Names of the views whose representations are computed once; empty where every batch is cropped afresh."""

    def draw(self, step_number: Count, seed: Count) -> tuple[Int[Array, "b"], ...]:
        """Return the rows of a step's images and, unless these are cropped afresh, the rows of their targets: view * n + row."""
        rows_key, view_key, _ = self._keys(step_number, seed)
        rows = jax.random.randint(rows_key, (self.spec.batch_size,), 0, self.num_rows if self.among is None else len(self.among))
        rows = rows if self.among is None else self.among[rows]
        if not self.names:
            return (rows,)
        return rows, jax.random.randint(view_key, rows.shape, 0, len(self.names)) * self.num_rows + rows

    def images(self, batch: UInt8[Array, "b H W C"], step_number: Count, seed: Count) -> Float[Array, "b H W C"]:
        """Return a step's normalized images, given the stored images at the rows that `draw` returned."""
        if not self.names:
            return self.normalize(augment(self._keys(step_number, seed)[1], batch.astype(jnp.float32) / 255.0, self.crop))
        rows, targets = self.draw(step_number, seed)
        view = targets // self.num_rows
        if self.spec.real_augment == "crops":
            return self._cropped(batch, rows, view)
        normalized = self.normalize(batch)
        return jnp.stack([VIEWS[name](normalized) for name in self.names])[view, jnp.arange(len(rows))]

    def view(self, name: str, batch: UInt8[Array, "n H W C"], rows: Int[Array, "n"]) -> Float[Array, "n H W C"]:
        """Return one view of the images at the given rows, normalized."""
        if name in VIEWS:
            return VIEWS[name](self.normalize(batch))
        return self._cropped(batch, rows, jnp.full_like(rows, self.names.index(name)))

    def outer_key(self, step_number: Count, seed: Count) -> Array:
        """Return the key for the rest of the step."""
        return self._keys(step_number, seed)[2]

    def _cropped(self, batch: Array, rows: Array, crop: Array) -> Array:
        base = step_key(0, Stream.REAL_CROPS)
        keys = jax.vmap(lambda row, r: jax.random.fold_in(jax.random.fold_in(base, r), row))(rows, crop)
        return self.normalize(augment_each(keys, batch.astype(jnp.float32) / 255.0, self.crop))

    @staticmethod
    def _keys(step_number: Count, seed: Count) -> Array:
        return jax.random.split(step_key(seed, Stream.OUTER_STEP, step_number), 3)
