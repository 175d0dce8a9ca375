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
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from quick import QUICK_TEACHER

from ssdd_jax.core.approximation import fit_networks
from ssdd_jax.core.bases import PCA
from ssdd_jax.core.distilled import VIEW_TARGETS, compress, expand, init_distilled, num_stored_scalars
from ssdd_jax.core.outer import init_outer, make_outer_step
from ssdd_jax.core.stores.cosine import cosine
from ssdd_jax.core.stores.factored import factored
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.core.views import VIEWS
from ssdd_jax.errors import InputError
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.main import main
from ssdd_jax.methods import regression
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.nets import make_learner
from ssdd_jax.settings.methods import RegressionSpec

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
    explicit = st.tuples(st.just("stored"), *[st.sampled_from(VIEW_TARGETS)] * len(others))
    method = RegressionSpec(
        base_size=draw(st.integers(0, min(shape[:2]) + 1)),
        image_bases=draw(st.integers(0, most_bases)),
        frequencies=draw(st.just(0) | st.integers(1, 2 * most_bases)),
        repr_bases=draw(st.integers(0, most_bases)),
        views=("identity", *others),
        view_targets=draw(st.just(("auto",)) | explicit),
        hidden=draw(st.integers(0, 5)),
        images=draw(st.just(0) | st.integers(1, 20)),
    )
    shifts = {view: draw(st.sampled_from([0.0, 0.05, 0.06, 2.0])) for view in others}
    return method, draw(st.integers(1, 60)), shape, draw(st.integers(1, most_width)), shifts


def possible_kinds(method, shifts):
    """Return the target kinds that the plan may choose from."""
    if method.view_targets != ("auto",):
        return [method.view_targets]
    kind = lambda view, costly: "shared" if shifts[view] <= method.shared_below else costly
    return [("stored", *(kind(view, costly) for view in method.views[1:])) for costly in ("stored", "network")]


def base_numbers(method, shape):
    return method.base_size**2 * shape[2] if method.base_size else prod(shape)


def cost(num_images, kinds, method, shape, width):
    pixels = base_numbers(method, shape)
    of_base = method.frequencies or pixels
    coefficients = method.repr_bases or width
    images = (method.image_bases + 1) * of_base + num_images * method.image_bases if method.image_bases else num_images * pixels
    bases = (method.repr_bases + 1) * width if method.repr_bases else 0
    network = coefficients * method.hidden + method.hidden + method.hidden * coefficients + coefficients
    return images + bases + kinds.count("stored") * num_images * coefficients + kinds.count("network") * network


def can_be(method, num_pairs, shape, width, shifts):
    """Return whether there is a set of at least one image, and of as many as are asked for, within the budget."""
    square, side = shape[0] == shape[1], min(shape[:2])
    pixels = base_numbers(method, shape)
    fits = method.base_size <= side and method.image_bases <= (method.frequencies or pixels) and method.repr_bases <= width
    # Frequencies are those of bases.
    fits = fits and method.frequencies <= (pixels if method.image_bases else 0)
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


def planned(planning):
    """Return the plan and '', or None and what the refusal says."""
    try:
        method, num_pairs, shape, width, shifts = planning
        return regression.plan("ours", method, Sizes(num_pairs, shape, width, 0, shifts)), ""
    except InputError as error:
        return None, str(error)


@given(plannings())
@settings(max_examples=150)
@example((RegressionSpec(views=("identity", "zoom_br")), 5, (1, 4, 1), 2, {"zoom_br": 1.0}))
@example((RegressionSpec(views=("identity", "rot90")), 5, (4, 3, 1), 2, {"rot90": 1.0}))
@example((RegressionSpec(image_bases=1, repr_bases=1, hidden=0, views=("identity", "dim")), 60, (1, 1, 1), 1, {"dim": 2.0}))
def test_a_plan_is_refused_in_one_line_where_no_set_can_be_and_else_fills_the_budget(planning):
    method, num_pairs, shape, width, shifts = planning
    plan, refusal = planned(planning)
    assert (plan is not None) == can_be(*planning), refusal
    if plan is None:
        assert "\n" not in refusal
        return
    kinds = possible_kinds(method, shifts)
    assert plan.layout.view_targets in kinds
    assert plan.budget == num_pairs * (prod(shape) + width)
    assert plan.stored_scalars == cost(plan.num_images, plan.layout.view_targets, method, shape, width) <= plan.budget
    if method.images:
        assert plan.num_images == method.images
    else:
        assert plan.num_images >= 1
        assert all(cost(plan.num_images + 1, candidate, method, shape, width) > plan.budget for candidate in kinds)


