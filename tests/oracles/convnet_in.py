"""The ConvNets of label sets from their formulas, in float64 and with PyTorch's axes, "n C H W"."""

import numpy as np


def convolve(x, kernel, bias, padding):
    n, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = height + 2 * padding - 2, width + 2 * padding - 2
    y = np.empty((n, len(kernel), height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = np.einsum("ncab,ocab->no", padded[:, :, i : i + 3, j : j + 3], kernel) + bias
    return y


def means(y):
    """Return the means of 2 x 2 blocks."""
    height, width = y.shape[2:]
    y = y[:, :, : height // 2 * 2, : width // 2 * 2]
    return (y[:, :, ::2, ::2] + y[:, :, 1::2, ::2] + y[:, :, ::2, 1::2] + y[:, :, 1::2, 1::2]) / 4


def block(x, kernel, bias, scale, shift, padding):
    """Return convolution, norm of each image's channels, ReLU and 2 x 2 means."""
    y = convolve(x, kernel, bias, padding)
    for image in y:
        for channel, values in enumerate(image):
            deviation = np.sqrt(np.mean((values - values.mean()) ** 2) + 1e-5)
            image[channel] = np.maximum((values - values.mean()) / deviation * scale[channel] + shift[channel], 0)
    return means(y)


def convnet_in(state_dict, images):
    """Return the last map "n C h w" and the outputs; the arrays of a state dict are in the order of PyTorch's parameters."""
    *blocks, weight, bias = (np.asarray(array, np.float64) for array in state_dict.values())
    x = np.asarray(images, np.float64)
    for first in range(0, len(blocks), 4):
        x = block(x, *blocks[first : first + 4], padding=3 if x.shape[1] == 1 else 1)
    return x, x.reshape(len(x), -1) @ weight.T + bias


def convnet_frepo(state_dict, images, norm):
    """Return the last map and the outputs in evaluation mode; of each block but the first a norm's arrays come first, if there is one."""
    *blocks, weight, bias = (np.asarray(array, np.float64) for array in state_dict.values())
    x, padding = np.asarray(images, np.float64), 3 if images.shape[1] == 1 else 1
    while blocks:
        if norm and padding is None:
            scale, shift, mean, var = (array[:, None, None] for array in blocks[:4])
            x, blocks = (x - mean) / np.sqrt(var + 1e-5) * scale + shift, blocks[4:]
        x, blocks, padding = means(np.maximum(convolve(x, *blocks[:2], padding or 1), 0)), blocks[2:], None
    return x, x.reshape(len(x), -1) @ weight.T + bias
