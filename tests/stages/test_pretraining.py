"""Students' pretraining in a run: what a recipe says is what its steps do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.core.optimizers import student_optimizer
from ssdd_jax.core.pool import half_squared_error, init_member
from ssdd_jax.evals.student import label_loss, make_augment, make_student_step
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.pairs import Pairs
from ssdd_jax.nets import NETS, Net
from ssdd_jax.nets.layers import Linear
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.spec import DataSpec, EvaluationSpec, NetSpec, RunSpec, TeacherSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.student import Compiled, get_student, pretrain, pretrain_on_all

# Seven rows make two batches of an epoch; its momentum starts afresh after four of six updates.
RECIPE = replace(LABEL_RECIPES["dc"], epochs=3, batch_size=4, decay_at=2 / 3, augment="color")
UPDATES, SEED = 6, 5


class Line(nn.Module):
    """A linear layer on pixels, which compiles quickly."""

    num_outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        features = x.reshape(len(x), -1)
        return features, Linear(self.num_outputs)(features)


@pytest.fixture
def line():
    NETS.register("line", Net(lambda widths, num_outputs, pooled: Line(num_outputs), lambda shape: (1,)))
    yield
    NETS.remove("line")


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
