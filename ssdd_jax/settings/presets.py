"""Methods by the names of their table rows, and settings that several configs share: smoke runs, small students, the paper's scale."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssdd_jax.errors import InputError, nearest
from ssdd_jax.registry import METHODS, PROTOCOLS
from ssdd_jax.settings.digest import json_ready
from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.methods import (
    AUTO,
    AUTO_STEPS,
    AUTO_VIEWS,
    DatmSpec,
    DsaSpec,
    ExpertSpec,
    FrepoSpec,
    IdmSpec,
    KipSpec,
    RandomLabelsSpec,
    RegressionSpec,
)
from ssdd_jax.settings.spec import NetSpec, RunSpec, TrialsSpec

PLAIN = RegressionSpec()
PRESETS: dict[str, RegressionSpec] = {
    # N real images with the teacher's representations: KRR-ST before its first step.
    "random": replace(PLAIN, steps=0),
    # Real images that represent the others, likewise with the teacher's representations.
    "kmeans": replace(PLAIN, selection="kmeans", steps=0),
    "herding": replace(PLAIN, selection="herding", steps=0),
    "krr_st": PLAIN,
    # The controls for `basis`: its initial set, and images as small without bases.
    "basis_init": RegressionSpec(base_size=14, image_bases=24, repr_bases=16, steps=0),
    "raw_small": RegressionSpec(base_size=14),
    "basis": RegressionSpec(base_size=14, image_bases=24, repr_bases=16),
    "ours": RegressionSpec(base_size=14, image_bases=24, repr_bases=16, views=("identity", "rot90", "rot180", "rot270")),
}

AUTOMATIC = RegressionSpec(
    selection="kmeans",
    bits=AUTO,
    steps=AUTO_STEPS,
    frequencies=AUTO,
    image_bases=AUTO,
    repr_bases=AUTO,
    views=AUTO_VIEWS,
    hidden=AUTO,
    support_images=AUTO,
    factor_scale="each",
    learning_rate=0.03,
)
"""A method of which N is all that has to be set."""
NAMED = {**PRESETS, "auto": AUTOMATIC}


class _Config(ConfigDict):
    """A ConfigDict that takes NumPy's numbers: ml_collections refuses them where a setting is a number of Python's."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, json_ready(value, tuples=True) if isinstance(value, np.generic | np.ndarray | list | tuple) else value)


def to_config(spec: Any) -> ConfigDict:
    """Return a spec as the ConfigDict that a config file edits; sections are such, too."""
    nested = lambda values: _Config({name: nested(value) if isinstance(value, Mapping) else value for name, value in values.items()})
    return nested(json_ready(spec, tuples=True))


def default_config(**methods: Any) -> ConfigDict:
    """Return the defaults as a ConfigDict to edit, with all methods, or with those given."""
    return to_config(RunSpec(methods=methods or PRESETS))


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Raise an InputError unless a config's variant is '' or among `known`."""
    if variant and variant not in known:
        raise InputError(f"variant {variant!r} is unknown, expected none or one of {', '.join(known)}{nearest(variant, known)}")


def smoke(config: Any) -> None:
    """Shrink a config to a run of seconds: every stage and method runs, but the numbers mean nothing."""
    config.num_pairs = 4
    config.seeds = (0,)
    config.log_every = 2
    config.checkpoints.every = 4
    config.data.limit = 256
    config.teacher.update(net="convnet", widths=(16,), steps=4, batch_size=32, warmup_steps=1, projector_width=16)
    config.student.update(net="convnet", widths=(8,))
    for net in (*config.evaluation.students.values(), *config.pool.nets.values()):
        net.width_factor = 1 / 16
    config.pool.update(size=2, max_age=3)
    config.outer.update(steps=6, batch_size=32)
    config.evaluation.update(epochs=0, updates=5)
    for recipe in (*config.evaluation.recipes.values(), config.evaluation.vit_recipe):
        recipe.epochs = 0
    smaller = lambda spec: {f.name: f.metadata["smoke"] for f in fields(spec) if "smoke" in f.metadata}
    config.trials.update(smaller(TrialsSpec))
    for name, section in config.protocols.items():
        section.update(smaller(PROTOCOLS.spec(name)))
    for method in config.methods.values():
        method.update(smaller(METHODS.spec(method.kind)))
        if "steps" in method:
            method.steps = min(method.steps, 6)
        if method.kind == "regression":
            method.network_steps = 20
            method.images = 6 if method.image_bases or method.base_size else 0
            method.image_bases, method.repr_bases = min(method.image_bases, 4), min(method.repr_bases, 4)
            method.base_size, method.frequencies = min(method.base_size, 4), min(method.frequencies, 8)


