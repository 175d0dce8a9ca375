import json
from dataclasses import replace
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.bases import PCA
from ssdd_jax.core.distilled import TARGET_KINDS, compress, expand, init_distilled, num_stored_scalars, stored_coefficients
from ssdd_jax.core.outer import init_outer, make_outer_step
from ssdd_jax.core.views import VIEWS
from ssdd_jax.errors import InputError
from ssdd_jax.main import main
from ssdd_jax.nets import make_learner
from ssdd_jax.run.build import plan_method
from ssdd_jax.run.spec import MethodSpec

WIDTH = 3


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Every example has its own shapes, which take far longer to compile well than to run."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@st.composite
def plannings(draw, side=12, most_bases=24, most_width=32):
    """Draw the arguments of `plan_method` but the name: many that fit, and some that do not."""
    shape = (draw(st.integers(1, side)), draw(st.integers(1, side)), draw(st.sampled_from([1, 3, 4])))
    others = draw(st.lists(st.sampled_from([view for view in VIEWS if view != "identity"]), unique=True, max_size=3))
    explicit = st.tuples(st.just("stored"), *[st.sampled_from(TARGET_KINDS)] * len(others))
    method = MethodSpec(
        base_size=draw(st.integers(0, min(shape[:2]) + 1)),
        image_bases=draw(st.integers(0, most_bases)),
        repr_bases=draw(st.integers(0, most_bases)),
        views=("identity", *others),
        target_kinds=draw(st.just(("auto",)) | explicit),
        hidden=draw(st.integers(0, 5)),
        images=draw(st.just(0) | st.integers(1, 20)),
    )
    shifts = {view: draw(st.sampled_from([0.0, 0.05, 0.06, 2.0])) for view in others}
    return method, draw(st.integers(1, 60)), shape, draw(st.integers(1, most_width)), shifts


def possible_kinds(method, shifts):
    """Return the target kinds that the plan may choose from."""
    if method.target_kinds != ("auto",):
        return [method.target_kinds]
    kind = lambda view, costly: "shared" if shifts[view] <= method.shared_below else costly
    return [("stored", *(kind(view, costly) for view in method.views[1:])) for costly in ("stored", "network")]


def cost(num_images, kinds, method, shape, width):
    pixels = method.base_size**2 * shape[2] if method.base_size else prod(shape)
    coefficients = method.repr_bases or width
    images = (method.image_bases + 1) * pixels + num_images * method.image_bases if method.image_bases else num_images * pixels
    bases = (method.repr_bases + 1) * width if method.repr_bases else 0
    network = coefficients * method.hidden + method.hidden + method.hidden * coefficients + coefficients
    return images + bases + kinds.count("stored") * num_images * coefficients + kinds.count("network") * network


def can_be(method, num_pairs, shape, width, shifts):
    """Return whether there is a set of at least one image, and of as many as are asked for, within the budget."""
    square, side = shape[0] == shape[1], min(shape[:2])
    pixels = method.base_size**2 * shape[2] if method.base_size else prod(shape)
    fits = method.base_size <= side and method.image_bases <= pixels and method.repr_bases <= width
    turns = square or not {"rot90", "rot270"} & set(method.views)
    # A quadrant of an image of one row or column is empty.
    zooms = side > 1 or not any(view.startswith("zoom") for view in method.views)
    budget = num_pairs * (prod(shape) + width)
    return (
        fits
        and turns
        and zooms
        and any(cost(method.images or 1, k, method, shape, width) <= budget for k in possible_kinds(method, shifts))
    )


@given(plannings())
@settings(max_examples=300)
@example((MethodSpec(views=("identity", "zoom_br")), 5, (1, 4, 1), 2, {"zoom_br": 1.0}))
@example((MethodSpec(views=("identity", "rot90")), 5, (4, 3, 1), 2, {"rot90": 1.0}))
@example((MethodSpec(image_bases=1, repr_bases=1, hidden=0, views=("identity", "dim")), 60, (1, 1, 1), 1, {"dim": 2.0}))
def test_a_plan_is_refused_in_one_line_where_no_set_can_be_and_else_fills_the_budget(planning):
    method, num_pairs, shape, width, shifts = planning
    try:
        plan = plan_method("ours", method, num_pairs, shape, width, shifts)
    except InputError as error:
        assert "\n" not in str(error)
        assert not can_be(*planning), error
        return
    assert can_be(*planning)
    assert plan.budget == num_pairs * (prod(shape) + width)
    assert plan.layout.target_kinds in possible_kinds(method, shifts)
    assert plan.stored_scalars == cost(plan.num_images, plan.layout.target_kinds, method, shape, width) <= plan.budget
    if method.images:
        assert plan.num_images == method.images
    else:
        assert plan.num_images >= 1
        assert all(cost(plan.num_images + 1, kinds, method, shape, width) > plan.budget for kinds in possible_kinds(method, shifts))


