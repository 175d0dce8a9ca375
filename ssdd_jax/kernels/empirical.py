"""The empirical neural tangent kernel of a pool member, for small shapes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from ssdd_jax.core.batching import map_in_chunks
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import RidgeScale, gram
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.kernels.infinite import matrix_kernel


def tangent_matrix(
    learner: Learner, variables: Any, x1: Float[Array, "n1 H W C"], x2: Float[Array, "n2 H W C"], *, chunk_size: int = 0
) -> Float[Array, "n1 n2"]:
    """Compute (1 / d) sum_k J_k(x1) J_k(x2)^T, with the gradients J_k of output k by the parameters, in evaluation mode.

    The outputs are taken one after the other, so that memory is (n1 + n2) times the number of parameters.

    Args:
        learner: the network, with d outputs.
        variables: its variables.
        x1: images.
        x2: images.
        chunk_size: how many images' gradients are computed together; 0 means all.
    """
    outputs = lambda params, image: learner.apply({**variables, "params": params}, image[None])[0]
    width = jax.eval_shape(outputs, variables["params"], x1[0]).shape[0]

    def of_output(number):
        gradient = jax.grad(lambda params, image: outputs(params, image)[number])
        rows = lambda images: jax.vmap(lambda image: ravel_pytree(gradient(variables["params"], image))[0])(images)
        return gram(map_in_chunks(rows, x1, chunk_size), map_in_chunks(rows, x2, chunk_size))

    start = jnp.zeros((len(x1), len(x2)), x1.dtype)
    return jax.lax.scan(lambda total, number: (total + of_output(number), None), start, jnp.arange(width))[0] / width


def empirical_ntk(
    learner: Learner,
    *,
    ridge: float = 1e-6,
    ridge_scale: RidgeScale = "trace",
    chunk_size: int = 0,
    remat: bool = False,
    shard: Shard = unsharded,
) -> Kernel:
    """Return the regression with the empirical neural tangent kernel of one member, see `tangent_matrix`.

    Gradients reach the support rows, but never the member or the target images.

    Args:
        learner: network of the members.
        ridge: see `ssdd_jax.core.krr.krr_predict`.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        chunk_size: see `tangent_matrix`.
        remat: recompute the support images' gradients where theirs are needed, instead of keeping them.
        shard: how rows are sharded over devices.
    """

    def predict(variables, support_images, support_targets, images):
        matrix = lambda x1, x2: tangent_matrix(learner, variables, x1, x2, chunk_size=chunk_size)
        of_member = matrix_kernel(jax.checkpoint(matrix) if remat else matrix, ridge=ridge, ridge_scale=ridge_scale, shard=shard)
        return of_member.predict(variables, support_images, support_targets, images)

    return Kernel(predict, learner)
