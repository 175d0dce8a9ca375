"""Any .npz of x_train, y_train, x_test, y_test (uint8 NHWC): --config arrays --config.data.path=FILE.npz.

The sizes are for 32 x 32 colour images on two cores.
"""

from dataclasses import replace

from ssdd_jax.run.spec import METHODS, check_variant, default_config, smoke


def get_config(variant=""):
    check_variant(variant, ("smoke",))
    bases = dict(base_size=8, image_bases=96, repr_bases=24)
    methods = {name: replace(method, **(bases if method.image_bases else {})) for name, method in METHODS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=8)
    config = default_config(**methods)
    config.name = "arrays"
    config.num_pairs = 10
    config.data.update(source="arrays", path="data/arrays.npz")
    config.teacher.update(widths=(16, 32, 64, 128), steps=1500, batch_size=256)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.update(min_crop_scale=0.2, saturation=0.4, hue=0.2)
    config.outer.steps = 400
    if variant == "smoke":
        smoke(config)
    return config
