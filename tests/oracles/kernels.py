"""Kernels of infinitely wide networks from their recursion, in float64, one pair of images at a time."""

import numpy as np

WEIGHTS, BIASES = 2.0, 0.01


def relu(k, t, v, w):
    rho = np.clip(k / np.sqrt(v * w), -1, 1)
    angle = np.arccos(rho)
    return (
        np.sqrt(v * w) * (np.sqrt(1 - rho**2) + (np.pi - angle) * rho) / (2 * np.pi),
        t * (np.pi - angle) / (2 * np.pi),
        v / 2,
        w / 2,
    )


def fc(x, y, depth, weights=WEIGHTS):
    """Return (NNGP, NTK) of two vectors; `weights` is the variance of the hidden layers' weights."""
    k, v, w, t = x @ y / x.size, x @ x / x.size, y @ y / y.size, 0.0
    for _ in range(depth):
        t = weights * k + BIASES + weights * t
        k, t, v, w = relu(weights * k + BIASES, t, weights * v + BIASES, weights * w + BIASES)
    return WEIGHTS * k + BIASES, WEIGHTS * k + BIASES + WEIGHTS * t


def conv(x, y, depth):
    """Return (NNGP, NTK) of two images "H W C" for windows of 3 x 3."""
    height, width, channels = x.shape

    def window_mean(pixels):
        padded = np.pad(pixels, 1)
        return np.array([[padded[i : i + 3, j : j + 3].sum() / 9 for j in range(width)] for i in range(height)])

    k, v, w = (np.sum(a * b, -1) / channels for a, b in ((x, y), (x, x), (y, y)))
    t = np.zeros_like(k)
    for _ in range(depth):
        k, v, w = (WEIGHTS * window_mean(a) + BIASES for a in (k, v, w))
        k, t, v, w = relu(k, k + WEIGHTS * window_mean(t), v, w)
    k, t = k.mean(), t.mean()
    return WEIGHTS * k + BIASES, WEIGHTS * k + BIASES + WEIGHTS * t
