"""The settings of a method that its kernel reads."""

import inspect
from dataclasses import fields
from typing import Any

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


def ridge_warnings(increases: int, ridges: str) -> tuple[str, ...]:
    """Return a line for the user if ridges were increased, see `ssdd_jax.core.krr.solve_regularized`; `ridges` names the settings."""
    line = f"kernels singular in float32 had their ridge increased tenfold {increases} times; raise {ridges}, or look for equal images"
    return (line,) if increases else ()


def has_members(name: str) -> bool:
    """Return whether a kernel reads networks of a pool."""
    nobody: Any = None
    made: Kernel = KERNELS[name](Learner(nobody, nobody, nobody, nobody), ridge=0.0, ridge_scale="absolute")
    return made.learner is not None
