"""Students' pretraining in a run: what a recipe says is what its steps do."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import line_registered

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.optimizers import student_optimizer
from ssdd_jax.core.pool import half_squared_error, init_member
from ssdd_jax.errors import InputError
from ssdd_jax.evals.student import label_loss, make_augment, make_student_step
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.pairs import Pairs
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.spec import DataSpec, EvaluationSpec, NetSpec, RunSpec, TeacherSpec
from ssdd_jax.stages.cells import Cell, Scope, student_rate
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.sets import StoredSet
from ssdd_jax.stages.student import Compiled, get_student, pretrain, pretrain_on_all

# Seven rows make two batches of an epoch; its momentum starts afresh after four of six updates.
RECIPE = replace(LABEL_RECIPES["dc"], epochs=3, batch_size=4, decay_at=2 / 3, augment="color")
UPDATES, SEED = 6, 5


@pytest.fixture
def line():
    with line_registered():
        yield


@pytest.fixture
def context(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.RandomState(0)
    images = {split: random.randint(0, 256, (7, 4, 4, 1), np.uint8) for split in ("train", "test")}
    np.savez("mine.npz", y_train=np.arange(7) % 3, y_test=np.arange(7) % 3, **{f"x_{split}": part for split, part in images.items()})
    evaluation = EvaluationSpec(recipes={"labels": RECIPE, "representation": RECIPE}, updates=100)
    small = dict(teacher=TeacherSpec(widths=(2,)), student=NetSpec("line"))
    spec = RunSpec(data=DataSpec("arrays:mine.npz", validation=0.0), evaluation=evaluation, **small)
    return Context(spec, load_data(spec.data, "test"), tmp_path, Metrics(tmp_path / "metrics.jsonl"), Display(quiet=True))


def by_hand(learner, loss, images, targets):
    optimizer = student_optimizer(RECIPE, UPDATES, 2)
    step = jax.jit(make_student_step(learner=learner, optimizer=optimizer, loss=loss, augment=make_augment(RECIPE)))
    schedule = batch_schedule(step_key(SEED, Stream.STUDENT_STEP), len(images), 4, UPDATES)
    member = init_member(step_key(SEED, Stream.STUDENT_INIT), learner, optimizer)
    for number in range(UPDATES):
        member, _ = step(member, number, schedule, images, targets, SEED)
    return member.variables


@pytest.mark.parametrize(("name", "loss"), [("", label_loss), ("squared_error", half_squared_error)])
def test_epochs_batches_augmentation_loss_and_the_optimizer_are_those_of_the_recipe(context, name, loss):
    recipes = {"labels": replace(RECIPE, loss=name)}
    context.spec = replace(context.spec, evaluation=replace(context.spec.evaluation, recipes=recipes))
    targets = np.eye(3, dtype=np.float32)[np.arange(7) % 3]
    student = get_student(context, Compiled(), "line", 3, "labels")
    images = context.normalized_images(np.arange(7))
    expected = by_hand(student.learner, loss, images, jnp.asarray(targets))
    (on_set,) = pretrain(context, student, "set", context.workdir / "set", [SEED], [Pairs(np.asarray(images), targets, {})])
    (on_all,) = pretrain_on_all(context, student, "full", context.workdir / "all", [SEED], context.train_images, jnp.asarray(targets))
    for variables in (on_set, on_all):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), variables, expected)


def test_a_recipe_of_rate_0_takes_that_of_each_set(context):
    targets = np.eye(3, dtype=np.float32)[np.arange(7) % 3]
    images = np.asarray(context.normalized_images(np.arange(7)))
    seeds, rates = [SEED, SEED + 1], [0.5, 0.02]
    sets = [Pairs(images, targets, {"learning_rate": rate}) for rate in rates]
    student = get_student(context, Compiled(), "line", 3, "labels")

    def trained(rate, seeds, sets, rates):
        evaluation = replace(context.spec.evaluation, recipes={"labels": replace(RECIPE, learning_rate=rate)})
        own = replace(context, spec=replace(context.spec, evaluation=evaluation))
        fresh = replace(student, compiled=Compiled())
        return pretrain(own, fresh, "set", context.workdir / "set", seeds, sets, rates)

    together = trained(0.0, seeds, sets, [pairs.learning_rate for pairs in sets])
    for seed, pairs, rate, found in zip(seeds, sets, rates, together, strict=True):
        (expected,) = trained(rate, [seed], [pairs], ())
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected)
    with pytest.raises(
        NumericalError, match=r"set: the learning rate that the set was made with is -0\.1, at which nothing can be trained"
    ):
        trained(0.0, seeds, sets, [0.5, -0.1])


@pytest.mark.parametrize(("manifest", "expected"), [({"learning_rate": 2}, 2.0), ({}, None), ({"learning_rate": "fast"}, None)])
def test_a_set_without_a_rate_is_refused_by_a_recipe_that_takes_it(context, manifest, expected):
    (context.workdir / "manifest.json").write_text(json.dumps({"layout": {"target_kind": "logits"}, **manifest}))
    recipes = {"logits": LABEL_RECIPES["datm"], "representation": replace(RECIPE, learning_rate=0.0)}
    spec = replace(context.spec, evaluation=replace(context.spec.evaluation, recipes=recipes))
    scope = Scope(replace(context, spec=spec), {"mine": {0: StoredSet(context.workdir)}}, ("none", "full"))
    assert student_rate(scope, Cell("none", "line", "mine", 0)) is None
    for method in ("mine", "full"):
        cell = Cell(method, "line", "mine", 0)
        if method == "mine" and expected:
            assert student_rate(scope, cell) == expected
            continue
        with pytest.raises(
            InputError, match=f"learning_rate is 0, which takes the rate that a set was made with, but {method} has none"
        ) as caught:
            student_rate(scope, cell)
        assert "\n" not in str(caught.value)
    # A recipe with a rate of its own asks for none.
    plain = Scope(context, scope.sets, scope.controls)
    assert student_rate(plain, Cell("mine", "line", "mine", 0)) is None
