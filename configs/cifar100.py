"""CIFAR-100 with the paper's settings at N = 100 (Yu, Yao, Chiu; ICLR 2025).

Expected, linear evaluation of a ConvNet: random 43.66, krr_st 47.00, ours 52.41. Not run yet.

The images are read from data/cifar100.npz: x_train, y_train, x_test, y_test as uint8 NHWC arrays.
"""

from dataclasses import replace

from ssdd_jax.run.spec import METHODS, check_variant, default_config, paper_scale, smoke


def get_config(variant=""):
    check_variant(variant, ("smoke",))
    paper = dict(base_size=16, image_bases=200, repr_bases=200, hidden=4)
    methods = {name: replace(method, **(paper if method.image_bases else {}), learning_rate=1e-3) for name, method in METHODS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=16)
    methods["ours"] = replace(methods["ours"], target_kinds=("stored", "network", "network", "network"))
    config = default_config(**methods)
    config.name = "cifar100"
    config.num_pairs = 100
    config.data.update(source="arrays", path="data/cifar100.npz")
    paper_scale(config, num_train=50_000, epochs=1000)
    config.teacher.standardize = False
    config.outer.real_views = ("identity", "hflip")
    if variant == "smoke":
        smoke(config)
    return config
