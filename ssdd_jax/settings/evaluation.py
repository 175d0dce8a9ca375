"""How students are pretrained and read: recipes, and the sections of config.protocols."""

from dataclasses import dataclass
from typing import Any

from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.fields import one_of, within


@dataclass(frozen=True)
class RecipeSpec:
    """How a student is pretrained (KRR-ST: SGD whose weight decay is coupled and takes every parameter, constant rate).

    With warm-up or a cosine, the rate rises linearly for `warmup_epochs` and falls to zero at the last update.
    """

    optimizer: str = one_of("sgd", "adamw")
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.9, 0.0, 1.0)
    weight_decay: float = within(1e-3, 0.0)
    schedule: str = one_of("constant", "cosine")
    warmup_epochs: int = within(0, 0)


RECIPES = {
    "representation": RecipeSpec(),
    "labels": RecipeSpec(learning_rate=0.01, weight_decay=5e-4),
    "logits": RecipeSpec(learning_rate=0.01, weight_decay=5e-4),
}
# Of transformers, which SGD at this rate does not train.
VIT_RECIPE = RecipeSpec(optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=10)
"""How students are pretrained, by what the targets are: KRR-ST's recipe, and the supervised one."""


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
