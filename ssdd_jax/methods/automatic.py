"""Settings that choose themselves: which of the regression's are automatic, and the rule that finds them by short trials.

A trial makes a set with some settings, in few steps or none unless steps are what it is about, and returns the error of a student of it
on training images that the set does not start from. So the rule sees training images and the teacher, never a label or the test split.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, inf, sqrt

from ssdd_jax.methods.plan import Sizes
from ssdd_jax.settings.methods import AUTO, AUTO_STEPS, AUTO_VIEWS, RegressionSpec

Trial = Callable[[RegressionSpec], float]
"""Takes settings of which none is automatic, and returns the error of a student of such a set; infinite where they cannot be."""

GRIDS: Mapping[str, Sequence[float]] = {
    # Side of the bases, as a share of the images'.
    "base_size": (0.25, 0.375, 0.5, 0.75, 1.0),
    # Frequencies of the bases, at most all that there are and `LARGEST`.
    "frequencies": (24, 48, 96, 192, 384, 768),
    # Shares of the budget that bases of images and of representations take; what is left becomes coefficients.
    "image_bases": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4),
    "repr_bases": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4),
    "bits": (4, 8, 32),
}
START = {"base_size": 1, "frequencies": 3, "image_bases": 4, "repr_bases": 3, "bits": 0}
"""Where the search for sizes begins: places in `GRIDS`."""
NONE = -1
"""The place of doing without bases: images, or representations, are kept as they are."""
LARGEST = 1 / 8
"""Share of the budget that the mean image takes at most, which is kept in numbers of 32 bits and has as many frequencies as a basis."""
ROWS = 512
"""Rows of the regression in a step, where it is automatic how many images take part in one."""
HIDDEN = (0, 2, 4, 8, 16, 32)
FIRST_HIDDEN = 2
"""Where the search for the networks' width begins: a place in `HIDDEN`."""
GROUPS = (("hflip",), ("vflip",), ("rot90", "rot180", "rot270"))
"""Views that are added together."""
WORTH = 0.05
"""Views and steps are kept if the error falls by this share: both take time, and by less the trained students of two seeds differ."""
SHARE_BELOW = 1.0
"""A view is shared only if the teacher's shift is less than this share of its variance: else another image's target were as good."""


def is_automatic(spec: RegressionSpec) -> bool:
    """Return whether any setting is left to the rule."""
    sizes = any(getattr(spec, name) == AUTO for name in (*GRIDS, "hidden", "support_images"))
    return sizes or spec.views == AUTO_VIEWS or spec.steps == AUTO_STEPS


