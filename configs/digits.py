"""scikit-learn's 1,797 handwritten digits, 8 x 8: a demonstration that runs anywhere in a few minutes.

Images this small leave little for bases to factor out, and a rotation turns a 6 into a 9: expect `basis` to tie with
`krr_st`, and `ours` to gain nothing from its views.
"""

from dataclasses import replace

from ssdd_jax.settings.presets import PRESETS, check_variant, default_config, smoke


def get_config(variant=""):
    check_variant(variant, ("smoke",))
    bases = dict(base_size=8, image_bases=16, repr_bases=12)
    methods = {name: replace(method, **(bases if method.image_bases else {}), learning_rate=0.02) for name, method in PRESETS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=4)
    config = default_config(**methods)
    config.name = "digits"
    config.num_pairs = 20
    config.data.source = "digits"
    config.teacher.update(widths=(32, 64), steps=300, batch_size=128, projector_width=128, warmup_steps=20)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.update(flip=0.0, min_crop_scale=0.5)
    config.student.widths = (16, 32)
    config.pool.update(size=4, max_age=40)
    config.outer.update(steps=300, batch_size=128)
    config.evaluation.updates = 200
    config.protocols.linear.steps = 1000
    config.protocols.finetune.update(padding=1, flip=0.0)
    if variant == "smoke":
        smoke(config)
    return config
