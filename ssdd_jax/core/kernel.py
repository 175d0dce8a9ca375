"""The interface of a kernel: the outer loss uses its predictions and knows nothing else of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from ssdd_jax.core.learner import Learner


class Kernel(NamedTuple):
    """A closed-form regression from support rows to predictions for other images.

    Attributes:
        predict: (variables, support images "n H W C", support targets "n d", images "b H W C") -> (predictions "b d", how many times
            the ridge was increased for a singular kernel). Differentiable in the support rows.
        learner: the network whose members' variables `predict` takes; None for a kernel without members (infinite width, a frozen
            encoder): there is then no pool, `variables` is None, and a step trains nothing but the set.
    """

    predict: Callable[[Any, Float[Array, "n H W C"], Float[Array, "n d"], Float[Array, "b H W C"]], tuple[Array, Int[Array, ""]]]
    learner: Learner | None
