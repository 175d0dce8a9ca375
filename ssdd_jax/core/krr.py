"""Kernel ridge regression in closed form: the inner loop.

Every product and solve runs in full float32, whatever precision the networks run in: the default ridge is 1e-6 of the
trace, and the reduced precision that accelerators use for float32 products would drown it.
"""

from functools import partial
from typing import Literal, get_args, overload

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Float, Int, Num

from ssdd_jax.core.bases import HIGHEST, at_least_float32

RidgeScale = Literal["absolute", "trace", "mean_trace"]
Ridge = float | Float[Array, ""]
"""A number, or a traced one."""

MAX_RIDGE_INCREASES = 8
"""Limit on the tenfold increases of the ridge for a kernel that is singular in float32: from 1e-7 of the trace to beyond it."""


def append_bias(features: Float[Array, "n q"]) -> Float[Array, "n q1"]:
    """Append a constant feature 1, so that the regression has an intercept (KRR-ST)."""
    return jnp.concatenate([features, jnp.ones_like(features[:, :1])], axis=1)


def gram(left: Float[Array, "n q"], right: Float[Array, "k q"]) -> Float[Array, "n k"]:
    """Return left right^T in full float32."""
    return jnp.matmul(left, right.T, precision=HIGHEST)


def ridge_strength(trace: Float[Array, ""], num_rows: int, ridge: Ridge, ridge_scale: RidgeScale) -> Float[Array, ""]:
    """Return lambda.

    'absolute': ridge. 'trace': ridge * tr K (KRR-ST). 'mean_trace': ridge * tr K / num_rows (FRePo).
    The trace is held constant under differentiation, as in the released code of KRR-ST. FRePo and KIP differentiate it; at their ridge,
    1e-6 of the mean trace, gradients differ by about that much.
    """
    scale = {"absolute": 1.0, "trace": jax.lax.stop_gradient(trace), "mean_trace": jax.lax.stop_gradient(trace) / num_rows}
    return jnp.asarray(ridge * scale[ridge_scale], trace.dtype)


def solve_regularized(
    kernel: Float[Array, "n n"], rhs: Float[Array, "n d"], strength: Float[Array, ""]
) -> tuple[Float[Array, "n d"], Int[Array, ""]]:
    """Return (K + lambda I)^-1 R, and how many times lambda had to be increased to get a Cholesky factor.

    A kernel that is singular in float32 has no such factor, or one with a pivot that is nothing but rounding (its square at most the
    largest diagonal element times the machine epsilon), and would silently give NaN or noise. Lambda is then increased tenfold, and to at
    least the trace times the machine epsilon, until there is a factor; a lambda that starts above that is never increased. Lambda is
    `strength`, and an increase of it is constant under differentiation; the gradient solves with the same factor and does not
    differentiate it.
    """
    identity = jnp.eye(kernel.shape[0], dtype=kernel.dtype)
    fixed = jax.lax.stop_gradient(kernel)
    trace, limits = jnp.trace(fixed), jnp.finfo(kernel.dtype)
    factorize = lambda strength: cho_factor(fixed + strength * identity, lower=True)[0]
    # Also true for a factor of NaN.
    singular = lambda factor: ~(jnp.min(jnp.diagonal(factor)) ** 2 > limits.eps * jnp.max(jnp.diagonal(fixed)))

    def increased(state):
        strength, _, increases = state
        strength = jnp.maximum(10 * strength, jnp.maximum(limits.eps * trace, limits.tiny))
        return strength, factorize(strength), increases + 1

    # Where features are not finite, no ridge gives a factor.
    retry = lambda state: singular(state[1]) & (state[2] < MAX_RIDGE_INCREASES) & jnp.isfinite(trace)
    given = jax.lax.stop_gradient(strength)
    start = (given, factorize(given), jnp.zeros((), jnp.int32))
    found, factor, increases = jax.lax.while_loop(retry, increased, start)
    strength = strength + (found - given)
    product = lambda vectors: jnp.matmul(kernel, vectors, precision=HIGHEST) + strength * vectors
    solved = jax.lax.custom_linear_solve(product, rhs, lambda _, vectors: cho_solve((factor, True), vectors), symmetric=True)
    return solved, increases


