import json

import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.io.metrics import Metrics
from ssdd_jax.progress import Display
from ssdd_jax.settings.methods import RandomLabelsSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.stages import pipeline
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.sets import own_sets, with_teacher


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the settings and the folder of a run of real images with their labels, read with and without their labels."""
    config, folder = default_config(random_labels=RandomLabelsSpec()), tmp_path_factory.mktemp("run")
    smoke(config)
    config.update(num_pairs=20)
    config.evaluation.update(controls=(), teacher_targets=True, protocols=("knn",))
    spec = to_spec(config)
    pipeline.run(spec, folder)
    return spec, folder


def test_a_label_set_has_the_accuracy_of_its_student_and_a_row_with_the_teachers_targets(finished):
    spec, folder = finished
    results = json.loads((folder / "results.json").read_text())
    labels, teacher = results["rows"]
    assert (labels["method"], labels["target_kind"], teacher["method"], teacher["target_kind"]) == (
        "random_labels",
        "labels",
        "random_labels-teacher",
        "representation",
    )
    assert 0 <= labels["accuracy"] <= 1
    assert "repr_error" not in labels
    assert teacher["repr_error"] > 0
    assert "accuracy" not in teacher
    # Its targets are 16 numbers each, not one.
    count = labels["num_images"]
    assert (labels["stored_scalars"], teacher["stored_scalars"]) == (count * 65, count * (64 + 16))
    text = (folder / "report" / "results.md").read_text()
    assert "that of a student's own outputs, where its set has labels" in text
    assert "| accuracy |" in text


def test_its_targets_are_the_teachers_of_the_same_images(finished):
    spec, folder = finished
    context = Context(spec, load_data(spec.data, "test"), folder, Metrics(folder / "again.jsonl"), Display(quiet=True))
    sets = own_sets(context)
    again = with_teacher(context, sets)["random_labels-teacher"][0]
    labels, pairs = sets["random_labels"][0].pairs(context.data), again.pairs(context.data)
    np.testing.assert_array_equal(pairs.images, labels.images)
    np.testing.assert_allclose(pairs.targets, context.represent(jnp.asarray(labels.images)), atol=1e-5)
    assert again.made_with(context.teacher_digest)
    assert again.identity != sets["random_labels"][0].identity
    # A set whose targets are representations already is not read twice.
    assert with_teacher(context, {"again": {0: again}}) == {}
