"""Which distilled sets there are: the run's own, complete or not, and those that the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssdd_jax.errors import InputError
from ssdd_jax.io.artifacts import MANIFEST, read_manifest
from ssdd_jax.io.files import sha256
from ssdd_jax.io.pairs import PAIRS_KIND, Pairs, read_pairs
from ssdd_jax.settings.fields import CONTROLS
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.context import Context


@dataclass(frozen=True, eq=False)
class StoredSet:
    """What students can be trained on, in a folder: a distilled set, an export or somebody's pairs. What is read of it is kept."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return its manifest; an empty one where there is none."""
        return read_manifest(self.folder) or {}

    @cached_property
    def target_kind(self) -> str:
        """Return what its targets are."""
        # Told by the manifest alone: the pairs may be large, and are not read for it.
        return Pairs(np.empty(0), np.empty(0), self.manifest).target_kind

    @property
    def learning_rate(self) -> float | None:
        """Return the learning rate that it was made with, if it says so."""
        return Pairs(np.empty(0), np.empty(0), self.manifest).learning_rate

    @cached_property
    def identity(self) -> list[Any]:
        """Return what its pairs depend on."""
        parts = [self.manifest.get(key) for key in ("sha256", "files", "layout", "normalization")]
        if self.manifest.get("kind") == PAIRS_KIND:
            # Its manifest need not list its files.
            pairs = read_pairs(self.folder)
            parts += [sha256(pairs.images.tobytes()), sha256(pairs.targets.tobytes())]
        return [*parts, self.target_kind]

    def made_with(self, teacher_digest: str) -> bool:
        """Return whether its targets are representations of this teacher, so that a student's error can be measured."""
        made_with = (self.manifest.get("teacher") or {}).get("digest")
        return self.target_kind == "representation" and made_with == teacher_digest

    def pairs(self, image_shape: tuple[int, int, int]) -> Pairs:
        """Return its pairs, whose images must be of this shape."""
        pairs = read_pairs(self.folder)
        found = pairs.images.shape[1:]
        if found != image_shape:
            raise InputError(f"the set at {self.folder} has images of {found}, the data {image_shape}; set config.data to match it")
        return pairs

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says about its size and its making."""
        layout: Mapping[str, Any] = self.manifest.get("layout") or {}
        found = {key: self.manifest.get(key) for key in ("num_images", "num_views", "stored_scalars", "steps", "seconds", "approximation")}
        return {**found, "views": layout.get("views"), "view_targets": layout.get("view_targets"), "target_kind": self.target_kind}


# By their names and seeds.
Sets = dict[str, dict[int, StoredSet]]


def complete_sets(context: Context) -> Sets:
    """Return `own_sets`.

    Raises:
        InputError: one of the chosen methods is not distilled for every seed.
    """
    sets = own_sets(context)
    for name in context.methods:
        for seed in context.spec.seeds:
            if seed not in sets.get(name, {}):
                where = context.distilled_folder(name, seed)
                raise InputError(f"no distilled set of these settings at {where}; run --task=distill with them first")
    return sets


def own_sets(context: Context) -> Sets:
    """Return the distilled sets in the workdir that are of the present settings, by method and seed."""
    sets: Sets = {}
    for name in context.spec.methods:
        identity = context.distilled_digest(name)
        for seed in context.spec.seeds:
            stored = StoredSet(context.distilled_folder(name, seed))
            if stored.manifest.get("digest") == identity:
                sets.setdefault(name, {})[seed] = stored
    return sets


def named_sets(paths: Sequence[Path], spec: RunSpec) -> Sets:
    """Return the same for folders that the user names: every seed's student is trained on the same set."""
    sets: Sets = {}
    for path in paths:
        manifest = read_manifest(path)
        if manifest is None:
            raise InputError(f"--set {path}: no {MANIFEST} there, expected the folder of a distilled set or of an export")
        name = f"{manifest.get('method') or manifest.get('name') or path.name}"
        name = f"{name}-{manifest['seed']}" if "seed" in manifest else name
        if name in sets or name in spec.methods or name in CONTROLS:
            name = str(path)
        if name in sets:
            raise InputError(f"--set {path} is given twice; give it once")
        sets[name] = dict.fromkeys(spec.seeds, StoredSet(path))
    return sets
