"""What the stages after the teacher share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssdd_jax.core.bases import PCA
from ssdd_jax.core.distilled import budget_scalars
from ssdd_jax.core.learner import Learner
from ssdd_jax.core.real import RealImages
from ssdd_jax.core.views import apply_views
from ssdd_jax.data import Concatenated, OnDisk, open_prepared, select_rows
from ssdd_jax.errors import BudgetError, InputError
from ssdd_jax.io.checkpoints import Checkpoints
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.methods.automatic import view_choices
from ssdd_jax.methods.method import TEACHER
from ssdd_jax.methods.plan import Plan, Sizes
from ssdd_jax.progress import Display
from ssdd_jax.registry import METHODS
from ssdd_jax.runtime.encode import in_batches
from ssdd_jax.runtime.feed import Table, to_device
from ssdd_jax.runtime.loop import resumable
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.settings.methods import AUTO_VIEWS, ExpertSpec
from ssdd_jax.settings.spec import RunSpec
from ssdd_jax.stages.bases import fit_bases
from ssdd_jax.stages.dataset import Data, data_warnings, load_data
from ssdd_jax.stages.experts import files_fingerprint, get_experts
from ssdd_jax.stages.features import Features, read_features
from ssdd_jax.stages.given import NOTHING_GIVEN, Given, features_teacher
from ssdd_jax.stages.networks import member_learners, repr_width
from ssdd_jax.stages.provenance import provenance
from ssdd_jax.stages.teacher import (
    Teacher,
    cached_representations,
    checkpoint_fingerprint,
    get_teacher,
    representations,
    teacher_digest,
    view_shifts,
)


@dataclass(eq=False)
class Context:
    """What the stages after the teacher share; what is expensive is computed on first use and kept."""

    spec: RunSpec
    data: Data
    workdir: Path
    metrics: Metrics
    display: Display
    given: Given = NOTHING_GIVEN

    def __post_init__(self):
        self._pcas: dict[Any, PCA] = {}
        self._reprs: dict[str, np.ndarray] = {}
        self._experts: dict[Path, OnDisk] = {}
        self._fingerprints: dict[str, str] = {}
        self.chosen: dict[str, Any] = {}
        """Settings of methods that had automatic ones, after `ssdd_jax.stages.choose.choose_settings`."""
        self.choice_seconds: dict[str, float] = {}
        """How long their trials took."""

    @cached_property
    def learners(self) -> dict[str, Learner]:
        """Return the networks of the pool's members, by label."""
        return member_learners(self.spec, self.data.image_shape, self.width)

    @cached_property
    def targets(self) -> dict[str, Data]:
        """Return the datasets to evaluate on by label, the distilled sets' own first.

        Raises:
            InputError: one cannot be read, or its images differ in shape from the distilled sets' dataset.
        """
        targets = {self.data.name: self.labelled}
        for label, spec in self.spec.evaluation.datasets.items():
            where = f"config.evaluation.datasets.{label}"
            if label in targets:
                raise InputError(f"{where} has the name of the distilled set's own dataset, which is evaluated anyway; rename it")
            target = load_data(spec, self.spec.evaluation.split, self.display)
            if target.image_shape != self.data.image_shape:
                h, _, c = self.data.image_shape
                raise InputError(
                    f"{where} has images of {target.image_shape}, expected {self.data.image_shape} as in the distilled set; "
                    f"{where}.size={h} pads smaller ones and {where}.channels={c} converts their colours"
                )
            for warning in data_warnings(spec, target):
                self.display.print(f"warning: {where}: {warning}")
            targets[label] = target
        return targets

    @cached_property
    def labelled(self) -> Data:
        """Return the run's dataset with labelled training images for the protocols: those of the train split, if there is one."""
        spec = self.spec.data
        if spec.split == "train" or "train" not in open_prepared(self.data.folder).splits:
            return self.data
        labelled = load_data(replace(spec, split="train", limit=0), self.spec.evaluation.split, self.display)
        return replace(labelled, mean=self.data.mean, std=self.data.std)

    @cached_property
    def absent(self) -> dict[str, str]:
        """Return the chosen methods that do not exist at this budget, and why; their lines of the table are empty."""
        return absent_methods(self.spec, self.data, self.spec.chosen_methods(), self.width)

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the chosen methods that exist at this budget."""
        return tuple(name for name in self.spec.chosen_methods() if name not in self.absent)

    @property
    def budget(self) -> int:
        """Return how many numbers every method may store."""
        return budget_scalars(self.spec.num_pairs, self.data.image_shape, self.width)

    @property
    def checkpoints(self) -> Path:
        """Return the folder of all checkpoints."""
        return self.workdir / "checkpoints"

    @cached_property
    def saving(self) -> dict[str, Any]:
        """Return the settings that all `Checkpoints` share."""
        features = "" if self.features is None else self.features.fingerprint
        about = provenance(self.spec, self.data.fingerprint, self.checkpoint, features)
        return {**json_ready(self.spec.checkpoints), "about": about}

    def resumable(self, folder: Path, state: Any, **settings: Any) -> tuple[Checkpoints, int, Any]:
        """Return `ssdd_jax.runtime.loop.resumable` with the settings of this run, except those given."""
        return resumable(folder, state, self.display, **{**self.saving, **settings})

    @cached_property
    def features(self) -> Features | None:
        """Return the teacher's representations if they were made elsewhere; there is no network then."""
        if isinstance(self.given.teacher, Features):
            return self.given.teacher
        return read_features(self.spec.teacher.features, self.spec.data.split) if self.spec.teacher.features else None

    @cached_property
    def width(self) -> int:
        """Return the width of a representation."""
        if isinstance(self.given.teacher, Teacher):
            return self.given.teacher.centre.size
        return repr_width(self.spec.teacher, self.data.image_shape) if self.features is None else self.features.width

    @cached_property
    def teacher(self) -> Teacher:
        """Return the frozen teacher; the first call pretrains or reads it."""
        if isinstance(self.given.teacher, Teacher):
            return self.given.teacher
        if self.features is not None:
            return features_teacher(self.spec, self.data, self.features, self.teacher_digest)
        return get_teacher(self.spec, self.data, self.teacher_digest, self.checkpoints, self.metrics, self.display, self.saving)

    @cached_property
    def teacher_digest(self) -> str:
        """Return the digest of everything that the teacher depends on, without computing the teacher."""
        if isinstance(self.given.teacher, Teacher):
            return self.given.teacher.digest
        features = "" if self.features is None else self.features.fingerprint
        return teacher_digest(self.spec.teacher, self.data, self.checkpoint, features)

    @cached_property
    def checkpoint(self) -> str:
        """Return the fingerprint of the teacher's published checkpoint, read once; "" where there is none."""
        return checkpoint_fingerprint(self.spec.teacher)

    def reprs(self, split: str) -> np.ndarray:
        """Return the teacher's representations of the training images, or of the images that students are evaluated on, memory-mapped."""
        return self._represented(split, "identity")

    def _represented(self, split: str, view: str) -> np.ndarray:
        """Return `cached_representations` of a split under a real view; their file is verified once per run."""
        train = split == "train"
        name = f"{split}-{view}" if train or self.labelled is self.data else f"labelled-{split}-{view}"
        if name not in self._reprs:
            if self.features is not None:
                rows = self.features.take(self.data.train_rows if train else self.labelled.eval_rows, view)
                to_input = lambda batch, _: batch
            else:
                rows, to_input = self.data.train_images if train else self.labelled.eval_images, partial(self.real.view, view)
            self._reprs[name] = cached_representations(self.teacher, rows, to_input, name, self.checkpoints, self.display)
        return self._reprs[name]

    def view_reprs(self, rows: np.ndarray, views: Sequence[str]) -> np.ndarray:
        """Return the teacher's representations "A k d" of some training images under views."""
        if self.features is None:
            return np.stack([self.represent(images) for images in apply_views(self.normalized_images(rows), views)])
        found = [self.features.take(self.data.train_rows, view) for view in views]
        return np.stack([in_batches(self.teacher.jitted(), select_rows(of_view, rows)) for of_view in found])

    @cached_property
    def shifts(self) -> dict[str, float]:
        """Return the teacher's shift under every view that a chosen method uses."""
        methods = [self.spec.methods[name] for name in self.methods]
        views = tuple(dict.fromkeys(view for method in methods for view in self.views_of(method)))
        represent = partial(representations, self.teacher, self.data)
        if self.features is not None:
            represent = lambda rows, view: self.view_reprs(rows, (view,))[0]
        return view_shifts(represent, len(self.data.train_images), views)

    @cached_property
    def train_images(self) -> Table:
        """Return the training images as uint8, on the device unless they stay on disk."""
        return to_device(self.data.train_images)

    @cached_property
    def real(self) -> RealImages:
        """Return how real images enter the outer step."""
        return self.real_among(None)

    def real_among(self, rows: np.ndarray | None) -> RealImages:
        """Return how some of the real images enter the outer step, integers "k"; all if None."""
        among = None if rows is None else jnp.asarray(rows)
        return RealImages(self.spec.outer, len(self.data.train_images), self.data.normalize, among)

    @cached_property
    def real_targets(self) -> Table | None:
        """Return the training images' representations under every real view, "R*n d", or None if every step computes its own.

        They are on the device if the images are.
        """
        if not self.real.names:
            return None
        files = [self._represented("train", name) for name in self.real.names]
        if isinstance(self.train_images, jax.Array):
            return jnp.concatenate([jnp.asarray(reprs) for reprs in files])
        return Concatenated([OnDisk(reprs) for reprs in files])

    @cached_property
    def train_labels(self) -> Table:
        """Return the training images' labels "n"."""
        return jnp.asarray(self.data.train_labels)

    def normalized_images(self, rows: np.ndarray) -> jax.Array:
        """Return some training images, normalized."""
        return self.data.normalize(jnp.asarray(self.data.train_images[rows]))

    @cached_property
    def represent(self) -> Callable[[jax.Array], np.ndarray]:
        """Return the function from normalized images to the teacher's representations, in batches."""
        return partial(in_batches, self.teacher.jitted())

    def pca(self, base_shape: tuple[int, int, int] | None, num_components: int, name: str, rows: np.ndarray | None = None) -> PCA:
        """Return the PCA of training images at `base_shape`, flattened, or of the representations; of all, or of some, integers "k"."""
        key = (base_shape, num_components, None if rows is None else rows.tobytes())
        if key not in self._pcas:
            where = f"config.methods.{name}"
            self._pcas[key] = fit_bases(self.data, lambda: self.reprs("train"), base_shape, num_components, where, rows)
        return self._pcas[key]

    def experts(self, spec: ExpertSpec, where: str) -> OnDisk:
        """Return the parameters of experts, trained or read on first use; their file is verified once per run."""
        file = self.experts_file(spec)
        if file not in self._experts:
            self._experts[file] = get_experts(self.spec, spec, where, self.data, file, self.metrics, self.display)
        return self._experts[file]

    def experts_file(self, spec: ExpertSpec) -> Path:
        """Return where experts are kept; the name stands for all that they depend on."""
        return self.checkpoints / f"experts-{digest(self._by_content(spec), self.data.digest)}.npy"

    def _by_content(self, spec: ExpertSpec) -> ExpertSpec:
        """Return the settings of experts with the fingerprint of published files in the place of their path."""
        if spec.files not in self._fingerprints:
            self._fingerprints[spec.files] = files_fingerprint(spec.files, "files of experts")
        return replace(spec, files=self._fingerprints[spec.files])

    def sizes(self, shifts: Mapping[str, float]) -> Sizes:
        """Return what plans depend on, given the teacher's shifts."""
        return sizes_of(self.spec, self.data, self.width, shifts)

    def views_of(self, method: Any) -> tuple[str, ...]:
        """Return the views that a method's settings ask for or, automatic ones, may choose: with features, those that these have."""
        choices = view_choices(self.data.image_shape)
        if self.features is not None:
            choices = tuple(view for view in choices if view in self.features.arrays)
        return views_of(method, choices)

    def settings(self, name: str) -> Any:
        """Return the settings of a method, those that were chosen in the place of automatic ones."""
        return self.chosen.get(name, self.spec.methods[name])

    def plan(self, name: str) -> Plan:
        """Return the plan of a method, after checking it against the data."""
        spec = self.settings(name)
        method = METHODS[spec.kind]
        plan = method.plan(name, spec, self.sizes(self.shifts if TEACHER in method.needs else {}))
        if plan.num_images > len(self.data.train_images):
            raise InputError(
                f"config.methods.{name} has {plan.num_images} images, the training split {len(self.data.train_images)} "
                f"to start from; lower config.methods.{name}.images"
            )
        return plan

    def distilled_folder(self, name: str, seed: int) -> Path:
        """Return the folder of a distilled set."""
        return self.workdir / "distilled" / name / f"seed_{seed}"

    def distilled_digest(self, name: str) -> str:
        """Return the digest of everything that a distilled set depends on, except the seed."""
        spec = self.spec.methods[name]
        method = METHODS[spec.kind]
        made_from = self.teacher_digest if TEACHER in method.needs else self.data.digest
        sections = [getattr(self.spec, section) for section in method.sections]
        if (experts := experts_of(spec)) is not None:
            spec = replace(spec, experts=self._by_content(experts))
        # Automatic settings stand for what is chosen, which is a function of all this.
        if method.is_automatic(spec):
            sections += [self.spec.trials, method.choice_version]
        return digest(made_from, self.budget, sections, spec, method.version)


