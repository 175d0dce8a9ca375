"""The sections of config.methods: a dataclass per kind of method."""

from dataclasses import dataclass, field
from functools import partial

from ssdd_jax.registry import KERNELS, STORES
from ssdd_jax.settings.augment import WITH_FLIP, WITHOUT_FLIP
from ssdd_jax.settings.fields import MAX_SEED, PRECISIONS, named, one_of, within
from ssdd_jax.settings.spec import NetSpec

# The network of most methods of labels, and its widths in smoke runs.
_LABEL_NET = partial(NetSpec, "convnet_in")
_SMALL = {"smoke": {"widths": (4,)}}

AUTO = -1
"""A size that short trials choose, see `ssdd_jax.methods.automatic`."""
AUTO_VIEWS = ("auto",)
"""Views that they choose."""
AUTO_STEPS = -2
"""Steps where they choose between none and `outer.steps`."""


@dataclass(frozen=True)
class RegressionSpec:
    """The method of KRR-ST and of Yu et al.: a parameterization, its views, and how long kernel ridge regression moves it.

    Where -1 or ("auto",) is said to choose a setting, short trials do so, see `ssdd_jax.methods.automatic` and `TrialsSpec`.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        selection: the real images that the set starts from: random ones, those nearest to the centres of k-means on the teacher's
            representations, or those whose mean representation comes nearest to that of all (herding).
        kernel: among `ssdd_jax.registry.KERNELS`.
        bias: whether the features of a network have a constant 1 appended (KRR-ST), or not (FRePo).
        depth: hidden layers of an infinitely wide network; 0 takes 1 for fully connected ones and 3 for convolutional ones.
        image_store: how images are kept, among `ssdd_jax.registry.STORES`; '' is factored where there are bases, cosine where these are
            kept as frequencies, else plain.
        repr_store: how representations are kept, likewise.
        base_size: side of the stored images or image bases; 0 is the full resolution, -1 chooses.
        image_bases: U; 0 stores plain images, -1 chooses.
        frequencies: K, how many of the lowest frequencies of an image basis are kept, at most its numbers; 0 keeps its pixels, -1
            chooses.
        repr_bases: V; 0 stores plain representations, -1 chooses.
        views: predefined augmentations; the identity first where networks predict their shifts or targets are automatic. ("auto",)
            chooses among flips that share the targets of the identity and rotations whose targets networks predict, which then take part
            in all steps.
        view_targets: one of stored, shared, network a view (the first stored), or ("auto",): shared where the
            teacher's shift is at most `shared_below` of its variance, else whichever of network and stored fits more images.
        shared_below: see `view_targets`.
        hidden: h of the approximation networks; -1 chooses.
        network_steps: Adam steps of their fit.
        joint: last share of the outer steps in which the networks take part and are trained by the outer loss.
        factor_scale: 'balanced', 'each', or the number that bases are multiplied and coefficients divided by, see
            `ssdd_jax.core.stores.factored.factored`.
        images: m; 0 takes as many as the budget holds, at most all training images.
        bits: of every number that is stored, 32, 8 or 4, or -1, which chooses; a row of fewer than 32 has a step of 32 bits besides. The
            budget stays N (H W C + d) numbers of 32 bits.
        loss: error of the representations that a regression predicts. squared is the mean square (KRR-ST); whitened weights every principal
            component of the teacher's representations by its variance; centres is the cross-entropy of which of
            `ssdd_jax.methods.outer_loss.CENTRES` clusters of them is near.
        averaged: last share of the outer steps over which the set is averaged; 0 keeps that of the last step.
        rounding: whether steps already see the rounded numbers (trained; gradients pass straight through), or they are rounded at the end.
        steps: outer steps; -1 takes `outer.steps`, -2 chooses between them and none.
        learning_rate: learning rate of the outer optimizer.
        support_images: distilled images that take part in one step, drawn afresh; 0 takes all, -1 as many as make 512 rows.
    """

    kind: str = one_of("regression")
    selection: str = one_of("random", "kmeans", "herding")
    kernel: str = named("feature", KERNELS)
    bias: bool = True
    depth: int = within(0, 0)
    image_store: str = named("", STORES)
    repr_store: str = named("", STORES)
    base_size: int = within(0, AUTO)
    image_bases: int = within(0, AUTO)
    frequencies: int = within(0, AUTO)
    repr_bases: int = within(0, AUTO)
    views: tuple[str, ...] = ("identity",)
    view_targets: tuple[str, ...] = ("auto",)
    shared_below: float = within(0.05, 0.0)
    hidden: int = within(4, AUTO)
    network_steps: int = within(2000, 1)
    joint: float = within(0.0, 0.0, 1.0)
    factor_scale: str = "balanced"
    images: int = within(0, 0)
    bits: int = within(32, AUTO, 32)
    loss: str = one_of("squared", "whitened", "centres")
    averaged: float = within(0.0, 0.0, 1.0)
    rounding: str = one_of("trained", "end")
    steps: int = within(-1, AUTO_STEPS)
    learning_rate: float = within(1e-2, 0.0)
    support_images: int = within(0, AUTO)


