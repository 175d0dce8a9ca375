"""What a method will store, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ssdd_jax.core.distilled import Layout, budget_scalars, count_stored_scalars, max_images
from ssdd_jax.errors import InputError
from ssdd_jax.settings.spec import RegressionSpec


@dataclass(frozen=True)
class Plan:
    """What a method will store: its layout, its number of images and their cost in numbers."""

    layout: Layout
    num_images: int
    stored_scalars: int
    budget: int


def plan_method(
    name: str, method: RegressionSpec, num_pairs: int, image_shape: tuple[int, int, int], width: int, shifts: Mapping[str, float]
) -> Plan:
    """Choose the views' targets and the number of images that the budget holds.

    Args:
        name: of the method, for messages.
        method: its settings.
        num_pairs: N.
        image_shape: (H, W, C).
        width: d.
        shifts: mean squared shift of the teacher's representation under each view, divided by its variance; used
            where the views' targets are automatic.

    Raises:
        InputError: the budget does not hold the bases and one image, or a size does not fit the data.
    """
    where = f"config.methods.{name}"
    h, w, c = image_shape
    if method.base_size > min(h, w):
        raise InputError(f"{where}.base_size is {method.base_size}, expected at most {min(h, w)}, the images' side; 0 is the full size")
    base_shape = (method.base_size, method.base_size, c) if method.base_size else image_shape
    if method.image_bases > prod(base_shape):
        raise InputError(f"{where}.image_bases is {method.image_bases}, expected at most {prod(base_shape)}, the numbers of a base image")
    if method.repr_bases > width:
        raise InputError(f"{where}.repr_bases is {method.repr_bases}, expected at most {width}, the width of the teacher's representation")
    budget = budget_scalars(num_pairs, image_shape, width)
    sizes = {"num_image_bases": method.image_bases, "num_repr_bases": method.repr_bases, "hidden": method.hidden}
    auto = method.view_targets == ("auto",)
    try:
        if auto:
            shared = [view for view in method.views[1:] if shifts[view] <= method.shared_below]
            kinds_of = lambda costly: ("stored", *("shared" if view in shared else costly for view in method.views[1:]))
            layouts = [Layout(image_shape, base_shape, method.views, kinds_of(costly)) for costly in ("stored", "network")]
        else:
            layouts = [Layout(image_shape, base_shape, method.views, method.view_targets)]
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    # Stored coefficients are exact, so networks must save something to be chosen.
    layout = max(layouts, key=lambda candidate: max_images(budget, candidate, width, **sizes))
    most = max_images(budget, layout, width, **sizes)
    if most < 1:
        least = count_stored_scalars(1, layout, width, **sizes)
        raise InputError(
            f"{where}: the bases and one image take {least} numbers, the budget of {num_pairs} pairs is {budget}; "
            f"lower image_bases ({method.image_bases}) or repr_bases ({method.repr_bases}), or raise config.num_pairs"
        )
    if method.images > most:
        raise InputError(f"{where}.images is {method.images}, expected at most {most}, what the budget of {budget} numbers holds")
    count = method.images or most
    return Plan(layout, count, count_stored_scalars(count, layout, width, **sizes), budget)
