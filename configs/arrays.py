"""Any .npz of x_train, y_train, x_test, y_test (uint8 NHWC)."""

from ssdd_jax.run.spec import METHODS, default_config


def get_config(variant=""):
    config = default_config()
    config.name = "arrays"
    config.data.source = "arrays"
    config.data.path = "/tmp/w/emoji.npz"
    config.teacher.steps = 1500
    return config
