"""What a method will store, before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ssdd_jax.core.distilled import DistilledSet, Layout, budget_scalars, max_images, num_stored_scalars
from ssdd_jax.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """What a plan depends on besides a method's settings.

    Attributes:
        num_pairs: N.
        image_shape: (H, W, C).
        repr_width: d.
        num_classes: of the labels; 0 without any.
        shifts: mean squared shift of the teacher's representation under each view, divided by its variance; for views whose targets are
            chosen automatically.
    """

    num_pairs: int
    image_shape: tuple[int, int, int]
    repr_width: int
    num_classes: int
    shifts: Mapping[str, float]

    @property
    def budget(self) -> int:
        """Return how many numbers a method may store."""
        return budget_scalars(self.num_pairs, self.image_shape, self.repr_width)


@dataclass(frozen=True)
class Plan:
    """What a method will store: its layout, its number of images and their cost in numbers."""

    layout: Layout
    num_images: int
    stored_scalars: int
    budget: int


def fill_budget(
    where: str, sizes: Sizes, layouts: Sequence[Layout], shapes: Callable[[int, Layout], DistilledSet], images: int, advice: str
) -> Plan:
    """Choose the layout that fits the most images, and as many images as are asked for or as fit.

    Args:
        where: config.methods.NAME, for messages.
        sizes: of the data and of the budget.
        layouts: to choose from; the first of those that fit equally many.
        shapes: (number of images, layout) -> the finished set, or its shapes.
        images: m, or 0 for as many as fit.
        advice: what to do where not even one image fits.

    Raises:
        InputError: the budget does not hold one image, or not those asked for.
    """
    budget = sizes.budget
    cost = lambda count, layout: num_stored_scalars(shapes(count, layout))
    most, layout = max(((max_images(budget, lambda m, of=layout: cost(m, of)), layout) for layout in layouts), key=lambda pair: pair[0])
    if most < 1:
        least = min(cost(1, layout) for layout in layouts)
        raise InputError(
            f"{where}: the bases and one image take {least} numbers, the budget of {sizes.num_pairs} pairs is {budget}; {advice}"
        )
    if images > most:
        raise InputError(f"{where}.images is {images}, expected at most {most}, what the budget of {budget} numbers holds")
    count = images or most
    return Plan(layout, count, cost(count, layout), budget)
