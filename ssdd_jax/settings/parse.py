"""From a ConfigDict to frozen settings; errors name what is unknown, of the wrong type or out of range."""

import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ml_collections import ConfigDict

from ssdd_jax.errors import InputError, nearest
from ssdd_jax.registry import NETS, Registry
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.fields import names_in
from ssdd_jax.settings.presets import PRESETS
from ssdd_jax.settings.spec import RunSpec


def to_spec(config: Mapping[str, Any]) -> RunSpec:
    """Return the frozen settings.

    Raises:
        InputError: a key is unknown, or a value has the wrong type or is out of range.
    """
    return _build(RunSpec, config.to_dict() if isinstance(config, ConfigDict) else config, "config")


def _build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}, expected a section with {', '.join(f.name for f in fields(cls))}")
    known = {f.name: f for f in fields(cls)}
    for name in values:
        if name not in known:
            raise InputError(f"{where}.{name} is unknown; {where} has {', '.join(known)}{nearest(name, known)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: _convert(hints[name], known[name].metadata, value, f"{where}.{name}") for name, value in values.items()})


def _split(item: Any) -> tuple[Any, ...]:
    return names_in(item) if isinstance(item, str) else (item,)


def _sections(kind: Any, registry: Registry | None, value: Any, where: str) -> Mapping[str, Any]:
    """Return named sections: all of one type, or each of the type that a registry has for its `kind`, or else for its name."""
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}, expected named sections")

    def cls(name: str, section: Any) -> Any:
        if registry is None:
            return kind
        chosen = section.get("kind", name) if isinstance(section, Mapping) else name
        registry.check(chosen, f"{where}.{name}.kind is {chosen!r}" if chosen != name else f"{where}.{name} is unknown")
        return registry.spec(chosen)

    # A ConfigDict sorts its keys; tables show methods and networks in the order of PRESETS and NETS, and any others after them.
    known = [name for name in dict.fromkeys((*PRESETS, *NETS, *(registry or ()))) if name in value]
    names = known + [name for name in value if name not in known]
    return types.MappingProxyType({name: _build(cls(name, value[name]), value[name], f"{where}.{name}") for name in names})


def _convert(hint: Any, metadata: Mapping[str, Any], value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where)
    if typing.get_origin(hint) not in (None, tuple):
        return _sections(typing.get_args(hint)[1], metadata.get("registry"), value, where)
    value = json_ready(value, tuples=True)
    if typing.get_origin(hint) is tuple:
        if typing.get_args(hint)[0] is str and isinstance(value, str | tuple | list):
            # On the command line names may be given as those of `only` are, separated by commas.
            value = tuple(name for item in ([value] if isinstance(value, str) else value) for name in _split(item))
        if not isinstance(value, tuple | list):
            raise InputError(f"{where} is {value!r}, expected a tuple such as ({', '.join(['...'] * 2)})")
        element = typing.get_args(hint)[0]
        return tuple(_convert(element, metadata, item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not hint:
        raise InputError(f"{where} is {value!r}, expected {'a whole number' if hint is int else f'a {hint.__name__}'}")
    if "choices" in metadata and value not in metadata["choices"]:
        expected = f"expected one of {', '.join(map(str, metadata['choices']))}"
        raise InputError(f"{where} is {value!r}, {expected}{nearest(str(value), map(str, metadata['choices']))}")
    if "pattern" in metadata and not re.fullmatch(metadata["pattern"], str(value)):
        raise InputError(f"{where} is {value!r}, expected {metadata['expected']}")
    if "registry" in metadata and not (value == "" and metadata.get("may_be_empty")):
        metadata["registry"].check(value, f"{where} is {value!r}")
    low, high = metadata.get("range", (float("-inf"), float("inf")))
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, expected a finite number")
    if isinstance(value, int | float) and not low <= value <= high:
        raise InputError(f"{where} is {value}, expected {f'at least {low}' if high == float('inf') else f'{low} to {high}'}")
    return value
