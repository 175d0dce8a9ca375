"""One outer step from its formulas, in float64: factors -> images -> ConvNet in evaluation mode -> regression -> loss, and back.

A network is a list of blocks {kernel "3 3 c C", bias, scale, shift, mean, var}; factors are {mean, bases, coefficients}.
"""

import numpy as np
from oracles.krr import loss_and_gradients, with_bias

VIEWS = {
    "identity": (lambda x: x, lambda x: x),
    "rot90": (lambda x: np.rot90(x, 1, (1, 2)), lambda x: np.rot90(x, -1, (1, 2))),
    "rot180": (lambda x: np.rot90(x, 2, (1, 2)), lambda x: np.rot90(x, -2, (1, 2))),
    "rot270": (lambda x: np.rot90(x, 3, (1, 2)), lambda x: np.rot90(x, -3, (1, 2))),
    "hflip": (lambda x: x[:, :, ::-1], lambda x: x[:, :, ::-1]),
}


def bilinear(small, large):
    """Return the matrix "large small" of linear interpolation with half-pixel centres."""
    matrix = np.zeros((large, small))
    for row in range(large):
        position = (row + 0.5) * small / large - 0.5
        low = int(np.floor(position))
        matrix[row, np.clip(low, 0, small - 1)] += 1 - (position - low)
        matrix[row, np.clip(low + 1, 0, small - 1)] += position - low
    return matrix


def block_forward(block, x):
    n, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = block["bias"] + sum(padded[:, i : i + h, j : j + w] @ block["kernel"][i, j] for i in range(3) for j in range(3))
    y = (y - block["mean"]) / np.sqrt(block["var"] + 1e-5) * block["scale"] + block["shift"]
    positive = y > 0
    pooled = (y * positive)[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, -1).mean((2, 4))
    return pooled, positive


def block_backward(block, positive, gradient):
    n, h, w, _ = positive.shape
    y = np.zeros(positive.shape)
    y[:, : h // 2 * 2, : w // 2 * 2] = np.repeat(np.repeat(gradient / 4, 2, 1), 2, 2)
    y = y * positive * block["scale"] / np.sqrt(block["var"] + 1e-5)
    padded = np.zeros((n, h + 2, w + 2, block["kernel"].shape[2]))
    for i in range(3):
        for j in range(3):
            padded[:, i : i + h, j : j + w] += y @ block["kernel"][i, j].T
    return padded[:, 1:-1, 1:-1]


def features(blocks, images):
    x, masks = images, []
    for block in blocks:
        x, positive = block_forward(block, x)
        masks.append(positive)
    return x, masks


def outer_step(images, reprs, networks, blocks, real_images, real_reprs, *, base_shape, image_shape, views, kinds, ridge):
    """Return the loss and its gradients {images, reprs, networks}, the trace in the ridge held constant."""
    num_images = len(images["coefficients"])
    rows, columns = bilinear(base_shape[0], image_shape[0]), bilinear(base_shape[1], image_shape[1])
    small = (images["coefficients"] @ images["bases"] + images["mean"]).reshape(num_images, *base_shape)
    large = np.einsum("yi,nijc,xj->nyxc", rows, small, columns)

    first = reprs["coefficients"][0]
    stored, net = iter(range(len(reprs["coefficients"]))), iter(range(kinds.count("network")))
    source = [next(stored) if kind == "stored" else next(net) if kind == "network" else 0 for kind in kinds]
    hidden = [first @ networks["w1"][a] + networks["b1"][a] for a in range(kinds.count("network"))]
    coefficients = []
    for kind, index in zip(kinds, source, strict=True):
        if kind == "network":
            coefficients.append(first + np.maximum(hidden[index], 0) @ networks["w2"][index] + networks["b2"][index])
        else:
            coefficients.append(reprs["coefficients"][index])
    targets = np.concatenate([c @ reprs["bases"] + reprs["mean"] for c in coefficients])

    support, masks = features(blocks, np.concatenate([VIEWS[view][0](large) for view in views]))
    f_support = with_bias(support.reshape(len(support), -1))
    f_target = with_bias(features(blocks, real_images)[0].reshape(len(real_images), -1))
    loss, f_gradient, y_gradient = loss_and_gradients(f_support, targets, f_target, real_reprs, ridge)

    pixels = f_gradient[:, :-1].reshape(support.shape)
    for block, positive in zip(reversed(blocks), reversed(masks), strict=True):
        pixels = block_backward(block, positive, pixels)
    pixels = sum(VIEWS[view][1](part) for view, part in zip(views, np.split(pixels, len(views)), strict=True))
    pixels = np.einsum("yi,nyxc,xj->nijc", rows, pixels, columns).reshape(num_images, -1)
    of_images = {
        "mean": pixels.sum(0),
        "bases": images["coefficients"].T @ pixels,
        "coefficients": pixels @ images["bases"].T,
    }

    of_coefficients = np.zeros(reprs["coefficients"].shape)
    of_networks = {name: np.zeros(array.shape) for name, array in networks.items()} if networks else None
    parts = np.split(y_gradient, len(views))
    for kind, index, part in zip(kinds, source, parts, strict=True):
        gradient = part @ reprs["bases"].T
        if kind != "network":
            of_coefficients[index] += gradient
            continue
        through = gradient @ networks["w2"][index].T * (hidden[index] > 0)
        of_networks["w2"][index] += np.maximum(hidden[index], 0).T @ gradient
        of_networks["b2"][index] += gradient.sum(0)
        of_networks["w1"][index] += first.T @ through
        of_networks["b1"][index] += through.sum(0)
        of_coefficients[0] += gradient + through @ networks["w1"][index].T
    of_reprs = {
        "mean": y_gradient.sum(0),
        "bases": sum(c.T @ part for c, part in zip(coefficients, parts, strict=True)),
        "coefficients": of_coefficients,
    }
    return loss, {"images": of_images, "reprs": of_reprs, "networks": of_networks}


def adamw_step(parameter, gradient, first, second, count, *, learning_rate, weight_decay, b1=0.9, b2=0.999, eps=1e-8):
    """Return the parameter and both moments after update number `count`, counted from 1."""
    first, second = b1 * first + (1 - b1) * gradient, b2 * second + (1 - b2) * gradient**2
    direction = first / (1 - b1**count) / (np.sqrt(second / (1 - b2**count)) + eps)
    return parameter - learning_rate * (direction + weight_decay * parameter), first, second


def sgd_step(parameter, gradient, velocity, *, learning_rate, momentum, weight_decay):
    """Return the parameter and the velocity after PyTorch's SGD, whose weight decay is part of the gradient."""
    velocity = momentum * velocity + gradient + weight_decay * parameter
    return parameter - learning_rate * velocity, velocity
