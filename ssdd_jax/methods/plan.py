"""What a method will store, before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ssdd_jax.core.distilled import DistilledSet, Layout, budget_scalars, finished_shapes, max_images, num_stored_scalars
from ssdd_jax.core.quantise import stored_numbers
from ssdd_jax.errors import BudgetError, InputError


@dataclass(frozen=True)
class Sizes:
    """What a plan depends on besides a method's settings.

    Attributes:
        num_pairs: budget N, in pairs of an image and a representation.
        image_shape: (H, W, C).
        repr_width: width d of a representation.
        num_classes: number of classes; 0 without labels.
        shifts: mean squared shift of the teacher's representation under each view, divided by its variance; for views whose targets are
            chosen automatically.
        num_train: number of training images, which a set has at most; 0 is any number.
    """

    num_pairs: int
    image_shape: tuple[int, int, int]
    repr_width: int
    num_classes: int
    shifts: Mapping[str, float]
    num_train: int = 0

    @property
    def budget(self) -> int:
        """Return how many numbers a method may store."""
        return budget_scalars(self.num_pairs, self.image_shape, self.repr_width)


@dataclass(frozen=True)
class Plan:
    """What a method will store: its layout, its number of images, their cost in numbers of 32 bits, and lines that the user should know."""

    layout: Layout
    num_images: int
    stored_scalars: int
    budget: int
    notes: tuple[str, ...] = ()


def fill_budget(
    where: str,
    sizes: Sizes,
    layouts: Sequence[Layout],
    shapes: Callable[[int, Layout], DistilledSet],
    images: int,
    advice: str,
    bits: int = 32,
) -> Plan:
    """Choose the layout that fits the most images, and the number of images: those asked for, or as many as fit and there are.

    Args:
        where: config.methods.NAME, for messages.
        sizes: sizes of the data and of the budget.
        layouts: layouts to choose from; of several that fit equally many images, the first is taken.
        shapes: (number of images, layout) -> the finished set, or its shapes.
        images: number of images m, or 0 for as many as fit.
        advice: what to do if not even one image fits.
        bits: of a stored number, see `ssdd_jax.core.quantise`; the budget counts numbers of 32 bits.

    Raises:
        InputError: the budget does not hold one image, or not as many as are asked for.
    """
    budget = sizes.budget
    # Without views that cost anything, all layouts are the same.
    cost = cache(lambda count, layout: stored_numbers(shapes(count, layout), bits))
    most, layout = max(((max_images(budget, lambda m, of=layout: cost(m, of)), layout) for layout in layouts), key=lambda pair: pair[0])
    if most < 1:
        least = min(cost(1, layout) for layout in layouts)
        raise InputError(
            f"{where}: the bases and one image take {least} numbers, the budget of {sizes.num_pairs} pairs is {budget}; {advice}"
        )
    if images > most:
        raise InputError(f"{where}.images is {images}, expected at most {most}, as many as the budget of {budget} numbers holds")
    count = images or min(most, sizes.num_train or most)
    all_of_them = f"the budget holds {most} images, there are {count} training images: the set has them all"
    return Plan(layout, count, cost(count, layout), budget, () if images or count == most else (all_of_them,))


def fill_classes(name: str, sizes: Sizes, layout: Layout, images: int, *, label_width: int = 1) -> Plan:
    """Choose the number of images of a label set, equally many of each class: those asked for, or as many as the budget holds.

    Args:
        name: of the method's section, for messages.
        sizes: sizes of the data and of the budget.
        layout: its layout.
        images: number of images m, or 0 for as many as fit.
        label_width: how many numbers a label takes: 1 where it is the index of a class, the number of classes where it is learned.

    Raises:
        BudgetError: the budget does not hold one image of each class.
        InputError: it does not hold as many as are asked for, or they are no multiple of the classes.
    """
    where, classes = f"config.methods.{name}", sizes.num_classes
    if images % classes:
        raise InputError(f"{where}.images is {images}, expected a multiple of the {classes} classes, or 0 for as many as fit")
    shapes = lambda count, layout: finished_shapes(count, layout, label_width)
    fill = lambda images: fill_budget(where, sizes, [layout], shapes, images, "raise config.num_pairs")
    one = num_stored_scalars(shapes(1, layout))
    if one * classes > sizes.budget:
        raise BudgetError(
            f"{where}: the budget of {sizes.budget} numbers holds {sizes.budget // one} images, expected one of each of the {classes} "
            f"classes; raise config.num_pairs ({sizes.num_pairs}), or leave {name} out of config.only"
        )
    found = fill(images)
    count = found.num_images // classes * classes
    return replace(found, num_images=count, stored_scalars=num_stored_scalars(shapes(count, layout)))
