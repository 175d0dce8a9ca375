"""What a run depends on, and what may change while it goes on."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import ssdd_jax
from ssdd_jax.cores import available_cores
from ssdd_jax.errors import InputError, StorageError
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.spec import RunSpec

# Settings that no artefact depends on: names, places, what is logged, saved, evaluated or chosen; and the number of steps.
MAY_CHANGE = re.compile(
    r"name|seeds|seeds_at_once|steps_per_dispatch|log_every|logger|only|checkpoints\..*|devices\..*|evaluation\..*|protocols\..*"
    r"|memory\..*|data\.(cache|memory_gb)|teacher\.probe_learning_rate"
)
# What a run reads has a fingerprint, and is compared by it alone: where it lies and how it was read show in the fingerprint or nowhere.
FINGERPRINTS = {
    "data_fingerprint": ("data", re.compile(r"data\.(source|data_dir|size|fit|channels|on_bad_image|overlap|ground)")),
    "checkpoint_fingerprint": ("teacher's checkpoint", re.compile(r"teacher\.checkpoint")),
    "features_fingerprint": ("teacher's features", re.compile(r"teacher\.features")),
}
# Schedules span all steps, so with another number of them a stage starts anew, next to the checkpoints of the old number.
STEPS = re.compile(r"(teacher|outer|methods\.[^.]+)\.steps")

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def device() -> str:
    """Return the hardware in words; for a CPU also the number of usable cores, on which XLA's order of summation depends."""
    words = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.default_backend() != "cpu":
        return words
    return f"{words} ({available_cores()} cores)"


def provenance(spec: RunSpec, fingerprint: str, checkpoint: str = "", features: str = "") -> dict[str, Any]:
    """Return what the results depend on: settings, versions, data and the device.

    Args:
        spec: the settings.
        fingerprint: that of the data.
        checkpoint: that of the teacher's published checkpoint; "" where there is none.
        features: that of the teacher's features; "" where there are none.
    """
    return {
        "settings": json_ready(spec),
        "data_fingerprint": fingerprint,
        "checkpoint_fingerprint": checkpoint,
        "features_fingerprint": features,
        "versions": {
            "ssdd_jax": ssdd_jax.__version__,
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in VERSIONED},
        },
        "device": device(),
    }


def check_changes(file: Path, now: Mapping[str, Any], accept: bool) -> list[str]:
    """Return lines on what has changed since a workdir was begun.

    Args:
        file: the workdir's spec.json; without one, nothing has changed.
        now: the `provenance` of this run.
        accept: whether to accept changes that would otherwise end the run.

    Raises:
        InputError: settings have changed that the contents of the workdir depend on; the message has one line for each.
        StorageError: the file cannot be read.
    """
    if not file.is_file():
        return []
    try:
        before = json.loads(file.read_bytes())
        settings = dict(_flat(before["settings"]))
        # A version that did not know a fingerprint compared the settings.
        read = {name: before[name] for name in FINGERPRINTS if name in before or name == "data_fingerprint"}
        if not all(isinstance(fingerprint, str) for fingerprint in read.values()):
            raise TypeError("fingerprint")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{file} cannot be read ({type(error).__name__}), expected the settings that the run was begun with; "
            "remove it if you know that they are the same"
        ) from error
    # A setting that an older version did not have counts as its default.
    defaults, new = dict(_flat(json_ready(RunSpec()))), dict(_flat(now["settings"]))
    changes = {key: (settings.get(key, defaults.get(key, value)), value) for key, value in new.items()}
    same = [FINGERPRINTS[name][1] for name, fingerprint in read.items() if fingerprint == now[name]]
    may_change = lambda key: any(pattern.fullmatch(key) for pattern in (MAY_CHANGE, *same))
    changes = {key: pair for key, pair in changes.items() if pair[0] != pair[1] and not may_change(key)}
    steps = {key: pair for key, pair in changes.items() if STEPS.fullmatch(key)}
    lines = [f"  config.{key}: {old!r} -> {value!r}" for key, (old, value) in changes.items() if key not in steps]
    for name, fingerprint in read.items():
        if fingerprint != now[name]:
            lines.append(f"  fingerprint of the {FINGERPRINTS[name][0]}: {fingerprint[:12] or 'none'} -> {now[name][:12] or 'none'}")
    if lines and not accept:
        raise InputError(
            f"{file.parent} was begun with other settings; give another --workdir, or --accept_changes to make again here what depends "
            "on them:\n" + "\n".join(lines)
        )
    notes = [f"config.{key}: {old} -> {value}; what it changes starts from its first step" for key, (old, value) in steps.items()]
    return [*notes, *(["the workdir was begun with other settings; what depends on them is made again:", *lines] if lines else [])]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
