"""Fashion-MNIST."""

from ssdd_jax.run.spec import METHODS, default_config


def get_config(variant=""):
    config = default_config()
    config.name = "fashion_mnist"
    config.num_pairs = 10
    config.data.source = "idx"
    config.teacher.widths = (32, 64, 128)
    config.teacher.steps = 1500
    config.teacher.batch_size = 256
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.min_crop_scale = 0.3
    config.evaluation.probe_steps = 2000
    return config