def view_choices(image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Return the views that may be chosen for images "H W C": quarter turns only of square ones."""
    square = image_shape[0] == image_shape[1]
    return ("identity", *(view for group in GROUPS for view in group if square or len(group) == 1))


def first_choice(spec: RegressionSpec, sizes: Sizes) -> RegressionSpec:
    """Return the settings with which the search begins."""
    return _at(spec, sizes, START)


def choose(spec: RegressionSpec, sizes: Sizes, trial: Trial, most: int) -> RegressionSpec:
    """Return settings of which none is automatic.

    First sizes: from `first_choice` on, each of the bases' side or frequencies, their number, that of the representations' bases and the
    bits goes a step of its grid up or down, and on in that direction while the error falls; images and representations without bases are
    tried, too. Then views: flips that share the image's
    target, and rotations whose targets networks predict, are each kept if the error falls by `WORTH`. Then the width of these networks.
    Last the steps, which are kept likewise: all trials before are without any if they are automatic.

    Args:
        spec: the settings.
        sizes: sizes of the data and the budget, with the teacher's shifts.
        trial: see `Trial`; it is called once for equal settings.
        most: largest number of trials; the best of them is taken.

    Example:
        >>> from ssdd_jax.methods.plan import Sizes
        >>> sizes = Sizes(num_pairs=10, image_shape=(32, 32, 3), repr_width=128, num_classes=0, shifts={})
        >>> spec = RegressionSpec(image_bases=AUTO, repr_bases=16, base_size=8)
        >>> choose(spec, sizes, lambda tried: abs(tried.image_bases - 50), most=9).image_bases
        41
    """
    search = _Search(trial, most)
    place, groups, automatic = dict(START), (), [name for name in GRIDS if getattr(spec, name) == AUTO]
    best = search(first_choice(spec, sizes))
    # Where that cannot be, as where the representations span less than their width: with fewer bases, or none.
    for setting in (name for name in ("repr_bases", "image_bases") if name in automatic):
        while search.errors[best] == inf and place[setting] > NONE and search.left:
            place[setting] -= 1
            best = search(_at(spec, sizes, place))
    for setting in automatic:
        # After steps up, the first step down leads back to what was worse, and costs no trial.
        for direction in (1, -1):
            while 0 <= place[setting] + direction < len(GRIDS[setting]):
                there = {**place, setting: place[setting] + direction}
                tried = _at(spec, sizes, there)
                # Different places have the same size where it can be no larger or smaller.
                if tried != best and not search.better(tried, best):
                    break
                best, place = tried, there
        if setting in ("image_bases", "repr_bases"):
            # Not a step on from many of them, and tried whatever these gave.
            there = {**place, setting: NONE}
            if search.better(tried := _at(spec, sizes, there), best):
                best, place = tried, there
    if spec.views == AUTO_VIEWS:
        for group in _groups(sizes):
            tried = _with_views(best, spec, (*groups, group))
            if search.better(tried, best, WORTH):
                best, groups = tried, (*groups, group)
    if spec.hidden == AUTO and "network" in best.view_targets:
        for direction in (-1, 1):
            at = FIRST_HIDDEN + direction
            while 0 <= at < len(HIDDEN) and search.better(tried := replace(best, hidden=HIDDEN[at]), best):
                best, at = tried, at + direction
    if spec.steps == AUTO_STEPS and search.better(tried := replace(best, steps=-1), best, WORTH):
        best = tried
    return best


class _Search:
    """Trials by their settings, and how many there may still be."""

    def __init__(self, trial: Trial, most: int):
        self.trial, self.left, self.errors = trial, most, {}

    def __call__(self, spec: RegressionSpec) -> RegressionSpec:
        if spec not in self.errors:
            self.left -= 1
            self.errors[spec] = self.trial(spec)
        return spec

    def better(self, tried: RegressionSpec, best: RegressionSpec, by: float = 0.0) -> bool:
        if tried not in self.errors and self.left < 1:
            return False
        return self.errors[self(tried)] < self.errors[best] * (1 - by)


def _at(spec: RegressionSpec, sizes: Sizes, place: Mapping[str, int]) -> RegressionSpec:
    """Return settings with the automatic sizes at a place of `GRIDS`, and the first views."""
    (height, width, channels), automatic = sizes.image_shape, lambda name: getattr(spec, name) == AUTO
    bits = int(GRIDS["bits"][place["bits"]]) if automatic("bits") else spec.bits
    budget = sizes.budget * 32 / bits
    share = lambda name: 0 if place[name] == NONE else GRIDS[name][place[name]] * budget
    side, kept = spec.base_size, spec.frequencies
    # Plain images have all their pixels.
    plain = place["image_bases"] == NONE
    if automatic("base_size"):
        # Bases have at least as many pixels as frequencies that are asked for.
        least, most = ceil(sqrt(max(kept, 1) / channels)), min(height, width)
        side = 0 if plain else min(most, max(least, round(GRIDS["base_size"][place["base_size"]] * most)))
    pixels = (side * side if side else height * width) * channels
    if automatic("frequencies") and plain:
        kept = 0
    elif automatic("frequencies"):
        kept = min(int(GRIDS["frequencies"][place["frequencies"]]), pixels, max(1, int(sizes.budget * LARGEST)))
    of_base = kept or pixels
    # More bases than half of what they span would save little, and there are fewer than images.
    rank = sizes.num_train - 1 if sizes.num_train else inf
    half = lambda count, most: int(max(1, min(count, most // 2, rank))) if count else 0
    sized = replace(
        spec,
        bits=bits,
        steps=0 if spec.steps == AUTO_STEPS else spec.steps,
        base_size=side,
        frequencies=kept,
        image_bases=half(share("image_bases") // of_base, of_base) if automatic("image_bases") else spec.image_bases,
        repr_bases=half(share("repr_bases") // sizes.repr_width, sizes.repr_width) if automatic("repr_bases") else spec.repr_bases,
        hidden=HIDDEN[FIRST_HIDDEN] if spec.hidden == AUTO else spec.hidden,
    )
    return _with_views(sized, spec)


def _groups(sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """Yield the groups of views that can be added: flips if the teacher hardly moves, rotations of square images."""
    possible = set(view_choices(sizes.image_shape)) & set(sizes.shifts)
    for group in GROUPS:
        if set(group) <= possible and (len(group) > 1 or sizes.shifts[group[0]] < SHARE_BELOW):
            yield group


def _with_views(spec: RegressionSpec, asked: RegressionSpec, groups: Sequence[tuple[str, ...]] = ()) -> RegressionSpec:
    """Return settings with what is automatic of the views, and of the images in a step, as many as make `ROWS` rows under these views.

    The views are the identity and `groups`: single views share its targets, those of others are predicted by networks in all steps.
    """
    if asked.views == AUTO_VIEWS:
        kinds = {view: "shared" if len(group) == 1 else "network" for group in groups for view in group}
        joint = 1.0 if "network" in kinds.values() else 0.0
        spec = replace(spec, views=("identity", *kinds), view_targets=("stored", *kinds.values()), joint=joint)
    return replace(spec, support_images=max(1, ROWS // len(spec.views))) if asked.support_images == AUTO else spec
