"""How students are pretrained and read: recipes, and the sections of config.protocols."""

from dataclasses import dataclass, replace
from typing import Any

from ssdd_jax.errors import InputError
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.augment import FREPO_WITH_FLIP, FREPO_WITHOUT_FLIP, WITH_FLIP, WITHOUT_FLIP
from ssdd_jax.settings.fields import one_of, within


@dataclass(frozen=True)
class RecipeSpec:
    """How a student is pretrained (KRR-ST: SGD whose weight decay is coupled and takes every parameter, constant rate).

    With warm-up or a cosine, the rate rises linearly for the longer of `warmup_epochs` and `warmup_updates`, and falls to `final_rate` at
    the last update.

    Attributes:
        optimizer: sgd, or adamw; the latter without weight decay is Adam.
        learning_rate: 0 takes the rate that the set was made with, which is in its manifest; of a set that has none it is refused.
        momentum: of SGD.
        final_rate: where a cosine ends, as a share of the learning rate.
        decay_at: share of the updates after which the rate is a tenth; 0 is never. Of 1,001 epochs 502/1001 are exactly 502.
        reset_momentum: whether the optimizer also starts afresh there, its moments zero.
        epochs: epochs of pretraining; 0 takes `epochs` or `updates` of config.evaluation.
        batch_size: rows of a batch, at most all; 0 takes that of config.evaluation.
        augment: strategy of `ssdd_jax.core.diff_augment` on every batch, one operation per batch and parameters per image; '' is none.
        loss: 'squared_error', half the squared distance to the targets as they are, which KIP and FRePo read their labels with; '' takes
            that of what the targets are, see `ssdd_jax.evals.student.LOSSES`.
        align_corners: what its grid ends at: the centres of the border pixels, or their outer edges.
    """

    optimizer: str = one_of("sgd", "adamw")
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.9, 0.0, 1.0)
    weight_decay: float = within(1e-3, 0.0)
    schedule: str = one_of("constant", "cosine")
    warmup_epochs: int = within(0, 0)
    warmup_updates: int = within(0, 0)
    final_rate: float = within(0.0, 0.0, 1.0)
    decay_at: float = within(0.0, 0.0, 1.0)
    reset_momentum: bool = False
    epochs: int = within(0, 0)
    batch_size: int = within(0, 0)
    augment: str = one_of("", WITH_FLIP, WITHOUT_FLIP, FREPO_WITH_FLIP, FREPO_WITHOUT_FLIP)
    loss: str = one_of("", "squared_error")
    align_corners: bool = False


RECIPES = {
    "representation": RecipeSpec(),
    "labels": RecipeSpec(learning_rate=0.01, weight_decay=5e-4),
    "logits": RecipeSpec(learning_rate=0.01, weight_decay=5e-4),
}
# Of transformers, which SGD at this rate does not train.
VIT_RECIPE = RecipeSpec(optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=10)
"""How students are pretrained, by what the targets are: KRR-ST's recipe, and the supervised one."""

_DC = RecipeSpec(
    learning_rate=0.01,
    weight_decay=5e-4,
    decay_at=502 / 1001,
    reset_momentum=True,
    epochs=1001,
    batch_size=256,
    augment=WITH_FLIP,
)
LABEL_RECIPES = {
    # Of DC, DSA, DM and IDM. The rate drops at the end of epoch 501, counted from 0, where the optimizer is created anew.
    "dc": _DC,
    # KRR-ST's reading of their sets.
    "krr_st_label": replace(_DC, epochs=1000, decay_at=0.5, reset_momentum=False, align_corners=True),
    # For `logits`, at the rate that the set was made with.
    "datm": replace(_DC, learning_rate=0.0, batch_size=128, align_corners=True),
    # Its number of updates grows with the set (10: 1000, 100: 2000, 500: 5000, 1000: 10,000): config.evaluation.updates.
    "frepo": RecipeSpec(
        optimizer="adamw",
        learning_rate=3e-4,
        weight_decay=0.0,
        schedule="cosine",
        warmup_updates=500,
        final_rate=0.01,
        batch_size=500,
        augment=FREPO_WITH_FLIP,
        loss="squared_error",
        align_corners=True,
    ),
}
"""Recipes that label sets of the literature are read with, by name: config.evaluation.recipes.labels = to_config(LABEL_RECIPES["dc"]).

Where left and right matter, set `augment` to `ssdd_jax.settings.augment.WITHOUT_FLIP`, for "frepo" to `FREPO_WITHOUT_FLIP`."""


@dataclass(frozen=True)
class PublishedSpec:
    """What a publication reports for a method; a report shows it in brackets, and nothing else depends on it.

    Attributes:
        source: the publication, in words.
        dataset: name of the dataset, as tables have it.
        num_pairs: its budget.
        score: name of the score, as rows of results.json have it.
        students: labels of students.
        values: the number of each student, as it is printed there.
    """

    source: str = ""
    dataset: str = ""
    num_pairs: int = within(0, 0)
    score: str = "linear"
    students: tuple[str, ...] = ()
    values: tuple[float, ...] = ()

    def __post_init__(self):
        if len(self.students) != len(self.values):
            raise InputError(
                f"config.evaluation.published has {len(self.values)} values for {len(self.students)} students; give one for each"
            )


@dataclass(frozen=True)
class LinearSpec:
    """The linear probe with all labels (KRR-ST: SGD with momentum .9, cosine to zero)."""

    steps: int = within(5000, 1, smoke=5)
    batch_size: int = within(512, 1, smoke=64)
    learning_rate: float = within(0.2, 0.0)


@dataclass(frozen=True)
class FewSpec:
    """The few-label probe.

    Attributes:
        fractions: shares of the labels, class by class; one score each.
        per_class: labels of a class that are taken at least.
        steps: L-BFGS iterations.
        l2: weight of half the squared norm of the probe's weights (MKDT).
    """

    fractions: tuple[float, ...] = within((0.01, 0.05), 0.0, 1.0)
    per_class: int = within(1, 1)
    steps: int = within(200, 1, smoke=5)
    l2: float = within(1e-3, 0.0)


@dataclass(frozen=True)
class KnnSpec:
    """The vote of the `neighbors` nearest neighbours, weighted by exp(cosine / temperature) (Wu et al., 2018)."""

    neighbors: int = within(20, 1)
    temperature: float = within(0.07, 1e-6)


@dataclass(frozen=True)
class FinetuneSpec:
    """Fine-tuning of the complete network with all labels (SGD with momentum .9, cosine to zero).

    Attributes:
        padding: zeros around an image before its random crop.
        flip: probability of a horizontal flip; 0 where left and right matter.
    """

    steps: int = within(10_000, 1, smoke=3)
    batch_size: int = within(256, 1)
    learning_rate: float = within(0.01, 0.0)
    weight_decay: float = within(5e-4, 0.0)
    padding: int = within(4, 0)
    flip: float = within(0.5, 0.0, 1.0)


def protocol_defaults() -> dict[str, Any]:
    """Return the default settings of every protocol in the registry, by name."""
    return {name: PROTOCOLS.spec(name)() for name in PROTOCOLS}
