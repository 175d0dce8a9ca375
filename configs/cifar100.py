"""CIFAR-100 with the paper's settings at N = 100 (Yu, Yao, Chiu; ICLR 2025).

Expected, linear evaluation of a ConvNet: random 43.66, krr_st 47.00, ours 52.41. Not run yet.

The images are read from data/cifar100.npz: x_train, y_train, x_test, y_test as uint8 NHWC arrays.
"""

from dataclasses import replace

from ssdd_jax.run.spec import METHODS, check_variant, default_config, smoke


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
    config.teacher.update(
        net="resnet18",
        widths=(64, 128, 256, 512),
        steps=1000 * 45_000 // 256,
        optimizer="lars",
        learning_rate=0.3,
        warmup_steps=10 * 45_000 // 256,
        projector_width=2048,
        standardize=False,
    )
    config.student.widths = (128, 256, 512)
    config.pool.update(size=10, max_age=1000)
    config.outer.update(steps=30_000, batch_size=1024, real_views=("identity", "hflip"))
    config.evaluation.update(updates=0, epochs=1000)
    if variant == "smoke":
        smoke(config)
    return config
