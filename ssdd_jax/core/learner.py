"""A network as plain functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

Variables = Any


class Learner(NamedTuple):
    """A network as functions. `variables` is {"params": ..., "batch_stats": ...} and nothing else.

    Attributes:
        init: key -> variables.
        apply: (variables, images "n H W C") -> outputs "n d", in evaluation mode (running statistics).
        apply_train: (variables, images) -> (outputs "n d", updated batch_stats), in training mode (batch statistics).
        features: (variables, images) -> flattened penultimate features "n q", in evaluation mode.
    """

    init: Callable[[PRNGKeyArray], Variables]
    apply: Callable[[Variables, Float[Array, "n H W C"]], Float[Array, "n d"]]
    apply_train: Callable[[Variables, Float[Array, "n H W C"]], tuple[Float[Array, "n d"], Any]]
    features: Callable[[Variables, Float[Array, "n H W C"]], Float[Array, "n q"]]
