"""Errors of predicted representations, by the names that a config gives them; none reads labels."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssdd_jax.core.losses import nearness, nearness_loss, whitened_error
from ssdd_jax.core.outer import Loss
from ssdd_jax.core.pool import mean_squared_error
from ssdd_jax.methods.method import Inputs
from ssdd_jax.methods.selection import centres_of

# Share of the mean variance that is added to every component's: those that hardly vary are noise.
WHITENING_FLOOR = 0.1
CENTRES = 128
# Among how many centres a representation is undecided, on average: the exponential of the entropy.
PERPLEXITY = 4.0


def make_loss(name: str, inputs: Inputs) -> Loss:
    """Return the error that `RegressionSpec.loss` names, fitted on the teacher's representations of the training images."""
    if name == "whitened":
        width = inputs.train_reprs().shape[-1]
        pca = inputs.repr_pca(min(width, inputs.num_train - 1))
        variances = pca.variances[: len(pca.bases)]
        scales = jax.lax.rsqrt(variances + WHITENING_FLOOR * variances.mean())
        return lambda predicted, reprs: whitened_error(predicted, reprs, pca.bases.T * scales[None])
    if name == "centres":
        reprs = np.asarray(inputs.train_reprs())
        centres = jnp.asarray(centres_of(reprs, min(CENTRES, len(reprs)), seed=0))
        temperature = temperature_of(jnp.asarray(reprs), centres)
        return lambda predicted, reprs: nearness_loss(predicted, reprs, centres, temperature)
    return mean_squared_error


def temperature_of(reprs: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, ""]:
    """Return the temperature at which representations are undecided among `PERPLEXITY` centres, by bisection; at most among all."""
    near = nearness(reprs, centres)
    wanted = min(np.log(PERPLEXITY), 0.9 * np.log(len(centres)))

    def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = (low + high) / 2
        logs = jax.nn.log_softmax(near / jnp.exp(middle))
        above = -jnp.mean(jnp.sum(jnp.exp(logs) * logs, -1)) > wanted
        return (jnp.where(above, low, middle), jnp.where(above, middle, high)), None

    distance = jnp.mean(jnp.sum(reprs**2, 1)) - jnp.mean(near)
    scale = jnp.log(distance + jnp.finfo(distance.dtype).tiny)
    (low, high), _ = jax.lax.scan(halve, (scale - 20, scale + 20), length=40)
    return jnp.exp((low + high) / 2)