@dataclass(frozen=True)
class RandomLabelsSpec:
    """Real images with their labels, of every class as many as can be: the control of methods whose targets are labels.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`.
        images: m; 0 takes as many as the budget holds, in which a hard label is one number.
    """

    kind: str = one_of("random_labels")
    images: int = within(0, 0)


@dataclass(frozen=True)
class KipSpec:
    """Kernel inducing points (Nguyen et al., 2021): images, and perhaps labels, from which a kernel regression predicts labels.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        kernel: among `ssdd_jax.registry.KERNELS`; one without members, such as those of infinitely wide networks.
        depth: hidden layers of the network; 0 takes 1 for fully connected ones and 3 for convolutional ones.
        ridge: lambda of the kernel ridge regression; `outer.ridge` is that of other methods.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        learn_labels: whether labels move with the images, at the same rate. A label then takes one number per class of the budget.
        label_solve: whether the labels are solved for once the images have moved (with steps=0: for real images), in closed form on all
            training images. A label then takes one number per class of the budget.
        label_ridge: ridge of that solution, see `ssdd_jax.core.krr.solve_labels`.
        images: m, a multiple of the number of classes; 0 takes as many as the budget holds.
        steps: outer steps; -1 takes `outer.steps`.
        learning_rate: of Adam, constant.
    """

    kind: str = one_of("kip")
    kernel: str = named("fc_ntk", KERNELS)
    depth: int = within(0, 0)
    ridge: float = within(1e-6, 0.0)
    ridge_scale: str = one_of("mean_trace", "trace", "absolute")
    learn_labels: bool = False
    label_solve: bool = False
    label_ridge: float = within(1e-6, 0.0)
    images: int = within(0, 0)
    steps: int = within(-1, -1)
    learning_rate: float = within(4e-2, 0.0)


@dataclass(frozen=True)
class DsaSpec:
    """Gradient matching under differentiable Siamese augmentation (Zhao and Bilen, 2021), class by class; DC without augmentation.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        net: the network whose gradients are matched; one without batch norm.
        precision: of its products, see `OuterSpec`.
        networks: how many fresh networks, one after the other, images are moved with.
        image_steps: T, steps of the images with each network; 0 takes DSA's, by the images of a class: 1: 1, 10: 10, 20: 20, ..., 50: 50.
        network_epochs: zeta, epochs that a network is trained on the images between two of these steps; -1 takes DSA's: 1: 1, 10: 50,
            20: 25, 30: 20, 40: 15, 50: 10.
        batch_per_class: real images of a class in a step, drawn without replacement.
        learning_rate: of the images, for the sum of the classes' distances.
        momentum: of the images; it lives through all networks.
        network_rate: of SGD, constant, that trains a network.
        network_batch: distilled images in one of its updates.
        augment: strategy of `ssdd_jax.core.diff_augment`, equal for the real and the distilled images of a class in a step; '' is none.
        align_corners: see `RecipeSpec`.
        images: m, a multiple of the number of classes; 0 takes as many as the budget holds.
    """

    kind: str = one_of("dsa")
    net: NetSpec = field(default_factory=_LABEL_NET, metadata=_SMALL)
    precision: str = one_of(*PRECISIONS)
    networks: int = within(1001, 0, smoke=2)
    image_steps: int = within(0, 0, smoke=2)
    network_epochs: int = within(-1, -1, smoke=1)
    batch_per_class: int = within(256, 1, smoke=8)
    learning_rate: float = within(0.1, 0.0)
    momentum: float = within(0.5, 0.0, 1.0)
    network_rate: float = within(0.01, 0.0)
    network_batch: int = within(256, 1)
    augment: str = one_of("", WITH_FLIP, WITHOUT_FLIP, default=WITH_FLIP)
    align_corners: bool = False
    images: int = within(0, 0)


