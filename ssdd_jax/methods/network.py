"""The network of a method of labels."""

from typing import Any

import jax

from ssdd_jax.core.learner import Learner
from ssdd_jax.errors import InputError
from ssdd_jax.nets import student_learner
from ssdd_jax.settings.spec import NetSpec


def own_learner(name: str, net: NetSpec, image_shape: tuple[int, int, int], num_classes: int, precision: str, **settings: Any) -> Learner:
    """Return the network of a method's settings, config.methods.NAME.net, with an output per class.

    Raises:
        InputError: its widths do not fit the images.
    """
    return student_learner(net, image_shape, num_classes, f"config.methods.{name}.net", precision=precision, **settings)


def check_no_batch_norm(name: str, net: NetSpec, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse a network that normalizes over a batch.

    Raises:
        InputError: the message names the network.
    """
    learner = own_learner(name, net, image_shape, num_classes, "float32")
    if jax.tree.leaves(jax.eval_shape(learner.init, jax.random.key(0))["batch_stats"]):
        raise InputError(
            f"config.methods.{name}.net is {net.net!r}, whose batch norm makes an image's gradient depend on the others of its batch; "
            "expected a network without, such as 'convnet_in'"
        )