SIX = ("convnet", "vgg11", "alexnet", "resnet18", "mobilenet", "vit")


def six_students(width_factor: float = 1.0) -> ConfigDict:
    """Return the students of the paper's cross-architecture table, by label, for `config.evaluation.students`."""
    return to_config({net: NetSpec(net, width_factor=width_factor) for net in SIX})


def two_core_students(config: Any) -> None:
    """Set small students: a convnet of the pool's widths, an eighth of the published widths for resnet18, a quarter of them for the others.

    Only the convnet is evaluated until `config.evaluation.only` is emptied.
    """
    config.evaluation.update(students=six_students(0.25), only="convnet")
    config.evaluation.students.convnet.update(widths=config.student.widths, width_factor=1.0)
    config.evaluation.students.resnet18.width_factor = 0.125


LABEL_NET = NetSpec("convnet_in", (32, 32, 32))
"""The network of the literature at a quarter of its width."""


def two_core_label_methods(images: int = 0) -> dict[str, Any]:
    """Return the methods of labels by the names of their rows, in settings for two cores.

    (Published are 1,001 networks of width 128 for DSA, 20,000 steps for IDM, 100 experts of 100 epochs for DATM, 500,000 steps for FRePo.)

    Args:
        images: images of each set, a multiple of the number of classes; 0 takes as many as the budget holds. DSA is then moved by one step
            for each network, whatever that number is.
    """
    dsa = {} if images else dict(image_steps=1, network_epochs=1)
    return {
        "random_labels": RandomLabelsSpec(images=images),
        "dsa": DsaSpec(images=images, net=LABEL_NET, networks=300, batch_per_class=64, **dsa),
        "idm": IdmSpec(
            images=images, net=LABEL_NET, steps=300, batch_per_class=64, queue=10, push_every=5, network_updates=5, network_batch=64
        ),
        "datm": DatmSpec(images=images, experts=ExpertSpec(count=3, epochs=6, net=LABEL_NET), steps=300),
        "frepo": FrepoSpec(images=images, net=NetSpec("convnet_frepo", (16, 32, 64)), pool_size=5, learning_rate=1e-3, steps=1000),
        "kip": KipSpec(images=images, steps=200),
    }


def two_core_labels(config: Any, images: int = 0) -> tuple[str, ...]:
    """Add rows of labels, the student that the literature reads them with and its recipes; rows that a config has already stay its own.

    Returns:
        The rows of labels.
    """
    rows = two_core_label_methods(images)
    config.methods.update(to_config({name: row for name, row in rows.items() if name not in config.methods}))
    config.evaluation.students = {**config.evaluation.students, "convnet_in": to_config(LABEL_NET)}
    config.evaluation.recipes.update(labels=to_config(LABEL_RECIPES["dc"]), logits=to_config(LABEL_RECIPES["datm"]))
    return tuple(rows)


def paper_scale(config: Any, *, num_train: int, epochs: int) -> None:
    """Set what Yu et al. and KRR-ST share at 32 pixels: teacher (solo-learn's recipe), student, pool, outer loop and protocol.

    All six students are set; only the ConvNet is evaluated until `config.evaluation.only` is emptied.

    Args:
        config: as `default_config` returns it.
        num_train: number of training images, which make one epoch of the teacher.
        epochs: epochs of the teacher's pretraining; solo-learn takes 1,000 on CIFAR.
    """
    # The published numbers come from networks that saw every training image.
    config.data.validation = 0.0
    per_epoch = num_train // 256
    config.teacher.update(
        net="resnet18",
        widths=(),
        steps=epochs * per_epoch,
        batch_size=256,
        optimizer="lars",
        learning_rate=0.3,
        weight_decay=1e-4,
        warmup_steps=10 * per_epoch,
        warmup_rate=3e-5,
        projector_width=2048,
        projector_layers=2,
    )
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.interpolation = "cubic"
    config.student.widths = ()
    config.pool.update(size=10, max_age=1000)
    config.outer.update(steps=30_000, batch_size=1024)
    config.evaluation.update(updates=0, epochs=1000, students=six_students(), only="convnet")
    config.protocols.linear.steps = 5000