def build(key, images, view_reprs, image_pca, repr_pca, *, layout, hidden):
    """Return the finished set as the distillation makes it, on no steps."""
    distilled = init_distilled(images, view_reprs, layout, image_pca=image_pca, repr_pca=repr_pca)
    stored = [view for view, kind in zip(layout.views, distilled.layout.target_kinds, strict=True) if kind == "stored"]
    predicted = [view for view, kind in zip(layout.views, layout.target_kinds, strict=True) if kind == "network"]
    networks = None
    if predicted:
        coefficients = stored_coefficients(distilled.reprs)
        rows = jnp.array([stored.index(view) for view in predicted])
        bases = None if repr_pca is None else distilled.reprs.bases
        networks, _ = fit_networks(key, coefficients[0], coefficients[rows], hidden=hidden, bases=bases, num_steps=2)
    return compress(distilled, layout, networks)


def arguments(plan, method, width, equal=False):
    """Return real-looking arguments of `build`; with `equal` all images are one."""
    random = np.random.RandomState(0)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)
    count, pixels = plan.num_images, prod(plan.layout.base_shape)
    pca = lambda rank, size: PCA(draw(size), np.linalg.qr(draw(size, rank))[0].T, np.ones(size, np.float32)) if rank else None
    images, reprs = draw(count, *plan.layout.image_shape), draw(len(plan.layout.views), count, width)
    images = np.repeat(images[:1], count, 0) if equal else images
    return jax.random.key(0), *jax.tree.map(jnp.asarray, (images, reprs, pca(method.image_bases, pixels), pca(method.repr_bases, width)))


def planned(planning):
    """Return the plan; whether a refusal is right is told above."""
    try:
        return plan_method("ours", *planning)
    except InputError:
        assume(False)


def check_promises(distilled, expanded, plan, width):
    count, views = plan.num_images, len(plan.layout.views)
    assert distilled.layout == plan.layout
    assert num_stored_scalars(distilled) == plan.stored_scalars
    assert [x.shape for x in expanded] == [(views, count, *plan.layout.image_shape), (views, count, width)]


@given(plannings())
@settings(max_examples=40)
def test_a_planned_set_has_the_shapes_and_as_many_numbers_as_its_plan_says(planning):
    method, _, _, width, _ = planning
    plan = planned(planning)
    given_to = jax.eval_shape(lambda: arguments(plan, method, width))
    distilled = jax.eval_shape(partial(build, layout=plan.layout, hidden=method.hidden), *given_to)
    check_promises(distilled, jax.eval_shape(expand, distilled), plan, width)


@st.composite
def steps(draw):
    """Draw a tiny planning with its images, and the settings of an outer step on it."""
    method, _, shape, _, shifts = draw(plannings(side=5, most_bases=3, most_width=WIDTH))
    shape = (max(shape[0], 2), max(shape[1], 2), shape[2])
    count = draw(st.integers(1, 3))
    method = replace(method, images=count, base_size=min(method.base_size, *shape[:2]))
    pool = draw(st.integers(1, 2))
    step = {
        "pool_size": pool,
        "members_per_step": draw(st.integers(1, pool)),
        "support_images": draw(st.sampled_from([0, 1, count, count + 1])),
        "max_age": draw(st.integers(1, 2)),
        "ridge": draw(st.sampled_from([0.0, 1e-3])),
    }
    return (method, 1000, shape, WIDTH, shifts), step, draw(st.sampled_from([1, 2, 9])), draw(st.booleans())


