"""CIFAR-100 with the paper's settings (Yu, Yao, Chiu; ICLR 2025), from cifar-100-binary.tar.gz in --config.data.data_dir.

The default is N = 100 and its six students; n25, n50, n1000 and n5000 are the other budgets of the paper, and downstream evaluates
the students on CIFAR-10, CUB-200-2011 and Stanford Dogs too, at 32 pixels. Expected, linear evaluation of a ConvNet at N = 100:
random 43.66, krr_st 47.00, ours 52.41. Not run yet.
"""

from dataclasses import replace

from ssdd_jax.settings.presets import PRESETS, check_variant, default_config, paper_scale, smoke, to_config
from ssdd_jax.settings.spec import DataSpec

BUDGETS = {"n25": 25, "n50": 50, "n1000": 1000, "n5000": 5000}


def get_config(variant=""):
    check_variant(variant, (*BUDGETS, "downstream", "smoke"))
    num_pairs = BUDGETS.get(variant, 100)
    bases = min(2 * num_pairs, 400)
    paper = dict(base_size=16, image_bases=bases, repr_bases=bases, hidden=4)
    methods = {name: replace(method, **(paper if method.image_bases else {}), learning_rate=1e-3) for name, method in PRESETS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=16)
    methods["ours"] = replace(methods["ours"], view_targets=("stored", "network", "network", "network"))
    # One step cannot hold thousands of images.
    methods = {name: replace(method, support_images=512 if num_pairs >= 1000 else 0) for name, method in methods.items()}
    config = default_config(**methods)
    config.name = "cifar100"
    config.num_pairs = num_pairs
    config.data.source = "cifar100"
    paper_scale(config, num_train=50_000, epochs=1000)
    config.teacher.standardize = False
    config.outer.real_augment = "fresh"
    if variant == "downstream":
        small = {name: DataSpec(name, size=32, fit="resize", validation=0.0) for name in ("cifar10", "cub200", "dogs")}
        config.evaluation.datasets = to_config(small)
    if variant == "smoke":
        smoke(config)
    return config
