"""The distilled set: a small pytree from which support images and their representations are expanded.

There is one type for every parameterization. Images and representations are each either a plain array or a product of
coefficients and bases, so KRR-ST (plain, plain), the bases of Yu et al. (factored, factored) and the rows between them
are settings, and what a method stores is the number of scalars in the pytree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.approximation import Networks, num_network_scalars, predict_shift
from ssdd_jax.core.bases import PCA, decode, encode
from ssdd_jax.core.views import apply_views, check_views
from ssdd_jax.settings.spec import TARGET_KINDS

VIEW_TARGETS = ("stored", "shared", "network")
"""Where a view's targets come from."""


@dataclass(frozen=True)
class Layout:
    """What the arrays of a distilled set mean. Static: it takes part in jit's cache key, not in differentiation.

    Attributes:
        image_shape: (H, W, C) of the expanded images.
        base_shape: (h, w, C) of the stored images or image bases, upsampled bilinearly to `image_shape`.
        views: names of `ssdd_jax.core.views.VIEWS`, the first 'identity'.
        view_targets: where each view's representations come from: 'stored' (the view has its own), 'shared' (those of
            view 0) or 'network' (those of view 0, shifted by an approximation network). View 0 is 'stored'.
        target_kind: what the targets are: 'representation' (a teacher's), 'labels' (one-hot, perhaps centred) or 'logits'. It picks
            the loss that a student is trained with.
    """

    image_shape: tuple[int, int, int]
    base_shape: tuple[int, int, int]
    views: tuple[str, ...] = ("identity",)
    view_targets: tuple[str, ...] = ("stored",)
    target_kind: str = "representation"

    def __post_init__(self):
        check_views(self.views, self.image_shape)
        if len(self.view_targets) != len(self.views) or self.view_targets[0] != "stored" or not set(self.view_targets) <= set(VIEW_TARGETS):
            raise ValueError(
                f"view targets {self.view_targets} for views {self.views}: expected one of {', '.join(VIEW_TARGETS)} a view, 'stored' first"
            )
        if self.target_kind not in TARGET_KINDS:
            raise ValueError(f"target kind {self.target_kind!r}: expected one of {', '.join(TARGET_KINDS)}")
        if self.base_shape[2] != self.image_shape[2] or any(b > i for b, i in zip(self.base_shape, self.image_shape, strict=True)):
            raise ValueError(f"base shape {self.base_shape}: expected at most {self.image_shape} with as many channels")

    def count(self, kind: str) -> int:
        """Return how many views are of this kind."""
        return self.view_targets.count(kind)

    def free(self) -> "Layout":
        """Return the layout during distillation: what networks will predict is stored until they are trained."""
        return replace(self, view_targets=tuple("stored" if kind == "network" else kind for kind in self.view_targets))


@struct.dataclass
class Factors:
    """Rows kept as coefficients of bases: coefficients @ bases + mean.

    Attributes:
        mean: "p". bases: "r p". coefficients: "m r", or "T m r" for the representations of T views.
    """

    mean: Float[Array, " p"]
    bases: Float[Array, "r p"]
    coefficients: Float[Array, "*T m r"]


@struct.dataclass
class DistilledSet:
    """A distilled set of m images under A views.

    Attributes:
        images: "m h w C", or factors with p = h w C. In the student's normalized pixel space.
        reprs: "T m d" with T stored views (view 0 first), or factors with p = d.
        networks: approximation networks of the views of kind 'network', or None when there is no such view.
        layout: what the arrays mean.
    """

    images: Float[Array, "m h w C"] | Factors
    reprs: Float[Array, "T m d"] | Factors
    networks: Networks | None
    layout: Layout = struct.field(pytree_node=False)


def resize_images(images: Float[Array, "n H W C"], shape: Sequence[int]) -> Float[Array, "n h w C"]:
    """Resize bilinearly with half-pixel centres, antialiased when shrinking; the identity at equal size."""
    return images if images.shape[1:3] == tuple(shape[:2]) else jax.image.resize(images, (len(images), *shape), "linear")


def _factorize(rows: Float[Array, "*T m p"], pca: PCA, factor_scale: float | str) -> Factors:
    coefficients = encode(rows, pca.mean, pca.bases)
    if factor_scale == "balanced":
        rms = lambda x: jnp.sqrt(jnp.mean(x**2) + 1e-12)
        scale = jnp.sqrt(rms(coefficients) / rms(pca.bases))
    else:
        scale = jnp.asarray(factor_scale, rows.dtype)
    return Factors(mean=pca.mean, bases=pca.bases * scale, coefficients=coefficients / scale)


