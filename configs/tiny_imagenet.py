"""Tiny-ImageNet at 64 pixels, N = 200 (Yu, Yao, Chiu; ICLR 2025), from tiny-imagenet-200.zip in --config.data.data_dir.

Its published validation images are the test split, since the labels of its test images are not published. Not run yet.
"""

from dataclasses import replace

from ssdd_jax.settings.presets import PRESETS, check_variant, default_config, paper_scale, smoke


def get_config(variant=""):
    check_variant(variant, ("smoke",))
    paper = dict(base_size=16, image_bases=400, repr_bases=400, hidden=16)
    methods = {name: replace(method, **(paper if method.image_bases else {}), learning_rate=1e-3) for name, method in PRESETS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=16)
    methods["ours"] = replace(methods["ours"], view_targets=("stored", "network", "network", "network"))
    # The budget holds thousands of images; a step takes this many.
    methods = {name: replace(method, support_images=512) for name, method in methods.items()}
    config = default_config(**methods)
    config.name = "tiny_imagenet"
    config.num_pairs = 200
    config.data.source = "tiny_imagenet"
    paper_scale(config, num_train=100_000, epochs=1000)
    config.teacher.standardize = False
    config.outer.update(steps=20_000, real_augment="fresh")
    if variant == "smoke":
        smoke(config)
    return config
