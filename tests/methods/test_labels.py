import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax import expand, load_distilled, read_pairs
from ssdd_jax.core.distilled import num_stored_scalars, take_images
from ssdd_jax.core.stores.classes import hard_labels
from ssdd_jax.errors import InputError
from ssdd_jax.evals.student import label_loss, logit_loss
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.methods import labels as module
from ssdd_jax.methods import regression
from ssdd_jax.methods.labels import label_targets
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.methods.selection import balanced_rows
from ssdd_jax.progress import Display
from ssdd_jax.settings.methods import KipSpec, RandomLabelsSpec, RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.stages.checks import check_sizes
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.distill import distill
from ssdd_jax.stages.sets import complete_sets

LABELS = np.array([2, 0, 1, 2, 2])


def test_labels_become_one_hot_centred_or_logits():
    one_hot = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(label_targets(LABELS, 3), one_hot)
    np.testing.assert_allclose(label_targets(LABELS, 3, "centred"), one_hot - 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(label_targets(LABELS, 3, "centred")).sum(1), 0, atol=1e-6)
    np.testing.assert_array_equal(label_targets(LABELS, 3, "logits"), 20 * one_hot)


def test_a_students_loss_is_the_same_for_every_form_of_a_label():
    outputs = jnp.asarray(np.random.RandomState(0).normal(size=(5, 200)), jnp.float32)
    one_hot, centred, logits = (label_targets(LABELS, 200, form) for form in ("one_hot", "centred", "logits"))
    expected = label_loss(outputs, one_hot)
    np.testing.assert_array_equal(label_loss(outputs, centred), expected)
    np.testing.assert_allclose(logit_loss(outputs, logits), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("labels", "form", "message"),
    [
        ([0, 3], "one_hot", r"labels are int64 \(2,\) from 0 to 3, expected integers \(n,\) from 0 to 2"),
        ([-1, 0], "one_hot", "from -1 to 0"),
        ([0.0, 1.0], "one_hot", "labels are float64"),
        ([0, 1], "soft", "form is 'soft', expected one of one_hot, centred, logits"),
    ],
)
def test_what_are_no_labels_is_refused(labels, form, message):
    with pytest.raises(ValueError, match=message) as error:
        label_targets(np.array(labels), 3, form)
    assert "\n" not in str(error.value)


def test_rows_are_of_every_class_as_many_as_can_be():
    labels = np.repeat([0, 1, 2], [2, 20, 30])[np.random.RandomState(0).permutation(52)]
    for count, expected in ((3, [1, 1, 1]), (6, [2, 2, 2]), (10, [2, 4, 4]), (52, [2, 20, 30])):
        rows = balanced_rows(0, count, labels)
        assert len(set(rows.tolist())) == count
        np.testing.assert_array_equal(np.bincount(labels[rows]), expected)
    # Where some classes have one more, chance says which.
    assert len({tuple(np.bincount(labels[balanced_rows(seed, 4, labels)], minlength=3)) for seed in range(8)}) > 1
    np.testing.assert_array_equal(balanced_rows(3, 7, labels), balanced_rows(3, 7, labels))
    assert set(balanced_rows(3, 7, labels)) != set(balanced_rows(4, 7, labels))


def test_a_hard_label_is_one_number():
    rows = np.eye(5, dtype=np.float32)[[[3, 0, 4]]]
    store = hard_labels(jnp.asarray(rows))
    assert num_stored_scalars(store) == 3
    np.testing.assert_array_equal(store.decode(store.codes), rows)
    np.testing.assert_array_equal(store.take(jnp.array([2, 0]), axis=1).codes, [[[4.0], [3.0]]])


SIZES = Sizes(10, (8, 8, 1), 16, 3, {})


def test_a_plan_counts_an_image_and_one_number_a_label():
    plan = module.plan("mine", RandomLabelsSpec(), SIZES)
    # 10 (64 + 16) numbers hold 12 images of 64 + 1.
    assert (plan.budget, plan.num_images, plan.stored_scalars) == (800, 12, 12 * 65)
    assert module.plan("mine", RandomLabelsSpec(images=10), SIZES).num_images == 10
    with pytest.raises(InputError, match=r"config\.methods\.mine\.images is 13, expected at most 12"):
        module.plan("mine", RandomLabelsSpec(images=13), SIZES)


@pytest.mark.parametrize("setting", ["image_store", "repr_store"])
def test_a_regression_has_no_hard_labels_to_keep(setting):
    with pytest.raises(InputError, match=rf"config\.methods\.mine\.{setting}: store 'classes' keeps hard labels, expected one for images"):
        regression.plan("mine", RegressionSpec(**{setting: "classes"}), SIZES)


def make_spec(**changes):
    config = default_config(random_labels=RandomLabelsSpec())
    config.data.source = "digits"
    smoke(config)
    config.update(changes)
    return to_spec(config)


def test_a_run_takes_real_images_with_their_labels_and_no_teacher(tmp_path):
    spec = make_spec()
    data = load_data(spec.data, "test")
    context = Context(spec, data, tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display(quiet=True))
    distill(context)
    folder = tmp_path / "distilled" / "random_labels" / "seed_0"
    manifest, pairs = json.loads((folder / "manifest.json").read_text()), read_pairs(folder)
    # 4 (64 + 16) numbers hold four images of 64 + 1.
    assert (manifest["num_images"], manifest["stored_scalars"], manifest["teacher"], manifest["steps"]) == (4, 4 * 65, None, 0)
    assert pairs.target_kind == "labels"
    every = np.asarray(context.normalized_images(np.arange(len(data.train_images))))
    for image, target in zip(pairs.images, pairs.targets, strict=True):
        (row,) = np.flatnonzero((every == image).all((1, 2, 3)))
        np.testing.assert_array_equal(target, np.eye(10)[data.train_labels[row]])
    assert len(set(pairs.targets.argmax(1))) == 4
    distilled = load_distilled(folder)
    np.testing.assert_array_equal(expand(take_images(distilled, jnp.array([1, 3])))[1][0], pairs.targets[[1, 3]])
    assert not (tmp_path / "checkpoints").exists()


def test_data_without_labels_are_refused_in_one_line(tmp_path):
    spec = make_spec()
    data = replace(load_data(spec.data, "test"), train_labels=None)
    with pytest.raises(
        InputError, match=r"config\.methods\.random_labels needs labels, digits has none; leave it out of config\.only"
    ) as error:
        check_sizes(spec, data, ("random_labels",))
    assert "\n" not in str(error.value)


def test_a_method_that_a_budget_has_no_image_of_each_class_for_is_left_out_with_its_reason(tmp_path, capsys):
    config = default_config(random_labels=RandomLabelsSpec(), kip=KipSpec())
    config.data.source = "digits"
    smoke(config)
    spec, reason = to_spec(config), "the budget of 320 numbers holds 4 images, expected one of each of the 10 classes"
    data = load_data(spec.data, "test")
    check_sizes(spec, data, spec.chosen_methods())
    context = Context(spec, data, tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display())
    assert (context.methods, list(context.absent)) == (("random_labels",), ["kip"])
    distill(context)
    assert reason in " ".join(capsys.readouterr().out.split())
    assert list(complete_sets(context)) == ["random_labels"]
    # A run of nothing else is refused.
    with pytest.raises(InputError, match=reason):
        check_sizes(spec, data, ("kip",))