def init_distilled(
    images: Float[Array, "m H W C"],
    view_reprs: Float[Array, "A m d"],
    layout: Layout,
    *,
    image_pca: PCA | None = None,
    repr_pca: PCA | None = None,
    factor_scale: float | str = "balanced",
) -> DistilledSet:
    """Start a distilled set from real images and the teacher's representations of their views.

    Args:
        images: "m H W C" real images.
        view_reprs: "A m d", the teacher's representation of every view of every image.
        layout: of the finished set; views of kind 'network' keep their own representations until `compress`.
        image_pca: of real images at base resolution, flattened; None stores plain images.
        repr_pca: of real representations; None stores plain representations.
        factor_scale: bases are multiplied and coefficients divided by it. 'balanced' gives both the same
            root mean square, so that one learning rate moves both by the same relative amount.

    Raises:
        ValueError: shapes do not match the layout.
    """
    if images.shape[1:] != tuple(layout.image_shape):
        raise ValueError(f"init_distilled: images of shape {images.shape[1:]}, the layout says {layout.image_shape}")
    if view_reprs.shape[:2] != (len(layout.views), len(images)):
        raise ValueError(f"init_distilled: view_reprs has shape {view_reprs.shape}, expected ({len(layout.views)}, {len(images)}, d)")
    layout = layout.free()
    small = resize_images(images, layout.base_shape)
    reprs = view_reprs[jnp.array([i for i, kind in enumerate(layout.view_targets) if kind == "stored"])]
    return DistilledSet(
        images=small if image_pca is None else _factorize(small.reshape(len(small), -1), image_pca, factor_scale),
        reprs=reprs if repr_pca is None else _factorize(reprs, repr_pca, factor_scale),
        networks=None,
        layout=layout,
    )


def reconstruct_images(distilled: DistilledSet) -> Float[Array, "m H W C"]:
    """Return the images of view 0 at full resolution.

    Example:
        >>> layout = Layout((8, 8, 1), (4, 4, 1))
        >>> reconstruct_images(DistilledSet(jnp.zeros((5, 4, 4, 1)), jnp.zeros((1, 5, 3)), None, layout)).shape
        (5, 8, 8, 1)
    """
    images, layout = distilled.images, distilled.layout
    if isinstance(images, Factors):
        images = decode(images.coefficients, images.mean, images.bases).reshape(-1, *layout.base_shape)
    return resize_images(images, layout.image_shape)


def stored_coefficients(reprs: Float[Array, "T m d"] | Factors) -> Float[Array, "T m V"]:
    """Return the coefficients of the stored views; for plain representations, the representations themselves."""
    return reprs.coefficients if isinstance(reprs, Factors) else reprs


def _with_coefficients(reprs: Float[Array, "T m d"] | Factors, coefficients: Float[Array, "S k V"]):
    return replace(reprs, coefficients=coefficients) if isinstance(reprs, Factors) else coefficients


def view_coefficients(distilled: DistilledSet) -> Float[Array, "A m V"]:
    """Return every view's representation coefficients; for plain representations, the representations themselves."""
    stored = stored_coefficients(distilled.reprs)
    shifts = None if distilled.networks is None else predict_shift(distilled.networks, stored[0])
    rows, num_stored, num_networks = [], 0, 0
    for kind in distilled.layout.view_targets:
        if kind == "stored":
            rows.append(stored[num_stored])
            num_stored += 1
        elif kind == "shared":
            rows.append(stored[0])
        else:
            if shifts is None:
                raise ValueError("view_coefficients: the layout has a view of kind 'network' and the set has no networks; call compress")
            rows.append(stored[0] + shifts[num_networks])
            num_networks += 1
    return jnp.stack(rows)


def expand(distilled: DistilledSet) -> tuple[Float[Array, "A m H W C"], Float[Array, "A m d"]]:
    """Return every view's images and representations: what a student is trained on.

    Example:
        >>> layout = Layout((8, 8, 1), (4, 4, 1), ("identity", "hflip"), ("stored", "shared"))
        >>> images, reprs = expand(DistilledSet(jnp.zeros((5, 4, 4, 1)), jnp.zeros((1, 5, 3)), None, layout))
        >>> images.shape, reprs.shape
        ((2, 5, 8, 8, 1), (2, 5, 3))
    """
    coefficients = view_coefficients(distilled)
    reprs = distilled.reprs
    return (
        apply_views(reconstruct_images(distilled), distilled.layout.views),
        decode(coefficients, reprs.mean, reprs.bases) if isinstance(reprs, Factors) else coefficients,
    )


