"""Approximation networks: how a representation's coefficients shift under each predefined augmentation.

One two-layer perceptron per view, V -> h -> V, stacked along a leading axis. They replace the stored coefficients of the
augmented views: C_a is approximated by C_0 + g_a(C_0) (Yu et al., 2025).
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from ssdd_jax.core.bases import HIGHEST

ROUNDING = 1e-6
"""A deviation of less than this, relative to the root mean square, is rounding in float32."""


@struct.dataclass
class Networks:
    """Stacked networks g_a(c) = relu(c W1 + b1) W2 + b2. With h = 0 only the bias b2 is left: a mean shift.

    Attributes:
        w1: weights of the first layer, "A V h".
        b1: biases of the first layer, "A h".
        w2: weights of the last layer, "A h V".
        b2: biases of the last layer, "A V".
    """

    w1: Float[Array, "A V h"]
    b1: Float[Array, "A h"]
    w2: Float[Array, "A h V"]
    b2: Float[Array, "A V"]


def init_networks(key: PRNGKeyArray, num_networks: int, num_coefficients: int, hidden: int) -> Networks:
    """Return networks whose last layer is zero, so that they start by predicting no shift."""
    limit = jnp.sqrt(6.0 / num_coefficients)
    return Networks(
        w1=jax.random.uniform(key, (num_networks, num_coefficients, hidden), minval=-limit, maxval=limit),
        b1=jnp.zeros((num_networks, hidden)),
        w2=jnp.zeros((num_networks, hidden, num_coefficients)),
        b2=jnp.zeros((num_networks, num_coefficients)),
    )


def predict_shift(networks: Networks, coefficients: Float[Array, "m V"]) -> Float[Array, "A m V"]:
    """Return g_a(c) for every network a and every row c.

    Example:
        >>> from ssdd_jax.core.approximation import init_networks
        >>> predict_shift(init_networks(jax.random.key(0), 3, 8, 4), jnp.ones((5, 8))).shape
        (3, 5, 8)
    """

    def one(net: Networks) -> Float[Array, "m V"]:
        hidden = jax.nn.relu(jnp.matmul(coefficients, net.w1, precision=HIGHEST) + net.b1[None])
        return jnp.matmul(hidden, net.w2, precision=HIGHEST) + net.b2[None]

    return jax.vmap(one)(networks)


def fit_networks(
    key: PRNGKeyArray,
    coefficients: Float[Array, "m V"],
    view_coefficients: Float[Array, "A m V"],
    *,
    hidden: int,
    bases: Float[Array, "V d"] | None = None,
    num_steps: int = 2000,
    learning_rate: float = 1e-2,
) -> tuple[Networks, Float[Array, " A"]]:
    """Fit one network per view to the shifts C_a - C_0, by full-batch Adam with a cosine schedule.

    Inputs and shifts are standardised for the fit, and the standardisation is folded into the first and the last layer,
    so that it costs no storage. A coefficient that is the same in all rows cannot explain a shift and does not enter.
    The error is measured in representation space, ||(g_a(C_0) - (C_a - C_0)) B||^2.

    Args:
        key: draws the initial first layer.
        coefficients: those of view 0, "m V".
        view_coefficients: those of the augmented views, "A m V".
        hidden: width h >= 0; 0 fits the mean shift alone.
        bases: representation bases, "V d"; without them the error is measured between coefficients.
        num_steps: number of Adam steps.
        learning_rate: Adam's peak learning rate.

    Returns:
        The networks, and their R^2 "A": one minus the ratio of the squared error to that of predicting no shift.
        It is 0 for the no-shift predictor and 1 for a perfect fit, also where there is no shift to predict.

    Raises:
        ValueError: shapes do not match or `hidden` is negative.
    """
    if view_coefficients.ndim != 3 or view_coefficients.shape[1:] != coefficients.shape:
        raise ValueError(
            f"fit_networks: view coefficients have shape {view_coefficients.shape}, expected (A, m, V) with (m, V) = {coefficients.shape}"
        )
    if hidden < 0:
        raise ValueError(f"fit_networks: hidden is {hidden}, expected at least 0")
    coefficients, view_coefficients = jax.lax.stop_gradient((coefficients, view_coefficients))
    shifts = view_coefficients - coefficients[None]
    num_networks, _, num_coefficients = shifts.shape
    metric = jnp.eye(num_coefficients) if bases is None else jax.lax.stop_gradient(bases)
    centre, spread = coefficients.mean(0), coefficients.std(0)
    # What differs by rounding alone is constant: divided by its deviation it would be noise, and its weights huge.
    varies = spread > ROUNDING * jnp.sqrt(jnp.mean(coefficients**2, 0))
    spread = jnp.where(varies, spread, 1.0)
    shift_centre, shift_spread = shifts.mean(1), shifts.std(1)
    inputs = jnp.where(varies[None], (coefficients - centre[None]) / spread[None], 0.0)
    no_shift_error = jnp.sum(jnp.matmul(shifts, metric, precision=HIGHEST) ** 2, (1, 2)) + 1e-12

    def unfold(net: Networks) -> Networks:
        w1 = jnp.where(varies[None, :, None], net.w1 / spread[None, :, None], 0.0)
        b1 = net.b1 - jnp.einsum("v,avh->ah", centre, w1, precision=HIGHEST)
        return Networks(w1=w1, b1=b1, w2=net.w2 * shift_spread[:, None], b2=net.b2 * shift_spread + shift_centre)

    def error_of(predicted: Float[Array, "A m V"]) -> Float[Array, " A"]:
        return jnp.sum(jnp.matmul(predicted - shifts, metric, precision=HIGHEST) ** 2, (1, 2)) / no_shift_error

    def relative_error(net: Networks) -> Float[Array, " A"]:
        return error_of(predict_shift(net, inputs) * shift_spread[:, None] + shift_centre[:, None])

    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def step(carry, _):
        net, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(lambda n: relative_error(n).sum())(net), opt_state)
        return (optax.apply_updates(net, updates), opt_state), None

    net = init_networks(key, num_networks, num_coefficients, hidden)
    (net, _), _ = jax.lax.scan(step, (net, optimizer.init(net)), None, length=num_steps)
    # The error of what is returned, not of what it was folded from.
    fitted = unfold(net)
    return fitted, 1.0 - error_of(predict_shift(fitted, coefficients))
