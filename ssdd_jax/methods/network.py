"""The network of a method of labels."""

from typing import Any

from ssdd_jax.core.learner import Learner
from ssdd_jax.nets import student_learner
from ssdd_jax.settings.spec import NetSpec


def own_learner(name: str, net: NetSpec, image_shape: tuple[int, int, int], num_classes: int, **settings: Any) -> Learner:
    """Return the network of a method's settings, config.methods.NAME.net, with an output per class; `settings` are of `make_learner`.

    Raises:
        InputError: its widths do not fit the images.
    """
    return student_learner(net, image_shape, num_classes, f"config.methods.{name}.net", **settings)
