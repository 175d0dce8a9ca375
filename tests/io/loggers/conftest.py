"""A short run as a logger sees it, to be read back from what the logger has written."""

import numpy as np
import pytest
from PIL import Image

from ssdd_jax.io.loggers import make_loggers


class Run:
    """What is logged, and a function that logs it by a logger of a name."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.settings = {"outer": {"steps": 5}, "seeds": [0, 1], "name": "toy"}
        self.picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
        self.header, self.rows = ["method", "linear probe"], [["krr_st", "75.0"], ["ours", "76.1"]]

    def log(self, name):
        warnings = []
        loggers = make_loggers([name], self.workdir, "toy", self.settings, warn=warnings.append)
        loggers("teacher", 50, {"loss": [0.5], "probe_accuracy": 0.25})
        loggers("distill/ours/seeds_0_1", 50, {"loss": [1.0, 2.0]})
        loggers.picture("distill/ours", 50, "images/seed_1", lambda: self.picture)
        loggers.table("Results", self.header, self.rows)
        loggers.close()
        assert warnings == []


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "my_run")
