"""Settings as plain values, and as a short name."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def json_ready(spec: Any, *, tuples: bool = False) -> Any:
    """Return a spec as nested dicts and lists (or tuples), with NumPy's numbers, such as a config file computes, as Python's own."""
    if isinstance(spec, np.generic | np.ndarray):
        spec = spec.tolist()
    if is_dataclass(spec):
        return {f.name: json_ready(getattr(spec, f.name), tuples=tuples) for f in fields(spec)}
    if isinstance(spec, Mapping):
        return {name: json_ready(value, tuples=tuples) for name, value in spec.items()}
    if isinstance(spec, tuple | list):
        return (tuple if tuples else list)(json_ready(value, tuples=tuples) for value in spec)
    return spec


FORMAT = 3
"""Part of every digest. Raise it where a run keeps something in another form, or where a teacher, its representations or a student's
pretraining come out differently for the same settings; methods and protocols have versions of their own."""


def digest(*parts: Any) -> str:
    """Return a short name for settings: equal settings, equal name."""
    return hashlib.sha256(json.dumps([FORMAT, *json_ready(parts)], sort_keys=True).encode()).hexdigest()[:12]