def build(key, images, view_reprs, image_pca, repr_pca, *, layout, hidden, frequencies=0):
    """Return the finished set as the distillation makes it where it does no steps."""
    store = lambda pca: Plain if pca is None else factored(pca)
    of_images = store(image_pca)
    if frequencies:
        of_images = cosine(image_pca, frequencies)
    distilled = init_distilled(images, view_reprs, layout, image_store=of_images, repr_store=store(repr_pca))
    stored = [view for view, kind in zip(layout.views, distilled.layout.view_targets, strict=True) if kind == "stored"]
    predicted = [view for view, kind in zip(layout.views, layout.view_targets, strict=True) if kind == "network"]
    networks = None
    if predicted:
        coefficients = distilled.reprs.codes
        rows = jnp.array([stored.index(view) for view in predicted])
        networks, _ = fit_networks(key, coefficients[0], coefficients[rows], hidden=hidden, bases=distilled.reprs.bases, num_steps=2)
    return compress(distilled, layout, networks)


def inputs(plan, method, width, draw):
    """Return images, representations and bases for `build`, each drawn by its shape."""
    pca = lambda rank, size: PCA(draw(size), draw(rank, size), draw(size)) if rank else None
    images, reprs = draw(plan.num_images, *plan.layout.image_shape), draw(len(plan.layout.views), plan.num_images, width)
    return images, reprs, pca(method.image_bases, prod(plan.layout.base_shape)), pca(method.repr_bases, width)


def check_promises(distilled, expanded, plan, width):
    views = len(plan.layout.views)
    assert distilled.layout == plan.layout
    assert num_stored_scalars(distilled) == plan.stored_scalars
    assert [x.shape for x in expanded] == [(views, plan.num_images, *plan.layout.image_shape), (views, plan.num_images, width)]


@given(plannings())
@settings(max_examples=25)
def test_a_planned_set_has_the_shapes_and_as_many_numbers_as_its_plan_says(planning):
    method, _, _, width, _ = planning
    plan, _ = planned(planning)
    # Whether the refusal is right is told above.
    assume(plan is not None)
    abstract = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    make = partial(build, layout=plan.layout, hidden=method.hidden, frequencies=method.frequencies)
    distilled = jax.eval_shape(make, jax.random.key(0), *inputs(plan, method, width, abstract))
    check_promises(distilled, jax.eval_shape(expand, distilled), plan, width)


@st.composite
def steps(draw):
    """Draw a tiny planning with its images, and the settings of an outer step on it."""
    method, _, shape, _, shifts = draw(plannings(side=5, most_bases=3, most_width=WIDTH))
    shape = (max(shape[0], 2), max(shape[1], 2), shape[2])
    count = draw(st.integers(1, 3))
    method = replace(method, images=count, base_size=min(method.base_size, *shape[:2]))
    kept = min(method.frequencies, base_numbers(method, shape)) if method.image_bases else 0
    method = replace(method, frequencies=kept, image_bases=min(method.image_bases, kept or method.image_bases))
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
ROTATED = RegressionSpec(
    image_bases=2, repr_bases=2, images=3, hidden=0, views=("identity", "rot90", "hflip"), view_targets=("stored", "network", "shared")
)


