"""The differentiable augmentation of one image "H W C" pixel by pixel, in float64."""

import math

import numpy as np


def color(image, draws):
    brightness, saturation, contrast = draws
    return stretch(np.array(image, np.float64) + (brightness - 0.5), 2 * saturation, contrast + 0.5)


def jitter(image, factors):
    return stretch(np.array(image, np.float64) * factors[0], factors[1], factors[2])


def stretch(out, saturation, contrast):
    for pixel in out.reshape(-1, out.shape[-1]):
        gray = sum(pixel) / len(pixel)
        pixel[:] = [(value - gray) * saturation + gray for value in pixel]
    mean = out.sum() / out.size
    return (out - mean) * contrast + mean


def crop(image, shift):
    out = np.zeros_like(image, np.float64)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            y, x = i + shift[0], j + shift[1]
            if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]:
                out[i, j] = image[y, x]
    return out


def hole(image, centre):
    return cutout(image, centre, 0.25)


def cutout(image, centre, share=0.5):
    sizes = [math.floor(share * side + 0.5) for side in image.shape[:2]]
    out = np.array(image, np.float64)
    for a in range(sizes[0]):
        for b in range(sizes[1]):
            y, x = centre[0] + a - sizes[0] // 2, centre[1] + b - sizes[1] // 2
            out[min(max(y, 0), image.shape[0] - 1), min(max(x, 0), image.shape[1] - 1)] = 0
    return out


def flip(image, coin):
    return np.array([row[::-1] if coin < 0.5 else row for row in image], np.float64)


def warp(image, theta, align_corners, shift=(0, 0)):
    height, width, _ = image.shape
    to_grid = lambda i, side: 2 * i / (side - 1) - 1 if align_corners else (2 * i + 1) / side - 1
    to_pixel = lambda g, side: (g + 1) * (side - 1) / 2 if align_corners else ((g + 1) * side - 1) / 2
    out = np.zeros_like(image, np.float64)
    for i in range(height):
        for j in range(width):
            gx, gy = to_grid(j, width), to_grid(i, height)
            x = to_pixel(theta[0][0] * gx + theta[0][1] * gy, width) + shift[1]
            y = to_pixel(theta[1][0] * gx + theta[1][1] * gy, height) + shift[0]
            for row in range(height):
                for column in range(width):
                    out[i, j] += max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column)) * image[row, column]
    return out


def scale(image, factors, align_corners):
    return warp(image, [[factors[0], 0], [0, factors[1]]], align_corners)


def zoom(image, factor, align_corners):
    return warp(image, [[factor, 0], [0, factor]], align_corners)


def translate(image, shares, align_corners):
    return warp(image, [[1, 0], [0, 1]], align_corners, [share * side for share, side in zip(shares, image.shape[:2], strict=True)])


def rotate(image, degrees, align_corners):
    a = math.pi * degrees / 180
    return warp(image, [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], align_corners)


def apply(name, image, drawn, align_corners):
    warps = {"scale": scale, "rotate": rotate, "zoom": zoom, "translate": translate}
    if name in warps:
        return warps[name](image, drawn, align_corners)
    return {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "jitter": jitter, "hole": hole}[name](image, drawn)
