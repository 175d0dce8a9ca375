"""scikit-learn's 1,797 handwritten digits, 8 x 8: a demonstration that runs anywhere in two minutes.

So small an image leaves little for bases to factor out: expect `basis` to tie with `krr_st`, and `ours` to lose by its
rotations, which turn a 6 into a 9.
"""

from dataclasses import replace

from ssdd_jax.run.spec import METHODS, default_config


def get_config(variant=""):
    bases = dict(base_size=8, image_bases=16, repr_bases=12)
    methods = {name: replace(method, **(bases if method.image_bases else {}), learning_rate=0.02) for name, method in METHODS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=4)
    config = default_config(**methods)
    config.name = "digits"
    config.num_pairs = 20
    config.data.source = "digits"
    config.teacher.widths = (32, 64)
    config.teacher.steps = 300
    config.teacher.batch_size = 128
    config.teacher.projector_width = 128
    config.teacher.warmup_steps = 20
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.flip = 0.0
        view.min_crop_scale = 0.5
    config.student.widths = (16, 32)
    config.pool.size = 4
    config.pool.max_age = 40
    config.outer.steps = 300
    config.outer.batch_size = 128
    config.evaluation.updates = 200
    config.evaluation.probe_steps = 1000
    return config
