"""LARS as in solo-learn (You, Gitman, Ginsburg, 2017, with the local rate clipped)."""

import jax
import jax.numpy as jnp
import optax


def lars(
    learning_rate: optax.Schedule, *, weight_decay: float, eta: float = 0.02, momentum: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return LARS: a matrix w with gradient g moves by r (g + weight_decay w), r = min(eta |w| / (|g| + weight_decay |w| + eps) / rate, 1).

    The result goes through a momentum buffer and is then multiplied by the rate. Biases and norms, which have one axis,
    are neither scaled nor decayed. `optax.lars` neither clips r nor keeps the rate out of the buffer.
    """

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(grads, state, params=None):
        if params is None:
            raise ValueError("lars scales by the size of the parameters; pass them to update")
        rate = learning_rate(state.count)

        def scale(grad, param):
            if param.ndim <= 1:
                return grad
            param_norm, grad_norm = jnp.linalg.norm(param.ravel()), jnp.linalg.norm(grad.ravel())
            ratio = jnp.minimum(eta * param_norm / (grad_norm + weight_decay * param_norm + eps) / rate, 1.0)
            return jnp.where((param_norm > 0) & (grad_norm > 0), ratio * (grad + weight_decay * param), grad)

        return jax.tree.map(scale, grads, params), optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.chain(optax.GradientTransformation(init, update), optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))