# Every example compiles, so a failing one is not made smaller.
@pytest.mark.chaos
@given(steps())
@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])
@example(((RegressionSpec(images=3), 1000, (2, 2, 1), WIDTH, {}), PLAIN, 1, True))
@example(((ROTATED, 1000, (4, 4, 3), WIDTH, {}), {**PLAIN, "pool_size": 2, "members_per_step": 2}, 9, True))
def test_an_outer_step_on_a_planned_set_stays_finite_and_counts_what_it_did_to_a_singular_kernel(drawn):
    planning, step, batch, equal = drawn
    method, _, shape, width, _ = planning
    plan, _ = planned(planning)
    assume(plan is not None)
    learner = make_learner("convnet", (2,), shape, width)
    # Its state are the gradients.
    outer = optax.GradientTransformation(lambda params: params, lambda grads, _, params: (jax.tree.map(lambda g: -0.01 * g, grads), grads))
    common = {"kernel": feature_kernel(learner, ridge=step["ridge"]), "optimizer": outer, "inner_optimizer": optax.sgd(0.1, 0.9)}
    pool_size = step["pool_size"]
    one_step = make_outer_step(**common, **{name: value for name, value in step.items() if name not in ("pool_size", "ridge")})

    @jax.jit
    def run(real_images, real_reprs, images, *others):
        images = jnp.broadcast_to(images[:1], images.shape) if equal else images
        of_method = dict(hidden=method.hidden, frequencies=method.frequencies)
        distilled = build(jax.random.key(0), images, *others, layout=plan.layout, **of_method)
        state = init_outer(jax.random.key(1), distilled, **common, pool_size=pool_size)
        return distilled, expand(distilled), one_step(state, real_images, real_reprs, jax.random.key(2))

    random = np.random.RandomState(0)
    draw = lambda *size: jnp.asarray(random.normal(size=size), jnp.float32)
    distilled, expanded, (state, metrics) = run(draw(batch, *shape), draw(batch, width), *inputs(plan, method, width, draw))
    check_promises(distilled, expanded, plan, width)
    for path, leaf in jax.tree_util.tree_leaves_with_path((distilled, expanded, state, metrics)):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    # Every leaf has a gradient, and the loss reaches it.
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(distilled)
    assert float(metrics["grad_norm"]) > 0
    # Equal images have equal features whatever the network, so there are no more independent rows than views.
    views, num_features = len(plan.layout.views), 2 * (shape[0] // 2) * (shape[1] // 2) + 1
    taken = min(step["support_images"] or plan.num_images, plan.num_images)
    if step["ridge"] > 0:
        assert int(state.ridge_increases) == 0
    elif equal and views < min(taken * views, num_features):
        assert int(state.ridge_increases) >= step["members_per_step"]


# Everything tiny, and no random view that takes long to compile; several cases share what is compiled.
TINY = "only=krr_st data.validation=0.0 teacher.steps=0 teacher.widths=(2,) teacher.batch_size=2 teacher.projector_width=2"
TINY += " student.widths=(2,) outer.steps=2 outer.batch_size=2"
TINY += " teacher.first_view.min_crop_scale=1.0 teacher.second_view.min_crop_scale=1.0"
NETWORKS = "only=ours num_pairs=9 methods.ours.image_bases=1 methods.ours.repr_bases=1 methods.ours.images=1 methods.ours.hidden=0 "
NETWORKS += "methods.ours.network_steps=1 methods.ours.views=('identity','hflip') methods.ours.view_targets=('stored','network') "


@pytest.fixture
def command(tmp_path, capsys):
    """Return a function that runs the command line on few random images and returns its status and what it wrote to stderr."""

    def run(changes, task="distill", count=6, num_test=2, shape=(4, 4, 1), classes=2, empty_channel=False):
        random = np.random.RandomState(0)
        arrays = {f"x_{name}": random.randint(0, 256, (n, *shape), np.uint8) for name, n in (("train", count), ("test", num_test))}
        if empty_channel:
            arrays = {name: images * np.eye(1, shape[2], dtype=np.uint8) for name, images in arrays.items()}
        if classes:
            arrays |= {"y_train": np.arange(count) % classes, "y_test": np.arange(num_test) % classes}
        np.savez(tmp_path / "tiny.npz", **arrays)
        config = ["--config", "digits:smoke", f"--config.data.source=arrays:{tmp_path / 'tiny.npz'}"]
        config += [*QUICK_TEACHER, *(f"--config.{change}" for change in f"{TINY} {changes}".split())]
        return main([*config, f"--task={task}", "--workdir", str(tmp_path / "run")]), capsys.readouterr().err

    return run


def assert_one_line(error):
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def refuse(constant):
    raise AssertionError(f"{constant} in a file of JSON")


def assert_finite(workdir, num_sets):
    files = list(workdir.glob("distilled/*/seed_*/distilled.safetensors"))
    assert len(files) == num_sets
    for file in files:
        for name, array in safetensors.numpy.load_file(file).items():
            assert np.isfinite(array).all(), name
    for file in workdir.rglob("*.json*"):
        for content in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(content, parse_constant=refuse)


RUNS = {
    "no step at all": ("outer.steps=0 only=random,krr_st", {}, 2),
    "one distilled image for several seeds, no line or checkpoint due": (
        "num_pairs=1 seeds=(0,7) log_every=1000 checkpoints.every=1000",
        {},
        2,
    ),
    "batches larger than the dataset, a part of the distilled images": (
        "outer.batch_size=7 teacher.steps=1 teacher.batch_size=9 pool.members_per_step=2 methods.krr_st.support_images=1",
        {},
        1,
    ),
    "one member that is always replaced, no labels, every step saved": (
        "pool.size=1 pool.max_age=1 outer.batch_size=1 checkpoints.every=1",
        {"classes": 0},
        1,
    ),
    "several seeds and steps at once, no hidden layer": (
        "seeds=(0,7) seeds_at_once=9 steps_per_dispatch=9 teacher.steps=2 teacher.projector_layers=0",
        {},
        2,
    ),
    "all images that there are, fewer than the budget holds, without a ridge": (
        "data.limit=2 num_pairs=3 outer.ridge=0.0",
        {"shape": (2, 3, 4)},
        1,
    ),
    "networks from the start": (f"{NETWORKS} methods.ours.joint=1.0", {}, 1),
    "all stages on one test image": (
        "teacher.steps=2 evaluation.protocols=('linear','knn') evaluation.controls=('teacher',) "
        "evaluation.batch_size=9 protocols.knn.neighbors=99",
        {"task": "all", "num_test": 1},
        1,
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("name", RUNS)
def test_a_run_at_the_edge_of_its_settings_ends_well_and_every_number_is_finite(name, command, tmp_path):
    changes, about, num_sets = RUNS[name]
    assert command(changes, **about) == (0, "")
    assert_finite(tmp_path / "run", num_sets)


REFUSED = {
    "one class": ("", {"classes": 1}, 3),
    "more images than there are": ("num_pairs=7 methods.krr_st.images=7", {}, 2),
    "a seed of 33 bits": ("seeds=(4294967296,)", {}, 2),
    "a teacher's seed of 33 bits": ("teacher.seed=4294967296", {}, 2),
    "an infinite ridge": ("outer.ridge=inf", {}, 2),
    "an unknown real view": ("outer.real_views=('rot45',)", {}, 2),
    "no real view": ("outer.real_views=()", {}, 2),
    "a quarter turn of real images": ("outer.real_views=('identity','rot90')", {"shape": (4, 5, 1)}, 2),
    "a basis of one image": (f"{NETWORKS} data.limit=1 teacher.standardize=False", {}, 2),
    "factors of zero": (f"{NETWORKS} methods.ours.factor_scale=0", {}, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(name, command, tmp_path):
    changes, about, expected = REFUSED[name]
    status, error = command(changes, **about)
    assert_one_line(error)
    assert status == expected
    assert not list(tmp_path.glob("run/distilled/*"))


# One image leaves a teacher nothing to tell apart, an empty channel has no contrast, and a method that is not chosen may be looked at.
MAY_BE_REFUSED = {
    "one training image": ("data.limit=1 num_pairs=1", {}),
    "one training image, as the teacher sees it": ("data.limit=1 num_pairs=1 teacher.standardize=False", {}),
    "an empty channel": ("", {"shape": (4, 4, 2), "empty_channel": True}),
    "an unknown view of another method": ("methods.ours.views=('identity','rot45')", {}),
}


@pytest.mark.parametrize("name", MAY_BE_REFUSED)
def test_what_may_be_refused_gives_a_finite_set_or_one_line(name, command, tmp_path):
    changes, about = MAY_BE_REFUSED[name]
    status, error = command(f"outer.steps=0 {changes}", **about)
    assert status in (0, 2, 3)
    if status:
        assert_one_line(error)
    assert_finite(tmp_path / "run", 0 if status else 1)
