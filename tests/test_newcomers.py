"""Everything that can be added from outside, each by one object and one registration, from a config to a row of the table."""

import json
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import struct
from PIL import Image
from quick import VIEWS

from ssdd_jax import expand, export_distilled, load_distilled, read_pairs
from ssdd_jax.core.distilled import Layout, finished_shapes, init_distilled
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import append_bias, ridge_predict
from ssdd_jax.core.outer import support_rows
from ssdd_jax.core.stores.store import StoreKind
from ssdd_jax.data import Source, Split
from ssdd_jax.data.sources import NAMED
from ssdd_jax.evals.protocol import Protocol
from ssdd_jax.methods.method import LABELS, Finished, Method, Phase
from ssdd_jax.methods.plan import fill_budget
from ssdd_jax.nets.layers import HEAD, Linear
from ssdd_jax.nets.net import Net
from ssdd_jax.registry import KERNELS, LOGGERS, METHODS, NETS, PROTOCOLS, STORES
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, smoke, to_config
from ssdd_jax.settings.spec import NetSpec
from ssdd_jax.stages import pipeline


# A store: one scale for all rows.
@struct.dataclass
class Scaled:
    rows: jax.Array
    scale: jax.Array

    @property
    def codes(self):
        return self.rows

    @property
    def bases(self):
        return None

    def decode(self, codes):
        return codes * self.scale

    def take(self, index, axis):
        return replace(self, rows=self.rows[(slice(None),) * axis + (index,)])


STORE = StoreKind(Scaled, lambda sizes: lambda rows: Scaled(rows / 2, jnp.full((1,) * rows.ndim, 2.0)))


# A kernel without members: ridge regression on pixels.
def pixel_kernel(learner, *, ridge, ridge_scale, **_):
    del learner
    flat = lambda images: append_bias(images.reshape(len(images), -1))
    predict = lambda variables, support, targets, images: ridge_predict(
        flat(support), targets, flat(images), ridge=ridge, ridge_scale=ridge_scale
    )
    return Kernel(predict, None)


# A method with labels and without a teacher: every class's images move to its mean.
@dataclass(frozen=True)
class MeansSpec:
    kind: str = "means"
    rate: float = 0.1
    steps: int = 5


def plan_means(name, spec, sizes):
    layout = Layout(sizes.image_shape, sizes.image_shape, target_kind="labels")
    shapes = lambda count, layout: finished_shapes(count, layout, sizes.num_classes)
    return fill_budget(f"config.methods.{name}", sizes, [layout], shapes, 0, "raise config.num_pairs")


def start_means(spec, plan, inputs, seed):
    rows = jax.random.permutation(step_key(seed, Stream.DISTILLED_INIT), inputs.num_train)[: plan.num_images]
    targets = jax.nn.one_hot(inputs.labels[np.asarray(rows)], inputs.num_classes)
    return init_distilled(inputs.images(np.asarray(rows)), targets[None], plan.layout)


