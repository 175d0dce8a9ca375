"""The distilled set: a small pytree from which support images and their representations are expanded.

There is one type for every parameterization: images and representations are each in a store of `ssdd_jax.core.stores`, so KRR-ST
(plain, plain), the bases of Yu et al. (factored, factored) and the mixtures of both are settings, and what a method stores is the
number of scalars in the pytree.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from ssdd_jax.core.approximation import Networks, init_networks, predict_shift
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.core.stores.store import Start, Store
from ssdd_jax.core.views import apply_views, check_views
from ssdd_jax.settings.fields import TARGET_KINDS

VIEW_TARGETS = ("stored", "shared", "network")
"""Where a view's targets come from."""


@dataclass(frozen=True)
class Layout:
    """What the arrays of a distilled set mean. Static: it takes part in jit's cache key, not in differentiation.

    Attributes:
        image_shape: (H, W, C) of the expanded images.
        base_shape: (h, w, C) of the stored images or image bases, upsampled bilinearly to `image_shape`.
        views: names in `ssdd_jax.core.views.VIEWS`; the first is 'identity' where networks predict what a view shifts.
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
        # As plain integers: they are written as JSON, and come from whatever has counted them.
        for name in ("image_shape", "base_shape"):
            object.__setattr__(self, name, tuple(map(operator.index, getattr(self, name))))
        check_views(self.views, self.image_shape)
        if len(self.view_targets) != len(self.views) or self.view_targets[0] != "stored" or not set(self.view_targets) <= set(VIEW_TARGETS):
            raise ValueError(
                f"view targets {self.view_targets} for views {self.views}: "
                f"expected one of {', '.join(VIEW_TARGETS)} per view, 'stored' first"
            )
        if "network" in self.view_targets and self.views[0] != "identity":
            raise ValueError(
                f"views {self.views} with targets {self.view_targets}: networks predict shifts from the image itself, "
                "expected 'identity' first"
            )
        if self.target_kind not in TARGET_KINDS:
            raise ValueError(f"target kind {self.target_kind!r}: expected one of {', '.join(TARGET_KINDS)}")
        if self.base_shape[2] != self.image_shape[2] or any(b > i for b, i in zip(self.base_shape, self.image_shape, strict=True)):
            raise ValueError(f"base shape {self.base_shape}: expected at most {self.image_shape} with as many channels")

    def count(self, kind: str) -> int:
        """Return how many views have targets of this kind."""
        return self.view_targets.count(kind)

    def uncompressed(self) -> "Layout":
        """Return the layout during distillation: targets that networks will predict are stored until the networks are trained."""
        return replace(self, view_targets=tuple("stored" if kind == "network" else kind for kind in self.view_targets))


@struct.dataclass
class DistilledSet:
    """A distilled set of m images under A views.

    Attributes:
        images: store of images "m h w C", or of rows of h w C numbers, in the student's normalized pixel space.
        reprs: store of the targets "T m d" of T stored views, view 0 first.
        networks: approximation networks of the views of kind 'network', or None when there is no such view.
        layout: what the arrays mean.
    """

    images: Store
    reprs: Store
    networks: Networks | None
    layout: Layout = struct.field(pytree_node=False)


def resize_images(images: Float[Array, "n H W C"], shape: Sequence[int]) -> Float[Array, "n h w C"]:
    """Resize bilinearly with half-pixel centres, antialiased when shrinking; the identity at equal size."""
    return images if images.shape[1:3] == tuple(shape[:2]) else jax.image.resize(images, (len(images), *shape), "linear")


def init_distilled(
    images: Float[Array, "m H W C"],
    view_reprs: Float[Array, "A m d"],
    layout: Layout,
    *,
    image_store: Start = Plain,
    repr_store: Start = Plain,
) -> DistilledSet:
    """Start a distilled set from real images and the teacher's representations of their views.

    Args:
        images: "m H W C" real images.
        view_reprs: "A m d", the teacher's representation of every view of every image.
        layout: layout of the finished set; views of kind 'network' keep their own representations until `compress`.
        image_store: how images at base resolution are kept, such as `Plain` or `factored(pca)` with principal components of
            flattened real images of that size.
        repr_store: how representations are kept.

    Raises:
        ValueError: shapes do not match the layout.
    """
    if images.shape[1:] != tuple(layout.image_shape):
        raise ValueError(f"init_distilled: images have shape {images.shape[1:]}, expected the layout's {layout.image_shape}")
    if view_reprs.shape[:2] != (len(layout.views), len(images)):
        raise ValueError(f"init_distilled: view_reprs has shape {view_reprs.shape}, expected ({len(layout.views)}, {len(images)}, d)")
    layout = layout.uncompressed()
    small = resize_images(images, layout.base_shape)
    reprs = view_reprs[jnp.array([i for i, kind in enumerate(layout.view_targets) if kind == "stored"])]
    return DistilledSet(
        images=image_store(small),
        reprs=repr_store(reprs),
        networks=None,
        layout=layout,
    )


def reconstruct_images(distilled: DistilledSet) -> Float[Array, "m H W C"]:
    """Return the images at full resolution, before any view.

    Example:
        >>> layout = Layout((8, 8, 1), (4, 4, 1))
        >>> reconstruct_images(DistilledSet(Plain(jnp.zeros((5, 4, 4, 1))), Plain(jnp.zeros((1, 5, 3))), None, layout)).shape
        (5, 8, 8, 1)
    """
    images, layout = distilled.images, distilled.layout
    rows = images.decode(images.codes)
    return resize_images(rows if rows.ndim == 4 else rows.reshape(-1, *layout.base_shape), layout.image_shape)


def view_coefficients(distilled: DistilledSet) -> Float[Array, "A m V"]:
    """Return the codes of every view's representations: coefficients, or in a plain store the representations themselves."""
    stored = distilled.reprs.codes
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
        >>> images, reprs = expand(DistilledSet(Plain(jnp.zeros((5, 4, 4, 1))), Plain(jnp.zeros((1, 5, 3))), None, layout))
        >>> images.shape, reprs.shape
        ((2, 5, 8, 8, 1), (2, 5, 3))
    """
    codes = view_coefficients(distilled)
    return apply_views(reconstruct_images(distilled), distilled.layout.views), distilled.reprs.decode(codes)


def compress(distilled: DistilledSet, layout: Layout, networks: Networks | None = None) -> DistilledSet:
    """Drop the coefficients that `layout` does not store, and keep the networks that predict them instead.

    Args:
        distilled: a set whose views each have their own or shared representations, as `init_distilled` makes it.
        layout: layout of the result; same shapes and views, some 'stored' views turned into 'network' (or 'shared').
        networks: one network per view of kind 'network', in the order of the views.

    Raises:
        ValueError: the layouts disagree, a dropped view has no network, or the set is already compressed.

    Example:
        >>> layout = Layout((8, 8, 1), (4, 4, 1), ("identity", "hflip"), ("stored", "stored"))
        >>> full = DistilledSet(Plain(jnp.zeros((5, 4, 4, 1))), Plain(jnp.zeros((2, 5, 3))), None, layout)
        >>> num_stored_scalars(compress(full, Layout((8, 8, 1), (4, 4, 1), layout.views, ("stored", "shared"))))
        95
    """
    old = distilled.layout
    if replace(old, view_targets=layout.view_targets) != layout:
        raise ValueError(f"compress: the set has the layout {old}, the result {layout}; only the view targets may differ")
    if distilled.networks is not None:
        raise ValueError("compress: the set is already compressed")
    if layout.count("network") != (0 if networks is None else len(networks.w1)):
        raise ValueError(f"compress: {layout.count('network')} views of kind 'network', expected one network each; call fit_networks")
    pairs = list(zip(old.view_targets, layout.view_targets, strict=True))
    if any(new == "stored" and was != "stored" for was, new in pairs):
        raise ValueError(f"compress: {layout.view_targets} stores a view that {old.view_targets} does not have")
    stored_before = [new for was, new in pairs if was == "stored"]
    keep = jnp.array([row for row, kind in enumerate(stored_before) if kind == "stored"])
    return DistilledSet(images=distilled.images, reprs=distilled.reprs.take(keep, axis=0), networks=networks, layout=layout)


def take_images(distilled: DistilledSet, index: Int[Array, " k"]) -> DistilledSet:
    """Return the set of the chosen images only; bases, means and networks are shared and receive gradients."""
    return replace(distilled, images=distilled.images.take(index, axis=0), reprs=distilled.reprs.take(index, axis=1))


def num_images(distilled: DistilledSet) -> int:
    """Return m."""
    return distilled.images.codes.shape[0]


def num_stored_scalars(distilled: Any) -> int:
    """Return how many numbers the set stores: bases, coefficients, means and networks.

    Example:
        >>> layout = Layout((4, 4, 1), (4, 4, 1))
        >>> num_stored_scalars(DistilledSet(Plain(jnp.zeros((5, 4, 4, 1))), Plain(jnp.zeros((1, 5, 3))), None, layout))
        95
    """
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(distilled))


def finished_shapes(
    num_images: int, layout: Layout, repr_width: int, *, image_store: Start = Plain, repr_store: Start = Plain, hidden: int = 0
) -> DistilledSet:
    """Return the shapes of the finished set of `num_images` images, as `init_distilled` and `compress` make it; nothing is computed.

    Args:
        num_images: number of images m.
        layout: layout of the finished set.
        repr_width: width d of a representation.
        image_store: see `init_distilled`; it may return zeros in place of what is fitted to data.
        repr_store: likewise.
        hidden: width of the approximation networks.
    """

    def make() -> DistilledSet:
        images, reprs = jnp.zeros((num_images, *layout.image_shape)), jnp.zeros((len(layout.views), num_images, repr_width))
        start = init_distilled(images, reprs, layout, image_store=image_store, repr_store=repr_store)
        count = layout.count("network")
        networks = init_networks(jax.random.key(0), count, start.reprs.codes.shape[-1], hidden) if count else None
        return compress(start, layout, networks)

    return jax.eval_shape(make)


def max_images(budget: int, cost: Callable[[int], int]) -> int:
    """Return the largest m >= 1 with cost(m) <= budget, or 0 where not even one image fits.

    Args:
        budget: how many numbers may be stored.
        cost: number of images -> numbers stored; it grows with every image.
    """
    first = cost(1)
    if first > budget:
        return 0
    # Exact where every image costs the same.
    most = 1 + (budget - first) // (cost(2) - first)
    while cost(most) > budget:
        most -= 1
    while cost(most + 1) <= budget:
        most += 1
    return most


def budget_scalars(num_pairs: int, image_shape: Sequence[int], repr_width: int) -> int:
    """Return the budget of N image-representation pairs, N (H W C + d) numbers."""
    return num_pairs * (prod(image_shape) + repr_width)
