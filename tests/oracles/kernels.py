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


def convnet(x, y, depth):
    """Return (NNGP, NTK) of two images "H W C" for blocks of a 3 x 3 convolution, ReLU and 2 x 2 average pooling."""

    def window_mean(k):
        h, w, h2, w2 = k.shape
        out = np.zeros_like(k)
        for i, j, a, b in np.ndindex(*k.shape):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < h and 0 <= j + dj < w and 0 <= a + di < h2 and 0 <= b + dj < w2:
                        out[i, j, a, b] += k[i + di, j + dj, a + di, b + dj] / 9
        return out

    def pool(k):
        h, w = k.shape[0] // 2, k.shape[1] // 2
        out = np.empty((h, w, h, w))
        for i, j, a, b in np.ndindex(*out.shape):
            out[i, j, a, b] = k[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * a : 2 * a + 2, 2 * b : 2 * b + 2].mean()
        return out

    variances = lambda k: np.einsum("ijij->ij", k)
    pairs = {"xy": (x, y), "xx": (x, x), "yy": (y, y)}
    k = {name: np.einsum("ijc,abc->ijab", *pair) / x.shape[-1] for name, pair in pairs.items()}
    t = np.zeros_like(k["xy"])
    for _ in range(depth):
        k = {name: WEIGHTS * window_mean(part) + BIASES for name, part in k.items()}
        t = k["xy"] + WEIGHTS * window_mean(t)
        v = {name: variances(k[name * 2]) for name in "xy"}
        for name in k:
            sides = v[name[0]][:, :, None, None], v[name[1]][None, None]
            value, slope, *_ = relu(k[name], t if name == "xy" else k[name], *np.broadcast_arrays(*sides))
            k[name] = pool(value)
            if name == "xy":
                t = pool(slope)
    flat = lambda part: np.einsum("ijij->", part) / (part.shape[0] * part.shape[1])
    last = WEIGHTS * flat(k["xy"]) + BIASES
    return last, last + WEIGHTS * flat(t)