def kernel_predict(
    k_support: Float[Array, "n n"],
    y_support: Float[Array, "n d"],
    k_target: Float[Array, "b n"],
    *,
    ridge: Ridge,
    ridge_scale: RidgeScale,
) -> tuple[Float[Array, "b d"], Int[Array, ""]]:
    """Return P = K_ts (K_ss + lambda I)^-1 Y_s for given kernel matrices, and how often lambda was increased."""
    strength = ridge_strength(jnp.trace(k_support), len(k_support), ridge, ridge_scale)
    solved, increases = solve_regularized(k_support, y_support, strength)
    return jnp.matmul(k_target, solved, precision=HIGHEST), increases


def ridge_predict(
    f_support: Float[Array, "n q"],
    y_support: Float[Array, "n d"],
    f_target: Float[Array, "b q"],
    *,
    ridge: Ridge,
    ridge_scale: RidgeScale,
) -> tuple[Float[Array, "b d"], Int[Array, ""]]:
    """Return P = F_t F_s^T (F_s F_s^T + lambda I)^-1 Y_s = F_t (F_s^T F_s + lambda I)^-1 F_s^T Y_s, and how often lambda was increased.

    The smaller of the two systems is solved, n x n (dual) or q x q (primal), and the factors of the first form are multiplied in the
    order that takes fewer operations. Both are chosen by the static shapes.
    """
    (num_rows, width), (num_targets, num_outputs) = f_support.shape, (f_target.shape[0], y_support.shape[1])
    primal = num_rows > width
    kernel = gram(f_support.T, f_support.T) if primal else gram(f_support, f_support)
    # tr(F F^T) = tr(F^T F), so lambda does not depend on the form.
    strength = ridge_strength(jnp.trace(kernel), num_rows, ridge, ridge_scale)
    product = partial(jnp.matmul, precision=HIGHEST)
    if primal:
        weights, increases = solve_regularized(kernel, product(f_support.T, y_support), strength)
        return product(f_target, weights), increases
    by_kernel = num_targets * num_rows * (width + num_outputs)
    by_weights = width * num_outputs * (num_rows + num_targets)
    if by_kernel < by_weights:
        return kernel_predict(kernel, y_support, gram(f_target, f_support), ridge=ridge, ridge_scale=ridge_scale)
    solved, increases = solve_regularized(kernel, y_support, strength)
    return product(f_target, product(f_support.T, solved)), increases


def centred_labels(labels: Int[Array, " n"], num_classes: int) -> Float[Array, "n k"]:
    """Return the targets of a regression onto classes, onehot - 1 / num_classes (KIP, FRePo): every row sums to 0."""
    return jax.nn.one_hot(labels, num_classes) - 1 / num_classes


def solve_labels(
    weights: Float[Array, "b n"], y_target: Float[Array, "b k"], y_start: Float[Array, "n k"], *, ridge: Ridge = 1e-6
) -> tuple[Float[Array, "n k"], Int[Array, ""]]:
    """Return the support targets whose predictions M Y come nearest to given ones (label solve of KIP), and how often mu was increased.

    With M = K_ts (K_ss + lambda I)^-1, the predictions for unit targets, argmin_Y |M Y - Y_t|^2 + mu |Y - Y_0|^2 is
    Y_0 + (M^T M + mu I)^-1 M^T (Y_t - M Y_0), where mu = ridge * tr(M^T M) / n. In the published problem mu is 0, and a nearly singular
    kernel then makes labels of any size in float32. The ridge draws towards Y_0 instead of 0, so the result never predicts worse than Y_0.

    Args:
        weights: M "b n": what the regression predicts for b target images if every support row's target is a unit vector.
        y_target: Y_t "b k", what is to be predicted.
        y_start: Y_0 "n k", such as centred one-hot labels.
        ridge: mu relative to the mean of the diagonal of M^T M, at least 0.
    """
    product = partial(jnp.matmul, precision=HIGHEST)
    normal = gram(weights.T, weights.T)
    strength = ridge_strength(jnp.trace(normal), len(normal), ridge, "mean_trace")
    change, increases = solve_regularized(normal, product(weights.T, y_target - product(weights, y_start)), strength)
    return y_start + change, increases