def sizes_of(spec: RunSpec, data: Data, width: int, shifts: Mapping[str, float]) -> Sizes:
    """Return what plans depend on besides a method's settings; `width` is that of a representation, `shifts` are the teacher's."""
    return Sizes(spec.num_pairs, data.image_shape, width, data.num_classes, shifts, len(data.train_images))


def absent_methods(spec: RunSpec, data: Data, names: Sequence[str], width: int) -> dict[str, str]:
    """Return which of some methods do not exist at the budget, and why, before anything runs; `width` is that of a representation.

    Raises:
        BudgetError: none of them exists.
        InputError: a method's settings do not fit the data.
    """
    found: dict[str, str] = {}
    for name in names:
        settings = spec.methods[name]
        # The teacher's shifts are not known yet.
        shifts = dict.fromkeys(views_of(settings, view_choices(data.image_shape)), 0.0)
        try:
            METHODS[settings.kind].plan(name, settings, sizes_of(spec, data, width, shifts))
        except BudgetError as error:
            found[name] = str(error)
            if len(found) == len(names):
                raise
    return found


def experts_of(method: Any) -> ExpertSpec | None:
    """Return the settings of a method's experts, if it has any."""
    return getattr(method, "experts", None)


def views_of(method: Any, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the views that a method's settings ask for, `choices` where these are left to the rule; the identity if they have none."""
    views = getattr(method, "views", ("identity",))
    return choices if views == AUTO_VIEWS else views