@dataclass(frozen=True)
class IdmSpec:
    """Matching of mean features in a queue of networks that are trained meanwhile (IDM; Zhao et al., 2023).

    A distilled image is a mosaic of four, which its views enlarge; they share its label.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        net: the network whose features are matched.
        precision: of its products, see `OuterSpec`.
        partition: whether images are mosaics; otherwise each is one image.
        steps: steps, in each of which the classes are matched one after the other.
        batch_per_class: real images of a class in a step, drawn without replacement.
        learning_rate: of the images, SGD.
        momentum: of the images.
        ce_weight: weight of the cross-entropy of a class's distilled images, times the network's training accuracy in percent.
        queue: how many networks there are at most; the oldest makes room for a fresh one.
        push_every: steps after which a fresh network joins.
        reset_every: steps after which all training accuracies are measured anew; until a network is trained then, its weight is 0.
        network_updates: updates that two random networks get in a step, on real images.
        network_batch: real images in one of them.
        network_rate: of SGD with momentum .9 and weight decay 5e-4.
        augment: strategy of `ssdd_jax.core.diff_augment`, equal for the real and the distilled images of a class in a step; '' is none.
        align_corners: see `RecipeSpec`.
        images: m, a multiple of the number of classes; 0 takes as many as the budget holds.
    """

    kind: str = one_of("idm")
    net: NetSpec = field(default_factory=_LABEL_NET, metadata=_SMALL)
    precision: str = one_of(*PRECISIONS)
    partition: bool = True
    steps: int = within(20_000, 0, smoke=4)
    batch_per_class: int = within(256, 1, smoke=8)
    learning_rate: float = within(0.2, 0.0)
    momentum: float = within(0.5, 0.0, 1.0)
    ce_weight: float = within(0.5, 0.0)
    queue: int = within(100, 3, smoke=4)
    push_every: int = within(30, 1, smoke=2)
    reset_every: int = within(100, 1)
    network_updates: int = within(10, 1, smoke=2)
    network_batch: int = within(256, 1, smoke=16)
    network_rate: float = within(0.01, 0.0)
    augment: str = one_of("", WITH_FLIP, WITHOUT_FLIP, default=WITH_FLIP)
    align_corners: bool = False
    images: int = within(0, 0)


@dataclass(frozen=True)
class FrepoSpec:
    """FRePo (Zhou et al., 2022): images and labels from which the features of a pool of networks predict labels; published defaults.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        net: network of the pool's members, with one output per class.
        flip: whether every image also takes part mirrored, with the same label; the set then has two views and stores no more.
        ridge: lambda of the kernel ridge regression; `outer.ridge` is that of other methods.
        ridge_scale: see `ssdd_jax.core.krr.krr_predict`.
        images: m, a multiple of the number of classes; 0 takes as many as the budget holds, in which a label is one number per class.
        steps: outer steps; -1 takes `outer.steps`.
        learning_rate: of LAMB, for images and labels alike.
        final_rate: share of it that a cosine leaves at the end.
        pool_size: L, the number of members, of which each step draws one. Member i starts untrained, as if it had had i / L of `max_age`
            updates, so that not all are replaced at once.
        max_age: number of updates after which a member is replaced by a fresh one.
        member_learning_rate: of the members' Adam.
        member_images: images, not mirrored, that a member is trained on in one step, drawn afresh; 0 takes all.
    """

    kind: str = one_of("frepo")
    net: NetSpec = field(default_factory=partial(NetSpec, "convnet_frepo"), metadata=_SMALL)
    flip: bool = False
    ridge: float = within(1e-6, 0.0)
    ridge_scale: str = one_of("mean_trace", "trace", "absolute")
    images: int = within(0, 0)
    steps: int = within(-1, -1)
    learning_rate: float = within(3e-4, 0.0)
    final_rate: float = within(0.1, 0.0, 1.0)
    pool_size: int = within(10, 1, smoke=2)
    max_age: int = within(100, 1, smoke=3)
    member_learning_rate: float = within(3e-4, 0.0)
    member_images: int = within(1000, 0)


