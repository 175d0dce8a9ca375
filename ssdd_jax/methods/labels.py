"""Labels as targets, and real images with their labels: the control that methods of label sets are compared with."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssdd_jax.core.distilled import DistilledSet, Layout, finished_shapes, init_distilled
from ssdd_jax.core.krr import centred_labels
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.core.stores.store import Start
from ssdd_jax.methods.method import LABELS, Finished, Inputs, Method, Phase
from ssdd_jax.methods.plan import Plan, Sizes, fill_budget
from ssdd_jax.methods.selection import balanced_images, balanced_rows
from ssdd_jax.settings.methods import RandomLabelsSpec

LABEL_LOGIT = 20.0
"""The logit of an image's own class, those of the others being 0: its share of the softmax is 1 up to 1e-6 with some hundred classes."""


def label_targets(labels: np.ndarray, num_classes: int, form: str = "one_hot") -> Float[Array, "n k"]:
    """Return labels as what a student or a kernel predicts.

    Args:
        labels: integers "n" in [0, num_classes), of any labelled source.
        num_classes: number of classes k.
        form: 'one_hot'; 'centred', which is one-hot minus 1 / k, as kernel methods take them; or 'logits', `LABEL_LOGIT` times one-hot.

    Raises:
        ValueError: a label is out of range, or the form is unknown.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(
            f"label_targets: labels are {labels.dtype} {labels.shape} from {labels.min(initial=0)} to {labels.max(initial=0)}, "
            f"expected integers (n,) from 0 to {num_classes - 1}; number the classes from 0"
        )
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    forms = {"one_hot": one_hot, "centred": centred_labels(jnp.asarray(labels), num_classes), "logits": np.float32(LABEL_LOGIT) * one_hot}
    if form not in forms:
        raise ValueError(f"label_targets: form is {form!r}, expected one of {', '.join(forms)}")
    return jnp.asarray(forms[form])


def balanced_start(inputs: Inputs, plan: Plan, seed: int, form: str = "one_hot", repr_store: Start = Plain) -> DistilledSet:
    """Return the set that a method of labels starts from: real training images, equally many of each class, class after class.

    Args:
        inputs: what the method is given.
        plan: its plan; the number of images is a multiple of the classes.
        seed: of the choice.
        form: of `label_targets`.
        repr_store: how labels are kept.

    Raises:
        InputError: a class has too few training images.
    """
    labels, classes = inputs.class_labels(), inputs.num_classes
    rows = balanced_images(f"config.methods.{inputs.name}", seed, plan.num_images, labels, classes)
    targets = jnp.broadcast_to(label_targets(labels[rows], classes, form), (len(plan.layout.views), len(rows), classes))
    return init_distilled(inputs.images(rows), targets, plan.layout, repr_store=repr_store)


def plan(name: str, spec: RandomLabelsSpec, sizes: Sizes) -> Plan:
    """Count H W C + 1 numbers an image, a hard label being one.

    Raises:
        InputError: the budget does not hold the images that are asked for.
    """
    layout = Layout(sizes.image_shape, sizes.image_shape, target_kind="labels")
    shapes = lambda count, layout: finished_shapes(count, layout, sizes.num_classes, repr_store=hard_labels)
    return fill_budget(f"config.methods.{name}", sizes, [layout], shapes, spec.images, "raise config.num_pairs")


def start(spec: RandomLabelsSpec, plan: Plan, inputs: Inputs, seed: int) -> DistilledSet:
    """Return real training images, of every class as many as can be, with their labels."""
    labels = inputs.class_labels()
    rows = balanced_rows(seed, plan.num_images, labels)
    targets = label_targets(labels[rows], inputs.num_classes)
    return init_distilled(inputs.images(rows), targets[None], plan.layout, repr_store=hard_labels)


def phases(spec: RandomLabelsSpec, plan: Plan, inputs: Inputs) -> tuple[Phase, ...]:
    """Return none: nothing is moved."""
    return ()


def finish(spec: RandomLabelsSpec, plan: Plan, inputs: Inputs, state: Any) -> Finished:
    """Return the set as it started."""
    return Finished(state, {"steps": 0})


METHOD = Method(
    spec=RandomLabelsSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=(),
    plan=plan,
    start=start,
    phases=phases,
    finish=finish,
)
