"""The sections of config.methods: a dataclass per kind of method."""

from dataclasses import dataclass

from ssdd_jax.registry import KERNELS, STORES
from ssdd_jax.settings.fields import named, one_of, within


@dataclass(frozen=True)
class RegressionSpec:
    """The method of KRR-ST and of Yu et al.: a parameterization, its views, and how long kernel ridge regression moves it.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`; it picks the settings that a section has.
        selection: the real images that the set starts from: random ones, those nearest to the centres of k-means on the teacher's
            representations, or those whose mean representation comes nearest to that of all (herding).
        kernel: among `ssdd_jax.registry.KERNELS`.
        image_store: how images are kept, among `ssdd_jax.registry.STORES`; '' is factored where there are bases, else plain.
        repr_store: how representations are kept, likewise.
        base_size: side of the stored images or image bases; 0 is the full resolution.
        image_bases: U; 0 stores plain images.
        repr_bases: V; 0 stores plain representations.
        views: predefined augmentations; the identity first where networks predict their shifts or targets are automatic.
        view_targets: one of stored, shared, network a view (the first stored), or ("auto",): shared where the
            teacher's shift is at most `shared_below` of its variance, else whichever of network and stored fits more images.
        shared_below: see `view_targets`.
        hidden: h of the approximation networks.
        network_steps: Adam steps of their fit.
        joint: last share of the outer steps in which the networks take part and are trained by the outer loss.
        factor_scale: 'balanced', or the number that bases are multiplied and coefficients divided by.
        images: m; 0 takes as many as the budget holds.
        steps: outer steps; -1 takes `outer.steps`.
        learning_rate: learning rate of the outer optimizer.
        support_images: distilled images that take part in one step, drawn afresh; 0 takes all.
    """

    kind: str = one_of("regression")
    selection: str = one_of("random", "kmeans", "herding")
    kernel: str = named("feature", KERNELS)
    image_store: str = named("", STORES)
    repr_store: str = named("", STORES)
    base_size: int = within(0, 0)
    image_bases: int = within(0, 0)
    repr_bases: int = within(0, 0)
    views: tuple[str, ...] = ("identity",)
    view_targets: tuple[str, ...] = ("auto",)
    shared_below: float = within(0.05, 0.0)
    hidden: int = within(4, 0)
    network_steps: int = within(2000, 1)
    joint: float = within(0.0, 0.0, 1.0)
    factor_scale: str = "balanced"
    images: int = within(0, 0)
    steps: int = within(-1, -1)
    learning_rate: float = within(1e-2, 0.0)
    support_images: int = within(0, 0)


@dataclass(frozen=True)
class RandomLabelsSpec:
    """Real images with their labels, of every class as many as can be: the control of methods whose targets are labels.

    Attributes:
        kind: among `ssdd_jax.registry.METHODS`.
        images: m; 0 takes as many as the budget holds, in which a hard label is one number.
    """

    kind: str = one_of("random_labels")
    images: int = within(0, 0)