def mean_phases(spec, plan, inputs):
    def step(distilled, number, batch, seed, shared):
        def loss_fn(distilled):
            images, targets = support_rows(distilled)
            same = targets[:, batch[1]]
            distances = jnp.mean((images[:, None] - inputs.normalize(batch[0])[None]) ** 2, (2, 3, 4))
            return jnp.sum(same * distances) / jnp.maximum(same.sum(), 1)

        loss, grads = jax.value_and_grad(loss_fn)(distilled)
        images = jax.tree.map(lambda leaf, grad: leaf - spec.rate * grad, distilled.images, grads.images)
        return replace(distilled, images=images), {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    draw = lambda number, seed: (jax.random.randint(step_key(seed, Stream.OUTER_STEP, number), (16,), 0, inputs.num_train),) * 2
    return (Phase("means", spec.steps, lambda seed, start: start, step, draw, ("images", "labels")),)


MEANS = Method(
    spec=MeansSpec,
    version=1,
    needs=frozenset({LABELS}),
    sections=(),
    plan=plan_means,
    start=start_means,
    phases=mean_phases,
    finish=lambda spec, plan, inputs, state: Finished(state, {"steps": spec.steps}),
)


# A protocol: the nearest mean of a class.
@dataclass(frozen=True)
class NearestSpec:
    power: float = 2.0


def run_nearest(spec, readout, tools):
    def accuracy(encoded):
        means = np.stack([encoded.train_reprs[readout.train_labels == label].mean(0) for label in range(readout.num_classes)])
        distances = np.sum(np.abs(encoded.eval_reprs[:, None] - means[None]) ** spec.power, 2)
        return float(np.mean(distances.argmin(1) == readout.eval_labels))

    return {"nearest": [accuracy(encoded) for encoded in readout.encoded]}


NEAREST = Protocol(NearestSpec, 1, lambda spec: {"nearest": "nearest mean"}, "the nearest mean of a class", run_nearest)


# A student: one hidden layer.
class Perceptron(nn.Module):
    widths: tuple[int, ...]
    num_outputs: int
    pooled: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.relu(nn.Dense(self.widths[0])(x.reshape(len(x), -1)))
        return features, Linear(self.num_outputs, name=HEAD)(features) if self.num_outputs else features


PERCEPTRON = Net(Perceptron, lambda image_shape: (8,))


# A source of data.
def open_stripes(data_dir):
    def split(count, seed):
        draw = np.random.RandomState(seed)
        labels = np.arange(count, dtype=np.int32) % 3
        images = draw.randint(0, 100, (count, 8, 8, 1))
        images[np.arange(count), :, 2 * labels] += 150
        return Split(images.astype(np.uint8), labels)

    return Source("stripes", {"train": split(120, 0), "test": split(30, 1)}, ("left", "middle", "right"), ())


LINES, PICTURES, TABLES = [], [], []


# A logger.
class ListLogger:
    def __init__(self, workdir, name, settings):
        self.name = name

    def __call__(self, stage, step, values):
        LINES.append((self.name, stage, step, values))

    def picture(self, stage, step, name, picture):
        PICTURES.append((stage, step, name, picture))

    def table(self, title, header, rows):
        TABLES.append((title, header, rows))

    def close(self):
        pass


@contextmanager
def registered(registry, name, value):
    registry.register(name, value)
    try:
        yield
    finally:
        registry.remove(name)


@pytest.fixture(scope="module", autouse=True)
def newcomers():
    with ExitStack() as stack:
        for registry, name, value in (
            (STORES, "scaled", STORE),
            (KERNELS, "pixels", pixel_kernel),
            (METHODS, "means", MEANS),
            (PROTOCOLS, "nearest", NEAREST),
            (NETS, "perceptron", PERCEPTRON),
            (NAMED, "stripes", open_stripes),
            (LOGGERS, "list", ListLogger),
        ):
            stack.enter_context(registered(registry, name, value))
        yield


def make_spec(**changes):
    config = default_config(kept=RegressionSpec(image_store="scaled", repr_store="scaled", kernel="pixels"), means=MeansSpec())
    config.data.source = "stripes"
    smoke(config)
    config.data.validation = 0.2
    for view, values in VIEWS.items():
        config.teacher[view].update(values)
    config.logger = "list"
    config.evaluation.students = to_config({"convnet": NetSpec(widths=(8,)), "small": NetSpec("perceptron")})
    config.evaluation.protocols = ("knn", "nearest")
    config.evaluation.controls = ("none", "teacher")
    config.checkpoints.every = 2
    config.update(changes)
    return to_spec(config)


@pytest.fixture(scope="module")
def run(newcomers, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("newcomers")
    for kept in (LINES, PICTURES, TABLES):
        kept.clear()
    results = pipeline.run(make_spec(), workdir)
    return workdir, results, list(LINES)


def rows(results, **fields):
    return [row for row in results["rows"] if all(row[key] == value for key, value in fields.items())]


def test_a_store_is_saved_read_and_exported(run):
    workdir, results, _ = run
    (row,) = rows(results, method="kept", student="convnet")
    folder = workdir / "distilled" / "kept" / "seed_0"
    distilled = load_distilled(folder)
    assert type(distilled.images) is Scaled
    assert json.loads((folder / "manifest.json").read_text())["stores"] == {"images": "scaled", "reprs": "scaled"}
    # One scale of the images and one of the representations are numbers that are stored.
    assert row["stored_scalars"] == row["num_images"] * (64 + 16) + 2
    images, targets = expand(distilled)
    pairs = read_pairs(export_distilled(folder, workdir / "exported", "npz"))
    np.testing.assert_array_equal(pairs.images, images[0])
    np.testing.assert_array_equal(pairs.targets, targets[0])


def test_a_kernel_without_members_moves_a_set_without_a_pool(run):
    workdir, results, lines = run
    (row,) = rows(results, method="kept", student="convnet")
    assert row["steps"] == 6
    losses = [values for _, stage, _, values in lines if stage == "distill/kept/seeds_0"]
    assert losses
    assert all("loss" in values and "member_loss" not in values for values in losses)
    assert not list(workdir.glob("checkpoints/kept-*/warm_up"))


def test_a_method_of_labels_has_a_row_without_an_error_of_representations(run):
    workdir, results, _ = run
    (row,) = rows(results, method="means", student="convnet")
    assert row["target_kind"] == "labels"
    assert "repr_error" not in row
    assert 0 <= row["knn"] <= 1
    manifest = json.loads((workdir / "distilled" / "means" / "seed_0" / "manifest.json").read_text())
    assert manifest["teacher"] is None
    assert manifest["steps"] == 5
    assert load_distilled(workdir / "distilled" / "means" / "seed_0").layout.target_kind == "labels"


def test_a_protocol_has_a_column(run):
    workdir, results, _ = run
    assert all(0 <= row["nearest"] <= 1 for row in rows(results))
    report = (workdir / "report" / "results.md").read_text()
    assert "nearest mean" in report
    assert "the nearest mean of a class" in report


def test_a_student_has_its_rows(run):
    _, results, _ = run
    assert {row["method"] for row in rows(results, student="small")} == {"none", "kept", "means"}
    assert rows(results, student="small", method="kept")[0]["repr_error"] > 0


def test_a_source_is_named_in_the_results(run):
    _, results, _ = run
    assert results["dataset"]["name"] == "stripes"
    assert results["dataset"]["num_classes"] == 3


def test_a_logger_sees_the_lines_of_metrics(run):
    workdir, _, lines = run
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(stage, step, values) for _, stage, step, values in lines] == [(line.pop("stage"), line.pop("step"), line) for line in written]


def test_a_logger_sees_pictures_at_checkpoints_and_the_tables_at_the_end(run):
    workdir, results, _ = run
    steps = lambda method: [(step, name) for stage, step, name, _ in PICTURES if stage == f"distill/{method}"]
    assert steps("kept") == [(2, "images/seed_0"), (4, "images/seed_0"), (6, "images/seed_0")]
    # Its states are the set itself, which is shown when it is finished.
    assert steps("means") == [(5, "images/seed_0")]
    first, *_, last = [picture for stage, *_, picture in PICTURES if stage == "distill/kept"]
    assert first.tobytes() != last.tobytes()
    # The pictures draw nothing else than the report does.
    assert np.array_equal(last, Image.open(workdir / "report" / "kept-images.png"))
    titles = [title for title, _, _ in TABLES]
    assert titles[0].startswith("Results")
    assert len(set(titles)) == len(titles)
    assert {row[0] for row in TABLES[0][2]} >= {"kept", "means", "teacher"}


def test_what_is_added_resumes_from_its_checkpoints(run, tmp_path):
    workdir, _, _ = run
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "distilled")
    for phase in again.glob("checkpoints/*-seeds_0/*"):
        # The last one is lost, so that steps are left.
        shutil.rmtree(max((entry for entry in phase.iterdir() if entry.name.isdigit()), key=lambda entry: int(entry.name)))
    pipeline.run(make_spec(), again, "distill")
    for file in workdir.glob("distilled/*/*/distilled.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(workdir)).read_bytes()


def test_a_method_without_a_teacher_is_not_made_again_with_another_teacher(run, tmp_path):
    workdir, _, _ = run
    again = shutil.copytree(workdir, tmp_path / "again")
    before = {name: (again / "distilled" / name / "seed_0" / "manifest.json").stat().st_mtime_ns for name in ("kept", "means")}
    spec = make_spec()
    pipeline.run(replace(spec, teacher=replace(spec.teacher, seed=1)), again, "distill", accept_changes=True)
    after = {name: (again / "distilled" / name / "seed_0" / "manifest.json").stat().st_mtime_ns for name in ("kept", "means")}
    assert after["means"] == before["means"]
    assert after["kept"] > before["kept"]


@pytest.mark.parametrize(
    ("registry", "name"), [(STORES, "plain"), (KERNELS, "feature"), (METHODS, "regression"), (PROTOCOLS, "knn"), (NETS, "vit")]
)
def test_a_name_that_is_taken_is_refused(registry, name):
    with pytest.raises(ValueError, match="exists already"):
        registry.register(name, object())
