"""The settings of a method that its kernel reads."""

import inspect
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.learner import Learner
from ssdd_jax.errors import InputError
from ssdd_jax.registry import KERNELS

OF_SOME_KERNELS = ("bias", "depth")
"""Settings of a method that not every kernel has."""


def kernel_settings(spec: Any) -> dict[str, Any]:
    """Return those settings of `OF_SOME_KERNELS` that a method has and that are not at their defaults."""
    defaults = {field.name: field.default for field in fields(spec) if field.name in OF_SOME_KERNELS}
    return {name: getattr(spec, name) for name, default in defaults.items() if getattr(spec, name) != default}


def check_kernel(where: str, spec: Any) -> None:
    """Refuse settings that the method's kernel does not have.

    Args:
        where: config.methods.NAME, for messages.
        spec: the method's settings, with a `kernel`.

    Raises:
        InputError: the message names the setting and the kernel.
    """
    known = inspect.signature(KERNELS[spec.kernel]).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name, value in kernel_settings(spec).items():
        if name not in known:
            default = next(field.default for field in fields(spec) if field.name == name)
            raise InputError(f"{where}.{name} is {value}, but the kernel {spec.kernel!r} has no such setting; expected {default}")


def check_rows(where: str, spec: Any, num_rows: int, image_shape: tuple[int, int, int]) -> None:
    """Refuse a kernel without members that cannot be computed for the rows of a set: too many, too small or too large images.

    Args:
        where: config.methods.NAME, for messages.
        spec: the method's settings, with a `kernel`.
        num_rows: images of the set that take part in a step, those of all views.
        image_shape: (H, W, C).

    Raises:
        InputError: with the kernel's own message.
    """
    kernel = _without_networks(spec.kernel, **kernel_settings(spec))
    if kernel.learner is not None:
        return
    rows = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        jax.eval_shape(partial(kernel.predict, None), rows(num_rows, *image_shape), rows(num_rows, 1), rows(1, *image_shape))
    except ValueError as error:
        raise InputError(f"{where}.kernel is {spec.kernel!r}: {error}") from error


def ridge_warnings(increases: int, ridges: str) -> tuple[str, ...]:
    """Return a line for the user if ridges were increased, see `ssdd_jax.core.krr.solve_regularized`; `ridges` names the settings."""
    line = f"kernels singular in float32 had their ridge increased tenfold {increases} times; raise {ridges}, or look for equal images"
    return (line,) if increases else ()


def has_members(name: str) -> bool:
    """Return whether a kernel reads networks of a pool."""
    return _without_networks(name).learner is not None


def _without_networks(name: str, **settings: Any) -> Kernel:
    nobody: Any = None
    return KERNELS[name](Learner(nobody, nobody, nobody, nobody), ridge=0.0, ridge_scale="absolute", **settings)
