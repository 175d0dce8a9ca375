"""Operations of a function: what has to be computed, however XLA computes it.

XLA's own analysis counts the body of a loop once, and convolutions as a backend rewrites them. This one walks the jaxpr, where loops have
a length: products, convolutions (a multiply-add is two operations, including, as is usual, those with the zeros of the padding) and
factorizations. Elementwise work is left out.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Operations:
    """Operations by primitive, and what the count assumes."""

    by_primitive: dict[str, int]
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        return sum(self.by_primitive.values())


def count_operations(fn: Callable, *args: Any, padding: bool = True) -> Operations:
    """Count the operations of `fn(*args)`, or of `jax.ShapeDtypeStruct`s; `padding=False` skips products with padding, as in XLA."""
    notes: set[str] = set()
    counted = _count(jax.make_jaxpr(fn)(*args).jaxpr, padding, notes)
    return Operations({name: round(value) for name, value in sorted(counted.items())}, tuple(sorted(notes)))


def _count(jaxpr: Any, padding: bool, notes: set[str]) -> Counter:
    counted: Counter = Counter()
    inner = lambda closed: _count(getattr(closed, "jaxpr", closed), padding, notes)
    for eqn in _needed(jaxpr):
        name, params = eqn.primitive.name, eqn.params
        if name in RULES:
            counted[name] += RULES[name](eqn, padding)
        elif name == "scan":
            counted.update({key: params["length"] * value for key, value in inner(params["jaxpr"]).items()})
        elif name == "cond":
            # `jax.lax.platform_dependent` becomes a conditional too.
            counted.update(max((inner(branch) for branch in params["branches"]), key=lambda c: sum(c.values())))
        elif name == "while":
            once = inner(params["cond_jaxpr"]) + inner(params["body_jaxpr"])
            if once:
                notes.add("the body of a while loop is counted once")
            counted.update(once)
        elif name == "custom_linear_solve":
            # Of its four functions, a solve runs only this one; its derivative is another solve.
            counted.update(inner(params["jaxprs"].solve))
        else:
            for sub in _jaxprs(params.values()):
                counted.update(inner(sub))
    return counted


def _needed(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations that a result depends on: the compiler drops the others, such as a head whose output nobody reads."""
    read = set(map(id, jaxpr.outvars))
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(var) in read for var in eqn.outvars):
            read.update(map(id, eqn.invars))
            yield eqn


def _jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)


def _dot_general(eqn: Any, padding: bool) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval, eqn.outvars[0].aval
    return 2 * prod(out.shape) * prod(left.shape[axis] for axis in contracted)


def _conv_general_dilated(eqn: Any, padding: bool) -> int:
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    left, right, out = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    pairs = 1
    for axis, (low, _) in enumerate(params["padding"]):
        size, taps, places = (shape[spec[2 + axis]] for shape, spec in zip((left, right, out), numbers, strict=True))
        position = np.arange(places)[:, None] * params["window_strides"][axis] + np.arange(taps)[None] * params["rhs_dilation"][axis] - low
        # The zeros that dilation puts between rows cost nothing; those that padding puts around them do, unless `padding` is False.
        used = position % params["lhs_dilation"][axis] == 0
        if not padding:
            used &= (position >= 0) & (position <= (size - 1) * params["lhs_dilation"][axis])
        pairs *= int(used.sum())
    (batch, features, *_), (_, inputs, *_) = numbers.out_spec, numbers.rhs_spec
    return 2 * out[batch] * out[features] * right[inputs] * pairs


def _square(power: int, factor: float) -> Callable[[Any, bool], float]:
    def rule(eqn: Any, padding: bool) -> float:
        shape = eqn.invars[0].aval.shape
        return factor * prod(shape[:-2]) * shape[-1] ** power

    return rule


RULES: dict[str, Callable[[Any, bool], float]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "cholesky": _square(3, 1 / 3),
    "triangular_solve": lambda eqn, padding: eqn.invars[0].aval.shape[-1] * prod(eqn.invars[1].aval.shape),
    # With eigenvectors, by the symmetric QR algorithm.
    "eigh": _square(3, 9.0),
}


# Counted by hand: what a step needs if nothing is computed twice.


def convnet_layers(widths: Sequence[int], image_shape: Sequence[int]) -> list[int]:
    """Return the operations of every 3 x 3 convolution of a ConvNet on one image; average pooling halves the sides after each."""
    height, width, channels = image_shape
    layers = []
    for outputs in widths:
        layers.append(2 * 9 * height * width * channels * outputs)
        height, width, channels = height // 2, width // 2, outputs
    return layers


def feature_width(widths: Sequence[int], image_shape: Sequence[int]) -> int:
    """Return q, the width of a ConvNet's flattened features."""
    return (image_shape[0] >> len(widths)) * (image_shape[1] >> len(widths)) * widths[-1]


def training_operations(layers: Sequence[int], head: int) -> int:
    """Return what one image costs in training: forward and both gradients, except that with respect to the first layer's input."""
    return 3 * (sum(layers) + head) - layers[0]


def kernel_operations(n: int, q: int, d: int, b: int) -> int:
    """Return the operations of the regression on n support and b real rows, q features and d targets, with both gradients.

    Gram matrix, Cholesky factor, solve and prediction; in the cheapest of three forms: the n x n system, predicting through K_ts or
    through weights, or the q x q system.
    """
    system = lambda size, rows: 2 * (2 * size * size * rows) + size**3 // 3 + 2 * (2 * size * size * d) + 2 * size * size * d
    by_kernel = 2 * (2 * b * n * q) + 3 * (2 * b * n * d)
    by_weights = 3 * (2 * n * q * d) + 2 * (2 * b * q * d)
    return min(system(n, q) + min(by_kernel, by_weights), system(q, n) + by_weights)
