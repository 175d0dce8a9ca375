"""The settings of a run: frozen dataclasses, their defaults, which are the only ones, and their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssdd_jax.errors import InputError, nearest
from ssdd_jax.registry import LOGGERS, METHODS, NETS, PROTOCOLS
from ssdd_jax.settings.augment import AugmentSpec
from ssdd_jax.settings.evaluation import RECIPES, VIT_RECIPE, PublishedSpec, RecipeSpec, protocol_defaults
from ssdd_jax.settings.fields import CONTROLS, MAX_SEED, PRECISIONS, TARGET_KINDS, matching, named, names_in, one_of, within


@dataclass(frozen=True)
class DataSpec:
    """Which images.

    Attributes:
        source: a dataset's name, or KIND:ARGUMENT, see `ssdd_jax.data.sources.open_source`.
        data_dir: folder of the published files; '' is $SSDD_JAX_DATA, or data/ in the working directory.
        cache: folder of prepared datasets; '' is $SSDD_JAX_CACHE, or ssdd_jax/ in the user's cache folder.
        split: which split is distilled; the unlabelled one where there is one, such as STL-10's. Evaluation always uses
            the labelled one.
        size: side of the images; 0 leaves them, which must then all be of one size.
        fit: how they get there: crop (the shorter side resized, bilinear and antialiased, then the middle), resize (both
            sides, whatever the aspect ratio) or pad (zeros around smaller images).
        channels: 3 repeats a grey channel, 1 takes the luma of RGB; 0 leaves them.
        on_bad_image: stop at images that cannot be used, or skip and record them.
        ground: what transparent images are laid on: white, black or #RRGGBB. Arrays with four channels are left as they are.
        overlap: refuse a test split of which more than 1 % are training images too, or allow it with a warning. Splits that are
            drawn (`test`, `validation`) never overlap: equal images stay together.
        test: share of the training images that become the test split of a source that has none.
        validation: share of the training images that is never trained on: settings are chosen on it.
        limit: how many of the remaining training images to use, a fixed random choice; 0 uses all.
        memory_gb: splits above this size (GB) stay on disk, and so do their representations, and features that evaluation reads; batches
            are read ahead.
    """

    source: str = "digits"
    data_dir: str = ""
    cache: str = ""
    split: str = one_of("train", "unlabelled")
    size: int = within(0, 0, 4096)
    fit: str = one_of("crop", "resize", "pad")
    channels: int = one_of(0, 1, 3)
    on_bad_image: str = one_of("stop", "skip")
    ground: str = matching("white", r"white|black|#[0-9a-fA-F]{6}", "white, black or #RRGGBB")
    overlap: str = one_of("refuse", "allow")
    test: float = within(0.0, 0.0, 0.9)
    validation: float = within(0.1, 0.0, 0.9)
    limit: int = within(0, 0)
    memory_gb: float = within(4.0, 0.0)


@dataclass(frozen=True)
class TeacherSpec:
    """The teacher: Barlow Twins pretraining, a published checkpoint, or features that were made elsewhere.

    Of solo-learn's recipe two things differ: a batch is drawn with replacement, not epoch by epoch, and the online probe
    has an optimizer of its own (SGD with a cosine) instead of a share of the teacher's.

    Attributes:
        net: its network; the representation is its pooled features, as wide as the last of its widths.
        widths: widths of its layers, see `ssdd_jax.nets`; () takes the published ones.
        checkpoint: a file of weights to use instead of pretraining: safetensors, or PyTorch's (a state dict, or a checkpoint such as
            solo-learn's or Lightning's); see `ssdd_jax.nets.variables_from_torch` for the names.
        features: representations made elsewhere: an .npz, a folder of .npy files, or one .npy; see `ssdd_jax.stages.features`.
        optimizer: adamw, or lars as solo-learn runs it.
        learning_rate: as it is: solo-learn multiplies its own by batch_size / 256.
        warmup_rate: where the linear warm-up starts.
        probe_learning_rate: learning rate of the online probe, which logs how well the labels can be read from the representation so
            far; labels never reach the teacher.
        precision: precision of the network's products, see `OuterSpec`.
        standardize: centre the frozen teacher's representation and divide it by its one overall standard deviation.
    """

    net: str = named("convnet", NETS)
    widths: tuple[int, ...] = within((32, 64, 128), 1)
    checkpoint: str = ""
    features: str = ""
    steps: int = within(1000, 0)
    batch_size: int = within(256, 2)
    optimizer: str = one_of("adamw", "lars")
    learning_rate: float = within(2e-3, 0.0)
    weight_decay: float = within(1e-4, 0.0)
    warmup_steps: int = within(50, 0)
    warmup_rate: float = within(0.0, 0.0)
    projector_width: int = within(256, 1)
    projector_layers: int = within(2, 0)
    off_diagonal: float = within(0.0051, 0.0)
    loss_scale: float = within(0.1, 0.0)
    precision: str = one_of(*PRECISIONS)
    first_view: AugmentSpec = field(default_factory=AugmentSpec)
    second_view: AugmentSpec = field(default_factory=lambda: AugmentSpec(solarize=0.2))
    probe_learning_rate: float = within(0.1, 0.0)
    standardize: bool = True
    seed: int = within(0, 0, MAX_SEED)

    def __post_init__(self):
        if self.checkpoint and self.features:
            raise InputError("config.teacher has a checkpoint and features, expected one of them at most; drop the other")


@dataclass(frozen=True)
class NetSpec:
    """A network: its name, its widths, () being the published ones, and a factor on all of them."""

    net: str = named("convnet", NETS)
    widths: tuple[int, ...] = within((), 1)
    width_factor: float = within(1.0, 0.0)


@dataclass(frozen=True)
class PoolSpec:
    """The pool of inner models. SGD with coupled weight decay (KRR-ST).

    Attributes:
        size: members, of every architecture.
        nets: their architectures, by label, which the outer steps take in turn; without any, all are of `config.student`.
    """

    size: int = within(5, 1)
    max_age: int = within(60, 1)
    members_per_step: int = within(1, 1)
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.9, 0.0, 1.0)
    weight_decay: float = within(1e-3, 0.0)
    nets: Mapping[str, NetSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialsSpec:
    """The short trials that choose automatic settings, once for all seeds.

    Attributes:
        most: largest number of trials for one method.
        steps: outer steps of a trial, where a set is to have any; whether it is to have any is tried with all of them, and the whole pool.
        pool_size: members of a trial's pool.
        updates: updates of the student that a trial is judged by, of `config.student`'s network: SGD as in `RecipeSpec`, with a cosine to
            zero.
    """

    most: int = within(20, 1, smoke=3)
    steps: int = within(60, 1, smoke=2)
    pool_size: int = within(2, 1)
    updates: int = within(300, 1, smoke=2)


@dataclass(frozen=True)
class OuterSpec:
    """What every method's outer loop shares. AdamW with a linear schedule from the method's rate to `final_rate` of it.

    Attributes:
        steps: outer steps of every method that does not set its own.
        batch_size: real images per step, drawn with replacement.
        final_rate: share of the learning rate that is left at the end.
        b1: first-moment decay of AdamW.
        b2: second-moment decay of AdamW.
        weight_decay: weight decay of AdamW.
        ridge: lambda of the kernel ridge regression.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        real_augment: how real images enter. views: under one of `real_views`, drawn per image and step; crops: as one of
            `real_crops` fixed random crops, drawn likewise; fresh: cropped and flipped anew every step, the teacher run on the
            result (KRR-ST). For the first two the teacher's representations are computed once.
        real_views: exact views, e.g. ("identity",) for no augmentation, or ("identity", "hflip").
        real_crops: R, the number of fixed crops of every image.
        real_padding: zeros around an image before its crop.
        real_flip: probability that a crop is flipped; 0 where left and right matter, as for digits.
        precision: precision of the products in the pool's members: tensorfloat32 where the hardware has such products (NVIDIA from Ampere
            on; a CPU computes large 3 x 3 convolutions by Winograd's tiles instead, at 2 to 7 times the rounding error, see
            `ssdd_jax.nets.winograd`), float32, or bfloat16, which also holds activations. The regression runs in float32 in any case.
    """

    steps: int = within(600, 0)
    batch_size: int = within(256, 1)
    final_rate: float = within(1e-3, 0.0, 1.0)
    b1: float = within(0.9, 0.0, 0.99999)
    b2: float = within(0.999, 0.0, 0.999999)
    weight_decay: float = within(0.0, 0.0)
    ridge: float = within(1e-6, 0.0)
    ridge_scale: str = one_of("trace", "mean_trace", "absolute")
    real_augment: str = one_of("views", "crops", "fresh")
    real_views: tuple[str, ...] = ("identity",)
    real_crops: int = within(8, 1)
    real_padding: int = within(4, 0)
    real_flip: float = within(0.5, 0.0, 1.0)
    precision: str = one_of(*PRECISIONS)


@dataclass(frozen=True)
class EvaluationSpec:
    """Student pretraining, and which protocols read the student's representation.

    Attributes:
        split: 'test', or 'validation' while settings are being chosen.
        students: networks by label, for a cross-architecture table; none means the pool's network, `config.student`.
        datasets: further target datasets by label; the distilled set's own always comes first.
        only: restricts the students, by label and separated by commas.
        protocols: among `ssdd_jax.registry.PROTOCOLS`; `config.protocols` has their settings.
        controls: none (an untrained student), teacher_init (the untrained teacher's network; both with features of
            standard deviation 1, since theirs is arbitrary, as the teacher's are then read), teacher, and full (a student
            pretrained on all training images with the teacher's representations, as many updates as `updates`, or epochs).
        teacher_targets: whether the images of every label set are read once more, with the teacher's representations of them as targets
            (rows NAME-teacher), which tells what is in the images from what is in the labels.
        epochs: epochs of student pretraining; exactly one of `epochs` and `updates` is positive.
        updates: updates of student pretraining, the same number whatever the size of the set.
        recipes: recipes of student pretraining, by what the set's targets are.
        vit_recipe: that of a ViT, which SGD at this rate does not train.
        published: what a publication reports, by method; the report shows it next to the run's own numbers.
    """

    split: str = one_of("test", "validation")
    students: Mapping[str, NetSpec] = field(default_factory=dict)
    datasets: Mapping[str, DataSpec] = field(default_factory=dict)
    only: str = ""
    protocols: tuple[str, ...] = field(default=("linear", "few", "knn"), metadata={"registry": PROTOCOLS})
    controls: tuple[str, ...] = one_of(*CONTROLS, default=("none", "teacher_init", "teacher"))
    teacher_targets: bool = False
    epochs: int = within(0, 0)
    updates: int = within(300, 0)
    batch_size: int = within(256, 1)
    recipes: Mapping[str, RecipeSpec] = field(default_factory=lambda: dict(RECIPES))
    vit_recipe: RecipeSpec = VIT_RECIPE
    published: Mapping[str, PublishedSpec] = field(default_factory=dict)

    def recipe(self, net: NetSpec, target_kind: str) -> tuple[str, RecipeSpec]:
        """Return where in the section the recipe of a network is, and the recipe; of the set it depends on the kind of targets alone."""
        if NETS[net.net].recipe == "vit":
            return "vit_recipe", self.vit_recipe
        return f"recipes.{target_kind}", {**RECIPES, **self.recipes}[target_kind]


@dataclass(frozen=True)
class CheckpointSpec:
    """When a stage saves its state, and what stays.

    Attributes:
        every: outer or teacher steps between two checkpoints.
        minutes: at most so long from one to the next, also in students' pretraining; 0 goes by steps alone.
        keep: how many of the newest stay.
        keep_every: checkpoints whose step is a multiple of this stay as well; 0 keeps none of them.
    """

    every: int = within(1000, 1)
    minutes: float = within(5.0, 0.0)
    keep: int = within(2, 2)
    keep_every: int = within(0, 0)


@dataclass(frozen=True)
class MemorySpec:
    """How much of an outer step is in memory at a time. It changes results by rounding alone.

    Attributes:
        chunk_size: how many real images, and how many support images, pass through a member together; 0 takes as many as stay in the
            caches on a CPU, where that is also faster, and all of them on accelerators.
        remat: support images' activations are recomputed where their gradient is needed, instead of being kept.
        limit_gb: a step that takes more memory (GB) is refused; 0 takes what the device has.
    """

    chunk_size: int = within(0, 0)
    remat: bool = False
    limit_gb: float = within(0.0, 0.0)


@dataclass(frozen=True)
class DevicesSpec:
    """How a run lies on many devices; nothing but rounding depends on it.

    Attributes:
        pool: how many devices side by side have members of their own, of `pool.members_per_step`; rows are spread over the rest. More
            than 1 saves memory and no time: XLA gathers what the convolutions of side by side members work on.
        heartbeat_s: seconds after which a process that does not answer is taken for lost.
    """

    pool: int = within(1, 1)
    heartbeat_s: int = within(60, 5)


@dataclass(frozen=True)
class RunSpec:
    """A complete run. `only` restricts it to some of `methods`, by name and separated by commas.

    Attributes:
        protocols: their settings, by name; `evaluation.protocols` says which are run.
        num_pairs: N; the budget of every method is N (H W C + d) numbers.
        seeds: seeds of the distillations and their students.
        seeds_at_once: how many seeds are vmapped together; 0 takes all on accelerators and one on a CPU, where
            batched kernels turn convolutions into slow grouped ones. Together they round otherwise than alone: seed 1 among three
            differs from seed 1 alone in the fifth digit of `repr_error`. Where single results are compared, give 1.
        steps_per_dispatch: outer steps in one call of the device; 0 takes 50 on accelerators and 1 on a CPU, where
            XLA runs convolutions inside a loop several times slower.
        log_every: steps between lines of metrics.jsonl.
        logger: where those lines go in addition to the file, names among `ssdd_jax.registry.LOGGERS` separated by commas.
    """

    name: str = "run"
    num_pairs: int = within(10, 1)
    seeds: tuple[int, ...] = within((0, 1, 2), 0, MAX_SEED)
    seeds_at_once: int = within(0, 0)
    steps_per_dispatch: int = within(0, 0)
    log_every: int = within(50, 1)
    logger: str = ""
    only: str = ""
    checkpoints: CheckpointSpec = CheckpointSpec()
    devices: DevicesSpec = DevicesSpec()
    data: DataSpec = DataSpec()
    teacher: TeacherSpec = TeacherSpec()
    student: NetSpec = NetSpec(widths=(16, 32, 64))
    pool: PoolSpec = PoolSpec()
    outer: OuterSpec = OuterSpec()
    trials: TrialsSpec = TrialsSpec()
    memory: MemorySpec = MemorySpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    protocols: Mapping[str, Any] = field(default_factory=protocol_defaults, metadata={"registry": PROTOCOLS})
    methods: Mapping[str, Any] = field(default_factory=dict, metadata={"registry": METHODS})

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"config.seeds is {self.seeds}, expected distinct whole numbers; e.g. --config.seeds='(0, 1, 2)'")
        if self.pool.members_per_step > self.pool.size:
            raise InputError(
                f"config.pool.members_per_step is {self.pool.members_per_step}, expected at most config.pool.size = {self.pool.size}"
            )
        if (self.evaluation.epochs > 0) == (self.evaluation.updates > 0):
            raise InputError("config.evaluation: give either epochs or updates, and set the other to 0")
        if self.evaluation.split == "validation" and self.data.validation == 0:
            raise InputError("config.evaluation.split is 'validation' but config.data.validation is 0; hold out a share, such as 0.1")
        for name in self.methods:
            if name in CONTROLS:
                raise InputError(f"config.methods.{name} has the name of a control; expected another than {', '.join(CONTROLS)}")
        for name in self.chosen_loggers():
            LOGGERS.check(name, f"config.logger names {name!r}")
        _check_names("config.evaluation.recipes", "kinds of targets", tuple(self.evaluation.recipes), dict.fromkeys(TARGET_KINDS))
        _check_names("config.only", "methods", self.chosen_methods(), self.methods)
        _check_names("config.evaluation.only", "students", self.chosen_students(), self.students())

    def members(self) -> Mapping[str, NetSpec]:
        """Return the networks of the pool's members, by label."""
        return self.pool.nets or {self.student.net: self.student}

    def chosen_methods(self) -> tuple[str, ...]:
        """Return the names of the methods to run."""
        return names_in(self.only) or tuple(self.methods)

    def chosen_loggers(self) -> tuple[str, ...]:
        """Return the names of the loggers."""
        return names_in(self.logger)

    def students(self) -> Mapping[str, NetSpec]:
        """Return the students to evaluate with, by label."""
        return self.evaluation.students or {self.student.net: self.student}

    def chosen_protocols(self) -> Mapping[str, Any]:
        """Return the settings of the protocols to run, by name in the order of tables."""
        return {name: self.protocols.get(name) or PROTOCOLS.spec(name)() for name in PROTOCOLS if name in self.evaluation.protocols}

    def chosen_students(self) -> tuple[str, ...]:
        """Return the labels of the students to evaluate with."""
        return names_in(self.evaluation.only) or tuple(self.students())


def _check_names(where: str, what: str, names: tuple[str, ...], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"{where} names {name!r}, expected {what} among {', '.join(known)}{nearest(name, known)}")
