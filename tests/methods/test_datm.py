import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import line_registered

from ssdd_jax import export_distilled, read_pairs
from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.stores.classes import Classes, hard_labels
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.errors import BudgetError, InputError
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.methods import datm
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.methods.selection import correct_images
from ssdd_jax.nets.flat import flat_learner
from ssdd_jax.progress import Display
from ssdd_jax.runtime import stop
from ssdd_jax.settings.methods import MTT, DatmSpec, ExpertSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke
from ssdd_jax.settings.spec import NetSpec
from ssdd_jax.stages import pipeline
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.distill import make_inputs

SMALL = ExpertSpec(net=NetSpec("convnet_in", (2,)))


def plan_datm(num_pairs=20, spec=DatmSpec(experts=SMALL), **settings):  # noqa: B008 - frozen
    return datm.plan("datm", replace(spec, **settings), Sizes(num_pairs, (8, 8, 1), 64, 10, {}))


def test_a_soft_label_takes_one_number_per_class_and_a_hard_one_one():
    assert (plan_datm().num_images, plan_datm().stored_scalars) == (30, 30 * (64 + 10))
    mtt = plan_datm(spec=replace(MTT, experts=SMALL), images=10)
    assert (mtt.num_images, mtt.stored_scalars) == (10, 650)
    assert (plan_datm().layout.target_kind, mtt.layout.target_kind) == ("logits", "labels")
    with pytest.raises(BudgetError, match="expected one of each of the 10 classes"):
        plan_datm(5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_start": 8, "expert_epochs": 3}, r"starts before epoch 8 \(max_start\) and imitates 3 .* expected at most .*epochs = 10"),
        ({"min_start": 4}, "min_start is 4, expected less than max_start = 4"),
        ({"min_start": 2}, "first_max_start is 2, expected more than min_start = 2 and at most max_start = 4"),
        ({"first_max_start": 5}, "first_max_start is 5, expected more than min_start = 0 and at most max_start = 4"),
        ({"experts": replace(SMALL, net=NetSpec("convnet", (2,)))}, r"experts\.net is 'convnet', which normalizes over a batch"),
        (
            {"experts": replace(SMALL, net=NetSpec("convnet_in", (2,) * 9))},
            r"config\.methods\.datm\.experts\.net: a convnet_in of 9 blocks",
        ),
        ({"experts": replace(SMALL, augment="color_spin")}, r"experts\.augment: strategy 'color_spin' has the operation 'spin'"),
        ({"images": 15}, "images is 15, expected a multiple of the 10 classes"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_datm(**settings)
    assert "\n" not in str(caught.value)


def test_a_window_that_just_fits_is_taken():
    assert plan_datm(max_start=8, expert_epochs=2, first_max_start=8).num_images == 30
    # Without growth the first limit has no effect.
    assert plan_datm(first_max_start=50, expand_steps=0).num_images == 30


def test_images_are_those_that_the_first_expert_with_enough_of_the_class_is_right_about():
    labels = np.arange(40) % 4
    # Of class 2 the first expert knows one image, the second four.
    known = [set(range(40)) - set(range(6, 40, 4)), {2, 6, 10, 14}]
    right = lambda expert, rows: np.array([row in known[expert] for row in rows.tolist()])
    rows = correct_images("config.methods.datm", 3, 12, labels, 4, right, 2)
    np.testing.assert_array_equal(labels[rows], np.repeat(np.arange(4), 3))
    assert len(set(rows.tolist())) == 12
    assert set(rows[6:9].tolist()) < known[1]
    assert set(rows.tolist()) != set(correct_images("config.methods.datm", 4, 12, labels, 4, right, 2).tolist())
    with pytest.raises(
        InputError, match=r"starts from 5 images of each class .* of class 2 there are at most 4; train experts longer"
    ) as caught:
        correct_images("config.methods.datm", 3, 20, labels, 4, right, 2)
    assert "\n" not in str(caught.value)


def test_logits_are_the_mean_over_the_experts_that_are_right_or_over_all():
    outputs = np.array([[[3.0, 1, 0], [0, 5, 1]], [[1.0, 0, 0], [4, 0, 1]], [[0.0, 9, 0], [8, 1, 0]]], np.float32)
    found = datm.mean_of_right(outputs, np.array([0, 2]))
    np.testing.assert_allclose(found, [[2, 0.5, 0], [4, 2, 2 / 3]], rtol=1e-6)
    assert found.dtype == np.float32


def linear(params, images):
    return images.reshape(len(images), -1) @ params.reshape(4, 3)


def matching(spec):
    """Return the state of a set of three images of four pixels, and an expert's two ends."""
    images = jnp.cos(jnp.arange(12.0)).reshape(3, 2, 2, 1)
    layout = Layout((2, 2, 1), (2, 2, 1), target_kind="logits" if spec.soft_labels else "labels")
    distilled = init_distilled(images, jnp.eye(3)[None], layout, repr_store=Plain if spec.soft_labels else hard_labels)
    rate = jnp.asarray(spec.student_learning_rate, jnp.float32)
    state = datm.Matching(distilled, rate, datm.make_optimizer(spec).init(datm.movable(spec, distilled, rate)), jnp.asarray(0))
    start = jnp.sin(jnp.arange(12.0))
    return state, jnp.stack([start, start + 0.1 * jnp.cos(jnp.arange(12.0))])


PLAIN = DatmSpec(experts=ExpertSpec(augment=""), syn_steps=2, learning_rate=0.5, label_learning_rate=0.25, rate_learning_rate=0.125)


def same(one, other):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_rate_of_0_is_accepted_at_threshold_1_with_a_loss_of_1():
    spec = replace(PLAIN, student_learning_rate=0.0)
    step, (state, ends) = jax.jit(datm.make_step(spec, linear)), matching(spec)
    moved, metrics = step(state, ends, jax.random.key(0))
    assert (float(metrics["loss"]), float(metrics["accepted"]), int(moved.accepted)) == (1.0, 1.0, 1)
    assert float(moved.rate) != 0.0


def test_accepted_steps_have_the_rates_and_momenta_of_each_part_and_rejected_ones_move_nothing():
    step, (state, ends) = jax.jit(datm.make_step(PLAIN, linear)), matching(PLAIN)
    first, metrics = step(state, ends, jax.random.key(0))
    assert metrics["accepted"] == 1.0
    rejecting = jax.jit(datm.make_step(replace(PLAIN, threshold=1e-6), linear))
    still, metrics = rejecting(first, ends, jax.random.key(1))
    assert metrics["accepted"] == 0.0
    assert metrics["loss"] > 1e-6
    assert same(still, first)
    # What was moved the second time with what momentum: without any gradient of its own, that of an expert that has not moved is 0.
    parts = lambda state: datm.movable(PLAIN, state.distilled, state.rate)
    optimizer = datm.make_optimizer(PLAIN)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parts(first)), first.opt_state, parts(first))
    delta = jax.tree.map(lambda new, old: new - old, parts(first), parts(state))
    for name, momentum in (("images", 0.5), ("labels", 0.9), ("rate", 0.5)):
        jax.tree.map(lambda x, y, m=momentum: np.testing.assert_allclose(x, m * y, rtol=1e-4, atol=1e-7), updates[name], delta[name])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(delta))
    # The rates are those of each part.
    faster = replace(PLAIN, learning_rate=1.0, label_learning_rate=1.0, rate_learning_rate=1.0)
    twice, _ = jax.jit(datm.make_step(faster, linear))(state, ends, jax.random.key(0))
    other = jax.tree.map(lambda new, old: new - old, parts(twice), parts(state))
    for name, factor in (("images", 2), ("labels", 4), ("rate", 8)):
        jax.tree.map(lambda x, y, f=factor: np.testing.assert_allclose(x, f * y, rtol=1e-4, atol=1e-6), other[name], delta[name])


