"""Every dataset that is known by name, from its published files to a distilled set."""

import numpy as np
import pytest
from published import CLASSES, COUNTS, WRITERS, draw

from ssdd_jax.data.sources import NAMED, open_source
from ssdd_jax.io.artifacts import load_distilled
from ssdd_jax.io.manifest import read_manifest
from ssdd_jax.main import main


def test_every_named_dataset_has_a_writer():
    assert set(WRITERS) == set(NAMED) - {"digits"}


@pytest.mark.parametrize("name", WRITERS)
def test_published_files_are_read_prepared_and_distilled_from(name, tmp_path):
    WRITERS[name](tmp_path)
    source = open_source(name, tmp_path)
    for split, count in COUNTS.items():
        np.testing.assert_array_equal(np.bincount(source.splits[split].labels, minlength=CLASSES)[:CLASSES], count // CLASSES)
    settings = [f"--config.data.source={name}", f"--config.data.data_dir={tmp_path}", "--config.data.size=32", "--config.data.channels=3"]
    args = ["--config", "arrays:smoke", "--workdir", str(tmp_path / "run"), "--task=distill", "--config.only=random"]
    assert main([*args, *settings, "--config.data.validation=0", "--config.teacher.steps=0"]) == 0
    folder = tmp_path / "run" / "distilled" / "random" / "seed_0"
    manifest = read_manifest(folder)
    assert manifest["dataset"] == name
    # Every dataset has the same pixels, though not in the same order.
    levels = draw("train", 1)[0] / 255.0
    np.testing.assert_allclose(manifest["normalization"]["mean"], levels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest["normalization"]["std"], levels.std((0, 1, 2)), rtol=1e-12)
    assert load_distilled(folder).layout.image_shape == (32, 32, 3)
