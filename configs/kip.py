"""Kernel inducing points on scikit-learn's digits: ten images, one of each class, and what a label solve makes of real ones.

A KIP number is either of kernel regression or of a student that was trained on the set; the two must not be compared. The protocols read
students; `python experiments/kip_accuracy.py WORKDIR` prints the test accuracy of the kernel regression.
"""

from ssdd_jax.settings.methods import KipSpec
from ssdd_jax.settings.presets import check_variant, default_config, smoke


def get_config(variant=""):
    check_variant(variant, ("smoke",))
    config = default_config(
        kip_init=KipSpec(steps=0, images=10),
        label_solve=KipSpec(steps=0, images=10, label_solve=True),
        kip=KipSpec(images=10),
        kip_labels=KipSpec(images=10, learn_labels=True),
    )
    config.name = "kip"
    config.num_pairs = 6
    config.data.source = "digits"
    config.teacher.update(widths=(32, 64))
    config.student.widths = (16, 32)
    config.outer.update(steps=200, batch_size=512)
    config.evaluation.update(updates=200, protocols=("knn",), controls=("none",))
    if variant == "smoke":
        smoke(config)
        config.num_pairs = 10
    return config
