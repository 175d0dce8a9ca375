"""Kernel ridge regression from its formulas, in float64."""

import numpy as np


def with_bias(features):
    return np.concatenate([features, np.ones((len(features), 1))], 1)


def ridge_strength(features, ridge, scale):
    trace = np.sum(features**2)
    return {"absolute": ridge, "trace": ridge * trace, "mean_trace": ridge * trace / len(features)}[scale]


def dual(f_support, y_support, f_target, strength):
    kernel = f_support @ f_support.T
    return f_target @ f_support.T @ np.linalg.solve(kernel + strength * np.eye(len(kernel)), y_support)


def primal(f_support, y_support, f_target, strength):
    covariance = f_support.T @ f_support
    return f_target @ np.linalg.solve(covariance + strength * np.eye(len(covariance)), f_support.T @ y_support)


def loss_and_gradients(f_support, y_support, f_target, y_target, ridge, scale="trace", trace_is_constant=True):
    """Return mean((P - Y_t)^2) and its gradients with respect to F_s and Y_s."""
    strength = ridge_strength(f_support, ridge, scale)
    inverse = np.linalg.inv(f_support @ f_support.T + strength * np.eye(len(f_support)))
    dual_weights = inverse @ y_support
    error = f_target @ f_support.T @ dual_weights - y_target
    weight_gradient = f_target.T @ (2 * error / error.size)
    y_gradient = inverse @ f_support @ weight_gradient
    through_kernel = y_gradient @ dual_weights.T
    f_gradient = dual_weights @ weight_gradient.T - (through_kernel + through_kernel.T) @ f_support
    if not trace_is_constant:
        f_gradient -= np.sum(y_gradient * dual_weights) * 2 * strength / np.sum(f_support**2) * f_support
    return np.mean(error**2), f_gradient, y_gradient


def finite_difference(function, array, step=1e-5):
    """Return the gradient of a scalar function of one array by central differences."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        moved = np.zeros(array.shape)
        moved[index] = step
        gradient[index] = (function(array + moved) - function(array - moved)) / (2 * step)
    return gradient
