import shutil

import numpy as np
import pytest

from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.io.checkpoints import is_step
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.stages import pipeline


@pytest.fixture
def distil(tmp_path):
    """Return run(spec, into, **changes): distil digits, one image a class, with the settings of a smoke run; the set, and its folder."""

    def run(spec, into="", **changes):
        config = default_config(mine=spec)
        smoke(config)
        config.update({"num_pairs": 10, **changes})
        folder = tmp_path / into
        pipeline.run(to_spec(config), folder, "distill")
        return load_distilled(folder / "distilled" / "mine" / "seed_0"), folder

    return run


@pytest.fixture
def goes_on_with_equal_bits(distil):
    """Return check(spec, **changes): a run that goes on from its first checkpoint ends with the same set."""

    def check(spec, **changes):
        changes["checkpoints"] = {"every": 1, "keep": 100}
        whole, folder = distil(spec, **changes)
        shutil.rmtree(folder / "distilled")
        steps = sorted((path for path in folder.glob("checkpoints/mine-*/*/*") if is_step(path)), key=lambda path: int(path.name))
        assert len(steps) > 1
        for path in steps[1:]:
            shutil.rmtree(path)
        again, _ = distil(spec, **changes)
        np.testing.assert_array_equal(again.images.codes, whole.images.codes)
        np.testing.assert_array_equal(again.reprs.codes, whole.reprs.codes)
        return whole, folder

    return check