def test_hard_labels_stay_and_without_a_threshold_all_steps_are_accepted():
    spec = replace(MTT, experts=ExpertSpec(augment=""), syn_steps=2, student_learning_rate=50.0, learning_rate=0.1)
    step, (state, ends) = jax.jit(datm.make_step(spec, linear)), matching(spec)
    moved, metrics = step(state, ends, jax.random.key(0))
    assert metrics["loss"] > 1
    assert int(moved.accepted) == 1
    assert isinstance(moved.distilled.reprs, Classes)
    assert same(moved.distilled.reprs, state.distilled.reprs)
    assert not same(moved.distilled.images, state.distilled.images)


def test_a_step_starts_in_its_window_and_ends_as_many_epochs_later():
    class Inputs:
        name, image_shape, num_classes = "datm", (8, 8, 1), 10

    spec = DatmSpec(
        experts=replace(SMALL, count=3, epochs=20), min_start=2, first_max_start=4, max_start=9, expand_steps=10, expert_epochs=5
    )
    phase = datm.matching_phase(spec, plan_datm(spec=spec), Inputs, 100)
    drawn = jax.jit(jax.vmap(phase.draw, (0, 0)))
    seen = {}
    for number, limit in ((0, 4), (5, 6), (10, 9), (99, 9)):
        (rows,) = drawn(jnp.full(300, number), jnp.arange(300))
        # Two rows of the experts are all that a step reads.
        assert rows.shape == (300, 2)
        np.testing.assert_array_equal(rows[:, 1] - rows[:, 0], 5)
        assert set(np.unique(rows[:, 0] % 21).tolist()) == set(range(2, limit))
        seen[number] = set(np.unique(rows[:, 0] // 21).tolist())
    assert seen[0] == seen[99] == {0, 1, 2}


def make_spec(**changes):
    experts = ExpertSpec(augment="", batch_size=128, net=NetSpec("line"))
    config = default_config(datm=DatmSpec(experts=experts, images=10))
    smoke(config)
    config.methods.datm.experts.update(count=2, epochs=3, learning_rate=0.1)
    config.methods.datm.experts.net.widths = ()
    config.methods.datm.init = "correct"
    config.num_pairs = 10
    config.update(changes)
    return to_spec(config)


def test_sets_start_from_real_images_with_hard_labels_or_what_experts_say(tmp_path):
    with line_registered():
        spec = make_spec()
        data = load_data(spec.data, "test")
        context = Context(spec, data, tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display(quiet=True))
        inputs, settings = make_inputs(context, "datm", None), spec.methods["datm"]
        experts = settings.experts
        last = [context.experts(experts, "here")[np.array([row])][0] for row in (3, 7)]
        learner = flat_learner(experts.net, data.image_shape, 10, "here", "float32")
        every = np.asarray(context.normalized_images(np.arange(len(data.train_images))))
        started = {}
        for name, changes in {
            "correct": {},
            "real": {"init": "real"},
            "hard": {"init": "real", "soft_labels": False},
        }.items():
            own = replace(settings, **changes)
            started[name] = datm.start(own, context.plan("datm"), inputs, 0).distilled
    rows = {}
    for name, distilled in started.items():
        rows[name] = [int(np.flatnonzero((every == image).all((1, 2, 3)))[0]) for image in np.asarray(distilled.images.rows)]
        np.testing.assert_array_equal(data.train_labels[rows[name]], np.arange(10))
    assert rows["real"] == rows["hard"] != rows["correct"]
    labels = started["hard"].reprs
    np.testing.assert_array_equal(labels.decode(labels.codes)[0], np.eye(10))
    # Real images have the logits of the first expert, right or not.
    outputs = {name: [np.asarray(learner.apply(params, every[rows[name]])) for params in last] for name in rows}
    np.testing.assert_allclose(started["real"].reprs.rows[0], outputs["real"][0], rtol=1e-4, atol=1e-4)
    assert (outputs["real"][0].argmax(1) != np.arange(10)).any()
    right = np.stack([part.argmax(1) == np.arange(10) for part in outputs["correct"]])
    assert right.any(0).all()
    expected = [np.mean([part[i] for part, ok in zip(outputs["correct"], right[:, i], strict=True) if ok], 0) for i in range(10)]
    np.testing.assert_allclose(started["correct"].reprs.rows[0], expected, rtol=1e-4, atol=1e-4)


def test_a_run_makes_a_set_that_an_interrupted_one_makes_to_the_same_bits(tmp_path, monkeypatch):
    whole, cut, attempts, allowed = tmp_path / "whole", tmp_path / "cut", 0, [0]

    def requested():
        allowed[0] -= 1
        return allowed[0] < 0

    with line_registered():
        pipeline.run(make_spec(), whole, "distill")
        with monkeypatch.context() as patch:
            patch.setattr(stop, "requested", requested)
            patch.setattr(stop._Request, "seen", False)
            finished = False
            while not finished and attempts < 10:
                # In the second expert, in the set's steps, and not at all.
                attempts, allowed[0] = attempts + 1, 7
                try:
                    pipeline.run(make_spec(), cut, "distill")
                    finished = True
                except stop.Stopped:
                    continue
    assert finished
    assert attempts == 3
    for file in ("metrics.jsonl", "distilled/datm/seed_0/distilled.safetensors"):
        assert (whole / file).read_bytes() == (cut / file).read_bytes(), file
    folder = whole / "distilled" / "datm" / "seed_0"
    manifest, pairs = json.loads((folder / "manifest.json").read_text()), read_pairs(folder)
    assert (manifest["num_images"], manifest["stored_scalars"], manifest["teacher"], manifest["steps"]) == (10, 740, None, 6)
    assert manifest["learning_rate"] == pairs.learning_rate != 0.01
    assert 0 < manifest["accepted_steps"] <= 6
    assert pairs.target_kind == "logits"
    # The rate goes along with what is exported.
    assert read_pairs(export_distilled(folder, tmp_path / "export", "npz")).learning_rate == pairs.learning_rate