@dataclass(frozen=True)
class ExpertSpec:
    """Networks whose training a trajectory method imitates: their parameters after every epoch are kept.

    SGD at a constant rate, without momentum or weight decay, in shuffled batches. Published are 100 experts of 50 (MTT) to 100 epochs.

    Attributes:
        files: published trajectories to read instead of training any: a PyTorch file replay_buffer_N.pt, or the folder that has them. The
            settings from `batch_size` to `alpha`, and `seed`, are then without effect.
        count: number of experts; of those in files, the first.
        epochs: epochs of each.
        optimizer: gsam (DATM: SGD on the gradient at a point where the loss is higher, see `ssdd_jax.core.trajectories.gsam_direction`), or
            sgd (MTT).
        rho: how far away that point is.
        alpha: how much of the gradient's part that is orthogonal to the gradient there is taken off.
        augment: strategy of `ssdd_jax.core.diff_augment` on every batch of theirs and of the distilled set in the steps that imitate them,
            one operation per batch and parameters per image; '' is none. One without flips where left and right matter.
        net: the network of the experts and of those steps; one without batch norm.
        precision: precision of its products, see `OuterSpec`.
        seed: experts are those of all seeds of a run.
    """

    files: str = ""
    count: int = within(5, 1)
    epochs: int = within(10, 1)
    batch_size: int = within(256, 1)
    learning_rate: float = within(0.01, 1e-6)
    optimizer: str = one_of("gsam", "sgd")
    rho: float = within(0.01, 0.0)
    alpha: float = within(0.3, 0.0)
    augment: str = one_of(WITH_FLIP, WITHOUT_FLIP, "")
    net: NetSpec = field(default_factory=_LABEL_NET, metadata=_SMALL)
    precision: str = one_of(*PRECISIONS)
    seed: int = within(0, 0, MAX_SEED)


@dataclass(frozen=True)
class DatmSpec:
    """Trajectory matching with difficulty alignment (DATM, Guo et al., 2024); `MTT` has the settings of Cazenavette et al. (2022).

    A step starts where an expert was after some epoch, takes `syn_steps` steps of SGD on the set, and moves the set, its soft labels and
    the rate of these steps so that they end near where the expert was `expert_epochs` later.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        experts: the trajectories.
        init: the images that the set starts from, equally many of each class: those that an expert classifies correctly, or any.
        soft_labels: whether labels are logits, which start as the experts' and move; such a label takes one number per class of the
            budget, a hard one one number.
        syn_steps: steps on the set.
        batch_size: images of the set in one of these steps; 0 takes all.
        expert_epochs: epochs of the expert that they imitate.
        min_start: earliest epoch to start from.
        max_start: the epoch before which all start.
        first_max_start: `max_start` at the first step, which grows from there (difficulty alignment).
        expand_steps: steps in which it grows; 0 has `max_start` from the beginning.
        threshold: a step whose loss is larger moves nothing; at a loss of 1 the set leads nowhere nearer to the expert. 0 has none.
        student_learning_rate: rate of the steps on the set at the beginning. It is learned, and kept in the set's manifest.
        learning_rate: of SGD with momentum .5 on the images.
        label_learning_rate: of SGD with momentum .9 on soft labels.
        rate_learning_rate: of SGD with momentum .5 on the rate.
        images: m, a multiple of the number of classes; 0 takes as many as the budget holds.
        steps: steps of the set; -1 takes `outer.steps`.
    """

    kind: str = one_of("datm")
    experts: ExpertSpec = field(
        default_factory=ExpertSpec, metadata={"smoke": {"files": "", "count": 2, "epochs": 2, "net": {"widths": (4,)}}}
    )
    init: str = one_of("correct", "real", smoke="real")
    soft_labels: bool = True
    syn_steps: int = within(15, 1, smoke=2)
    batch_size: int = within(0, 0)
    expert_epochs: int = within(1, 1, smoke=1)
    min_start: int = within(0, 0, smoke=0)
    max_start: int = within(4, 1, smoke=1)
    first_max_start: int = within(2, 1, smoke=1)
    expand_steps: int = within(200, 0)
    threshold: float = within(1.0, 0.0)
    student_learning_rate: float = within(0.01, 0.0)
    learning_rate: float = within(100.0, 0.0)
    label_learning_rate: float = within(2.0, 0.0)
    rate_learning_rate: float = within(1e-5, 0.0)
    images: int = within(0, 0)
    steps: int = within(-1, -1)


MTT = DatmSpec(experts=ExpertSpec(optimizer="sgd"), init="real", soft_labels=False, expand_steps=0, threshold=0.0)
"""Trajectory matching without what DATM adds: real images with hard labels, all starts from the beginning, all steps accepted."""
