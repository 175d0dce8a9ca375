"""A network whose parameters are one vector."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.nets.learner import check_no_batch_norm, student_learner
from ssdd_jax.settings.spec import NetSpec


class FlatLearner(NamedTuple):
    """A network without batch statistics, as functions of a vector of all its parameters.

    Attributes:
        num_params: p.
        init: key -> parameters "p".
        apply: (parameters "p", images "n H W C") -> outputs "n d".
        flatten: variables -> parameters "p".
        shapes: the shapes of its variables.
    """

    num_params: int
    init: Callable[[PRNGKeyArray], Float[Array, " p"]]
    apply: Callable[[Float[Array, " p"], Float[Array, "n H W C"]], Float[Array, "n d"]]
    flatten: Callable[[Any], Float[Array, " p"]]
    shapes: Any


def flat_learner(spec: NetSpec, image_shape: Sequence[int], num_outputs: int, where: str, precision: str) -> FlatLearner:
    """Return the network of some settings, see `student_learner`.

    Raises:
        InputError: the widths or the images do not fit the network, or it has batch statistics.
    """
    learner = student_learner(spec, image_shape, num_outputs, where, precision=precision)
    check_no_batch_norm(spec, learner, where)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    zeros, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["params"]))
    flatten = lambda variables: ravel_pytree(variables["params"])[0]
    return FlatLearner(
        num_params=zeros.size,
        init=lambda key: flatten(learner.init(key)),
        apply=lambda params, images: learner.apply({"params": unravel(params), "batch_stats": {}}, images),
        flatten=flatten,
        shapes=shapes,
    )