def compress(distilled: DistilledSet, layout: Layout, networks: Networks | None = None) -> DistilledSet:
    """Drop the coefficients that `layout` does not store, and keep the networks that predict them instead.

    Args:
        distilled: a set whose views each have their own or shared representations, as `init_distilled` makes it.
        layout: of the result; same shapes and views, some 'stored' views turned into 'network' (or 'shared').
        networks: one network a view of kind 'network', in the order of the views.

    Raises:
        ValueError: the layouts disagree, a dropped view has no network, or the set is compressed already.

    Example:
        >>> layout = Layout((8, 8, 1), (4, 4, 1), ("identity", "hflip"), ("stored", "stored"))
        >>> full = DistilledSet(jnp.zeros((5, 4, 4, 1)), jnp.zeros((2, 5, 3)), None, layout)
        >>> num_stored_scalars(compress(full, Layout((8, 8, 1), (4, 4, 1), layout.views, ("stored", "shared"))))
        95
    """
    old = distilled.layout
    if replace(old, view_targets=layout.view_targets) != layout:
        raise ValueError(f"compress: the set is laid out as {old}, the result as {layout}; only the view targets may differ")
    if distilled.networks is not None:
        raise ValueError("compress: the set is compressed already")
    if layout.count("network") != (0 if networks is None else len(networks.w1)):
        raise ValueError(f"compress: {layout.count('network')} views of kind 'network', expected one network each; call fit_networks")
    pairs = list(zip(old.view_targets, layout.view_targets, strict=True))
    if any(new == "stored" and was != "stored" for was, new in pairs):
        raise ValueError(f"compress: {layout.view_targets} stores a view that {old.view_targets} does not have")
    stored_before = [new for was, new in pairs if was == "stored"]
    keep = jnp.array([row for row, kind in enumerate(stored_before) if kind == "stored"])
    kept = _with_coefficients(distilled.reprs, stored_coefficients(distilled.reprs)[keep])
    return DistilledSet(images=distilled.images, reprs=kept, networks=networks, layout=layout)


def take_images(distilled: DistilledSet, index: Int[Array, " k"]) -> DistilledSet:
    """Return the set of the chosen images alone; bases, means and networks are shared, and differentiable as such."""
    images = distilled.images
    images = replace(images, coefficients=images.coefficients[index]) if isinstance(images, Factors) else images[index]
    reprs = _with_coefficients(distilled.reprs, stored_coefficients(distilled.reprs)[:, index])
    return replace(distilled, images=images, reprs=reprs)


def num_images(distilled: DistilledSet) -> int:
    """Return m."""
    return (distilled.images.coefficients if isinstance(distilled.images, Factors) else distilled.images).shape[0]


def num_stored_scalars(distilled: DistilledSet) -> int:
    """Return how many numbers the set stores: bases, coefficients, means, networks, all of them.

    Example:
        >>> num_stored_scalars(DistilledSet(jnp.zeros((5, 4, 4, 1)), jnp.zeros((1, 5, 3)), None, Layout((4, 4, 1), (4, 4, 1))))
        95
    """
    return sum(prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(distilled))


def count_stored_scalars(
    num_images: int, layout: Layout, repr_width: int, *, num_image_bases: int = 0, num_repr_bases: int = 0, hidden: int = 0
) -> int:
    """Return `num_stored_scalars` of a finished set from its sizes alone; 0 bases mean plain arrays.

    cost = U p + p + m U (or m p) + V d + d + T m V (or T m d) + networks (2 V h + h + V).
    """
    p = prod(layout.base_shape)
    width = num_repr_bases or repr_width
    images = num_image_bases * (p + num_images) + p if num_image_bases else num_images * p
    reprs = (num_repr_bases + 1) * repr_width if num_repr_bases else 0
    return images + reprs + layout.count("stored") * num_images * width + layout.count("network") * num_network_scalars(width, hidden)


def max_images(budget: int, layout: Layout, repr_width: int, *, num_image_bases: int = 0, num_repr_bases: int = 0, hidden: int = 0) -> int:
    """Return the largest m whose finished set stores at most `budget` numbers; 0 or less when not even the bases fit."""
    cost = lambda m: count_stored_scalars(
        m, layout, repr_width, num_image_bases=num_image_bases, num_repr_bases=num_repr_bases, hidden=hidden
    )
    return (budget - cost(0)) // (cost(1) - cost(0))


def budget_scalars(num_pairs: int, image_shape: Sequence[int], repr_width: int) -> int:
    """Return the budget of N image-representation pairs, N (H W C + d) numbers."""
    return num_pairs * (prod(image_shape) + repr_width)
