"""Which distilled sets there are: the run's own, complete or not, and those that the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ssdd_jax.errors import InputError
from ssdd_jax.io.artifacts import MANIFEST, read_manifest
from ssdd_jax.io.files import sha256
from ssdd_jax.io.pairs import PAIRS_KIND, Pairs, normalization_of, read_pairs
from ssdd_jax.io.published import is_published, read_published
from ssdd_jax.settings.fields import CONTROLS
from ssdd_jax.settings.published import NOTHING_SAID, SetFacts
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import Data


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

    def is_converted(self, data: Data) -> bool:
        """Return whether its images were normalised otherwise than the data, so that `pairs` changes them."""
        normalization = self.manifest.get("normalization")
        # Neither can be read, and `read` and `pairs` say so.
        if not isinstance(normalization, Mapping) or np.size(normalization.get("mean")) != len(data.mean):
            return False
        mean, std = normalization_of(self.folder, self.manifest, len(data.mean))
        # The same images on another machine: their mean may be another one in its last digits.
        return not (np.allclose(mean, data.mean, rtol=1e-5, atol=1e-6) and np.allclose(std, data.std, rtol=1e-5, atol=1e-6))

    def read(self, num_classes: int) -> Pairs:
        """Return its pairs as they are stored."""
        return read_pairs(self.folder)

    def pairs(self, data: Data) -> Pairs:
        """Return its pairs, the images normalised as the data are: a student is read on these.

        Raises:
            InputError: its images are not of the data's shape.
        """
        pairs = self.read(data.num_classes)
        found = pairs.images.shape[1:]
        if found != data.image_shape:
            raise InputError(f"the set at {self.folder} has images of {found}, the data {data.image_shape}; set config.data to match it")
        if not self.is_converted(data):
            return pairs
        mean, std = normalization_of(self.folder, pairs.manifest, found[2])
        images = (pairs.images * std + mean - data.mean) / data.std
        normalization = {"mean": data.mean.tolist(), "std": data.std.tolist()}
        return replace(pairs, images=images.astype(np.float32), manifest={**pairs.manifest, "normalization": normalization})

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says about its size and its making."""
        layout: Mapping[str, Any] = self.manifest.get("layout") or {}
        found = {key: self.manifest.get(key) for key in ("num_images", "num_views", "stored_scalars", "steps", "seconds", "approximation")}
        # Rows that say nothing of it have 32, such as those of earlier versions.
        found |= {"bits": bits} if (bits := self.manifest.get("bits", 32)) != 32 else {}
        return {**found, "views": layout.get("views"), "view_targets": layout.get("view_targets"), "target_kind": self.target_kind}


@dataclass(frozen=True, eq=False)
class PublishedSet(StoredSet):
    """One set of a published file, which has no manifest; `folder` is the file, or a folder with it.

    Attributes:
        about: what a manifest would say, of `read_published`.
        facts: what the user says about it.
        experiment: which of the file's sets it is.
    """

    about: dict[str, Any]
    facts: SetFacts
    experiment: int

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return what a manifest would say."""
        return self.about

    def read(self, num_classes: int) -> Pairs:
        """Return its pairs as they are stored, hard labels as rows of the data's number of classes."""
        return read_pairs(self.folder, **vars(self.facts), experiment=self.experiment, num_classes=num_classes)


@dataclass(frozen=True, eq=False)
class WithTeacher(StoredSet):
    """A label set's images, with a teacher's representations of them as targets."""

    labelled: StoredSet
    context: Context

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Return the label set's manifest."""
        return self.labelled.manifest

    def read(self, num_classes: int) -> Pairs:
        """Return the label set's pairs as they are stored."""
        return self.labelled.read(num_classes)

    @property
    def target_kind(self) -> str:
        """Return what its targets are."""
        return "representation"

    @property
    def identity(self) -> list[Any]:
        """Return what its pairs depend on."""
        return [*self.labelled.identity, "represented by", self.context.teacher_digest]

    def made_with(self, teacher_digest: str) -> bool:
        """Return whether its targets are representations of this teacher."""
        return teacher_digest == self.context.teacher_digest

    def pairs(self, data: Data) -> Pairs:
        """Return its pairs; the teacher sees the images as the student does."""
        pairs = super().pairs(data)
        return replace(pairs, targets=self.context.represent(jnp.asarray(pairs.images)))

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says about its size and its making; its numbers are counted with the representations."""
        found = super().describe()
        images, views = found["num_images"], found["num_views"]
        if images and views:
            found["stored_scalars"] = images * prod(self.context.data.image_shape) + images * views * self.context.width
        return found


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


def with_teacher(context: Context, sets: Sets) -> Sets:
    """Return the label sets among some, with the teacher's representations as targets, under the names of their further rows."""
    found: Sets = {}
    for name, by_seed in sets.items():
        labelled = {
            seed: WithTeacher(stored.folder, stored, context) for seed, stored in by_seed.items() if stored.target_kind != "representation"
        }
        if labelled:
            found[f"{name}-teacher"] = labelled
    return found


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


def named_sets(paths: Sequence[Path], spec: RunSpec, facts: SetFacts = NOTHING_SAID) -> Sets:
    """Return the same for folders and published files that the user names: every seed's student is trained on the same set.

    Args:
        paths: folders with a manifest, or published files.
        spec: of the run.
        facts: what the user says about the published ones.

    Raises:
        InputError: there is no set, it is named twice, or facts are given and none of the sets needs them; as for `read_published`.
    """
    sets: Sets = {}
    for path in paths:
        found = _published_sets(path, facts) if is_published(path) else [(*_name_in_manifest(path), StoredSet(path))]
        for name, ending, stored in found:
            name, longer = f"{name}{ending}", f"{path}{ending}"
            if name in sets or name in spec.methods or name in CONTROLS:
                name = longer
            if name in sets:
                raise InputError(f"--set {path} is given twice; give it once")
            sets[name] = dict.fromkeys(spec.seeds, stored)
    if facts.given and not any(map(is_published, paths)):
        raise InputError(f"--set_{facts.given[0]} is for published files, every --set has a {MANIFEST} that says it; drop it")
    return sets


def _name_in_manifest(path: Path) -> tuple[str, str]:
    """Return the name that a set has in the tables, and what is added where it is one of several."""
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(
            f"--set {path}: no {MANIFEST} there, expected the folder of a distilled set or of an export, or a published file (.pt, .npz)"
        )
    name = f"{manifest.get('method') or manifest.get('name') or path.name}"
    return f"{name}-{manifest['seed']}" if "seed" in manifest else name, ""


def _published_sets(path: Path, facts: SetFacts) -> list[tuple[str, str, StoredSet]]:
    """Return the sets of a published file, each with the name of the file and its own number, if there are several."""
    name, found = path.name if path.is_dir() else path.stem, read_published(path, facts)
    endings = [f"-{i}" for i in range(len(found))] if len(found) > 1 else [""]
    return [(name, ending, PublishedSet(path, one.manifest, facts, i)) for i, (one, ending) in enumerate(zip(found, endings, strict=True))]