PLAIN = {"pool_size": 1, "members_per_step": 1, "support_images": 0, "max_age": 1, "ridge": 0.0}
ROTATED = MethodSpec(
    image_bases=2, repr_bases=2, images=3, hidden=0, views=("identity", "rot90", "hflip"), target_kinds=("stored", "network", "shared")
)


@given(steps())
@settings(max_examples=6)
@example(((MethodSpec(images=3), 1000, (2, 2, 1), WIDTH, {}), PLAIN, 1, True))
@example(((ROTATED, 1000, (4, 4, 3), WIDTH, {}), {**PLAIN, "pool_size": 2, "members_per_step": 2}, 9, True))
def test_an_outer_step_on_a_planned_set_stays_finite_and_counts_what_it_did_to_a_singular_kernel(drawn):
    planning, step, batch, equal = drawn
    (method, _, shape, width, _), plan = planning, planned(planning)
    learner = make_learner("convnet", (2,), shape, width)
    # Its state are the gradients.
    outer = optax.GradientTransformation(lambda params: params, lambda grads, _, params: (jax.tree.map(lambda g: -0.01 * g, grads), grads))
    settings = {"learner": learner, "optimizer": outer, "inner_optimizer": optax.sgd(0.1, 0.9)}
    pool_size = step["pool_size"]
    one_step = make_outer_step(**settings, **{name: value for name, value in step.items() if name != "pool_size"})

    @jax.jit
    def run(images, reprs, *args):
        distilled = build(*args, layout=plan.layout, hidden=method.hidden)
        state = init_outer(jax.random.key(1), distilled, **settings, pool_size=pool_size)
        return distilled, expand(distilled), one_step(state, images, reprs, jax.random.key(2))

    random = np.random.RandomState(1)
    real = [jnp.asarray(random.normal(size=size), jnp.float32) for size in ((batch, *shape), (batch, width))]
    distilled, expanded, (state, metrics) = run(*real, *arguments(plan, method, width, equal))
    check_promises(distilled, expanded, plan, width)
    for path, leaf in jax.tree_util.tree_leaves_with_path((distilled, expanded, state, metrics)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(distilled)
    # Equal images have equal features, whatever the network.
    taken = min(step["support_images"] or plan.num_images, plan.num_images)
    if step["ridge"] > 0:
        assert int(state.ridge_raises) == 0
    elif equal and taken > 1:
        assert int(state.ridge_raises) >= step["members_per_step"]


# Everything tiny, and no random view that takes long to compile; several cases share what is compiled.
TINY = ["--config", "digits:smoke", "--config.only=krr_st", "--config.data.validation=0.0", "--config.teacher.steps=2"]
TINY += ["--config.teacher.widths=(2,)", "--config.student.widths=(2,)", "--config.teacher.batch_size=2"]
TINY += ["--config.teacher.projector_width=2", "--config.outer.steps=2", "--config.outer.batch_size=2"]
for view in ("first_view", "second_view"):
    TINY += [f"--config.teacher.{view}.{name}=0.0" for name in ("jitter", "blur", "gray", "solarize")]
    TINY += [f"--config.teacher.{view}.min_crop_scale=1.0"]
NETWORKS = ["--config.only=ours", "--config.num_pairs=9", "--config.methods.ours.image_bases=1", "--config.methods.ours.repr_bases=1"]
NETWORKS += ["--config.methods.ours.images=1", "--config.methods.ours.hidden=0", "--config.methods.ours.network_steps=1"]
NETWORKS += ["--config.methods.ours.target_kinds=('stored','network','shared','network')"]


@pytest.fixture
def command(tmp_path, capsys):
    """Return a function that runs the command line on few random images and returns its status and what it wrote to stderr."""

    def run(*args, count=6, num_test=2, shape=(4, 4, 1), classes=2):
        random = np.random.RandomState(0)
        arrays = {f"x_{name}": random.randint(0, 256, (n, *shape), np.uint8) for name, n in (("train", count), ("test", num_test))}
        if classes:
            arrays |= {"y_train": np.arange(count) % classes, "y_test": np.arange(num_test) % classes}
        np.savez(tmp_path / "tiny.npz", **arrays)
        source = f"--config.data.source=arrays:{tmp_path / 'tiny.npz'}"
        return main([*TINY, source, "--workdir", str(tmp_path / "run"), *args]), capsys.readouterr().err

    return run


def assert_one_line(error):
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def refuse(name):
    raise AssertionError(f"{name} in a file of JSON")


def assert_finite(workdir, sets):
    files = list(workdir.glob("distilled/*/seed_*/distilled.safetensors"))
    assert len(files) == sets
    for file in files:
        for name, array in safetensors.numpy.load_file(file).items():
            assert np.isfinite(array).all(), name
    for file in (*workdir.rglob("*.json"), workdir / "metrics.jsonl"):
        for line in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(line, parse_constant=refuse)


RUNS = {
    "no step at all": (["--config.teacher.steps=0", "--config.outer.steps=0"], {}, 1),
    "one distilled image, nothing due": (["--config.num_pairs=1", "--config.log_every=1000", "--config.checkpoints.every=1000"], {}, 1),
    "batches larger than the dataset": (["--config.outer.batch_size=7", "--config.teacher.batch_size=9"], {}, 1),
    "one member, always reset": (["--config.pool.size=1", "--config.pool.max_age=1", "--config.outer.batch_size=1"], {"classes": 0}, 1),
    "several seeds, all saved": (["--config.seeds=(0, 7)", "--config.checkpoints.every=1"], {}, 2),
    "several seeds at once": (["--config.seeds=(0, 7)", "--config.seeds_at_once=9", "--config.steps_per_dispatch=9"], {}, 2),
    "no hidden layer": (["--config.teacher.projector_layers=0", "--config.steps_per_dispatch=2"], {}, 1),
    "as many as there are": (["--config.data.limit=2", "--config.num_pairs=2", "--config.outer.ridge=0.0"], {"shape": (2, 3, 4)}, 1),
    "a part of the images": (["--config.pool.members_per_step=2", "--config.methods.krr_st.support_images=1"], {}, 1),
    "networks from the start": ([*NETWORKS, "--config.methods.ours.joint=1.0"], {}, 1),
    "all stages": (["--task=all", "--config.evaluation.batch_size=9", "--config.evaluation.knn_neighbors=99"], {"num_test": 1}, 1),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_at_the_edge_of_its_settings_ends_well_and_every_number_is_finite(name, command, tmp_path):
    args, data, sets = RUNS[name]
    assert command("--task=distill", *args, **data) == (0, "")
    assert_finite(tmp_path / "run", sets)


REFUSED = {
    "one class": ([], {"classes": 1}, 3),
    "more images than there are": (["--config.num_pairs=7"], {}, 2),
    "a seed of 33 bits": (["--config.seeds=(4294967296,)"], {}, 2),
    "a teacher's seed of 33 bits": (["--config.teacher.seed=4294967296"], {}, 2),
    "an infinite ridge": (["--config.outer.ridge=inf"], {}, 2),
    "an unknown view of another method": (["--config.methods.ours.views=('identity', 'rot45')"], {}, 2),
    "an unknown real view": (["--config.outer.real_views=('rot45',)"], {}, 2),
    "no real view": (["--config.outer.real_views=()"], {}, 2),
    "a quarter turn of real images": (["--config.outer.real_views=('identity', 'rot90')"], {"shape": (4, 5, 1)}, 2),
    "a basis of one image": ([*NETWORKS, "--config.data.limit=1", "--config.teacher.standardize=False"], {}, 2),
    "factors of zero": ([*NETWORKS, "--config.methods.ours.factor_scale=0"], {}, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(name, command, tmp_path):
    args, data, expected = REFUSED[name]
    status, error = command("--task=distill", "--config.teacher.steps=0", *args, **data)
    assert_one_line(error)
    assert status == expected
    assert not list(tmp_path.glob("run/distilled/*"))


# There is nothing to tell apart: whether a run makes something of it or refuses it, it says so and keeps no NaN.
@pytest.mark.parametrize("standardize", [True, False])
def test_one_training_image_gives_a_finite_set_or_one_line(standardize, command, tmp_path):
    args = ["--config.data.limit=1", "--config.num_pairs=1", "--config.teacher.steps=0", "--config.outer.steps=0"]
    status, error = command("--task=distill", *args, f"--config.teacher.standardize={standardize}")
    assert status in (0, 2, 3)
    if status:
        assert_one_line(error)
    assert_finite(tmp_path / "run", 0 if status else 1)