# Jitted on its own, so that whoever looks for NaN sees what is returned and not a factor that is tried again.
_predict = jax.jit(ridge_predict, static_argnames="ridge_scale")


@overload
def krr_predict(
    f_support: Num[Array, "n q"],
    y_support: Num[Array, "n d"],
    f_target: Num[Array, "b q"],
    *,
    ridge: Ridge = 1e-6,
    ridge_scale: RidgeScale = "trace",
    return_increases: Literal[False] = False,
) -> Float[Array, "b d"]: ...


@overload
def krr_predict(
    f_support: Num[Array, "n q"],
    y_support: Num[Array, "n d"],
    f_target: Num[Array, "b q"],
    *,
    ridge: Ridge = 1e-6,
    ridge_scale: RidgeScale = "trace",
    return_increases: Literal[True],
) -> tuple[Float[Array, "b d"], Int[Array, ""]]: ...


def krr_predict(
    f_support: Num[Array, "n q"],
    y_support: Num[Array, "n d"],
    f_target: Num[Array, "b q"],
    *,
    ridge: Ridge = 1e-6,
    ridge_scale: RidgeScale = "trace",
    return_increases: bool = False,
) -> Float[Array, "b d"] | tuple[Float[Array, "b d"], Int[Array, ""]]:
    """Predict the targets' representations by kernel ridge regression: K_ts (K_ss + lambda I)^-1 Y_s, with K = F F^T.

    Where K_ss + lambda I is singular in float32 (no ridge, or equal support rows), lambda is increased until it is not;
    `return_increases` says how often.
    Integers and floats of 16 bits are computed in float32, as everything of less than 64 bits is.

    Args:
        f_support: "n q" features of the support set; append a bias column with `append_bias` if you want an intercept.
        y_support: "n d" representations of the support set.
        f_target: "b q" features to predict for.
        ridge: regularisation strength, >= 0; it may be traced, and is differentiated then.
        ridge_scale: what the strength is relative to: 'absolute', 'trace' (ridge * tr K_ss, held constant under
            differentiation; KRR-ST) or 'mean_trace' (ridge * tr K_ss / n; FRePo).
        return_increases: whether to return (predictions, how many times lambda was increased, see `solve_regularized`).

    Raises:
        ValueError: shapes do not match or there is no support row, `ridge` is negative, or `ridge_scale` is unknown.

    Example:
        >>> f = jax.random.normal(jax.random.key(0), (10, 4))
        >>> krr_predict(f, f[:, :2], f[:3]).shape
        (3, 2)
    """
    if f_support.ndim != 2 or f_target.ndim != 2 or y_support.ndim != 2:
        raise ValueError(f"krr_predict: shapes {f_support.shape}, {y_support.shape}, {f_target.shape}, expected (n, q), (n, d), (b, q)")
    if f_support.shape[1] != f_target.shape[1]:
        raise ValueError(
            f"krr_predict: support features are {f_support.shape[1]} wide, target features {f_target.shape[1]}; use one network"
        )
    if f_support.shape[0] != y_support.shape[0]:
        raise ValueError(f"krr_predict: {f_support.shape[0]} support features and {y_support.shape[0]} support targets, expected one each")
    if ridge_scale not in get_args(RidgeScale):
        raise ValueError(f"krr_predict: ridge_scale is {ridge_scale!r}, expected one of {', '.join(get_args(RidgeScale))}")
    if not len(f_support):
        raise ValueError("krr_predict: there are no support rows, expected one or more")
    if not isinstance(ridge, Tracer) and ridge < 0:
        raise ValueError(f"krr_predict: ridge is {ridge}, expected at least 0")
    arrays = [at_least_float32(array) for array in (f_support, y_support, f_target)]
    predicted, increases = _predict(*arrays, ridge=ridge, ridge_scale=ridge_scale)
    return (predicted, increases) if return_increases else predicted
