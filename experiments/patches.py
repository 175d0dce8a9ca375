"""Patches of photographs, four pairs: a demo that was tried, see experiments/README.md.

python experiments/make_patches.py patches.npz
python -m ssdd_jax.main --config experiments/patches.py --config.data.source=arrays:patches.npz --workdir runs/patches
"""

from dataclasses import replace

from ssdd_jax.settings.presets import PRESETS, default_config

VIEWS = ("identity", "rot90", "rot180", "rot270", "hflip", "vflip")


def get_config(variant=""):
    del variant
    bases = dict(base_size=8, image_bases=8, repr_bases=8, learning_rate=0.02)
    methods = {
        **{name: PRESETS[name] for name in ("random", "kmeans", "herding")},
        "krr_st": replace(PRESETS["krr_st"], learning_rate=0.1),
        "raw_small": replace(PRESETS["raw_small"], base_size=8, learning_rate=0.02),
        "basis": replace(PRESETS["basis"], **bases),
        "ours": replace(PRESETS["ours"], **bases, hidden=2, joint=0.5, views=VIEWS),
    }
    config = default_config(**methods)
    config.name = "patches"
    config.num_pairs = 4
    config.teacher.update(widths=(16, 32, 64), steps=600, batch_size=128, projector_width=128, warmup_steps=20)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.update(min_crop_scale=0.3)
    config.student.widths = (16, 32)
    config.pool.update(size=4, max_age=40)
    config.outer.update(steps=300, batch_size=128)
    config.evaluation.updates = 500
    config.protocols.linear.steps = 1000
    return config
