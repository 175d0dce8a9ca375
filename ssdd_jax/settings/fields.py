"""How settings are declared: defaults, choices and ranges."""

from dataclasses import field
from typing import Any

from ssdd_jax.registry import Registry


def one_of(*choices: Any, **kwargs: Any) -> Any:
    """Declare a field whose value is among `choices`; the first is the default, `smoke` the value in smoke runs, if it differs."""
    smoke = {"smoke": kwargs["smoke"]} if "smoke" in kwargs else {}
    return field(default=kwargs.get("default", choices[0]), metadata={"choices": choices, **smoke})


def within(default: Any, low: float, high: float = float("inf"), *, smoke: Any = None) -> Any:
    """Declare a number, or a tuple of numbers, in [low, high]; `smoke` is the value in smoke runs, if it differs."""
    return field(default=default, metadata={"range": (low, high), **({} if smoke is None else {"smoke": smoke})})


def matching(default: str, pattern: str, expected: str) -> Any:
    """Declare a text of a form, which messages describe as `expected`."""
    return field(default=default, metadata={"pattern": pattern, "expected": expected})


def named(default: str, registry: Registry) -> Any:
    """Declare the name of something in a registry, which may be added to until a config is read; '' only if that is the default."""
    return field(default=default, metadata={"registry": registry, "may_be_empty": not default})


def names_in(text: str) -> tuple[str, ...]:
    """Return names separated by commas, perhaps in brackets and quotes, as they are typed."""
    return tuple(name for name in (part.strip(" ()[]'\"") for part in text.split(",")) if name)


# What jax takes for a key without 64-bit integers.
MAX_SEED = 2**31 - 1
TARGET_KINDS = ("representation", "labels", "logits")
"""What the targets of a distilled set are."""
CONTROLS = ("none", "teacher_init", "teacher", "full")
TEACHER_CONTROLS = ("teacher_init", "teacher")
"""Controls that are not students: their representation itself is read."""
PRECISIONS = ("tensorfloat32", "float32", "bfloat16")
"""Of the products of a network, see `ssdd_jax.nets.make_learner`."""
