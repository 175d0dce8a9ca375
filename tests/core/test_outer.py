import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import krr as krr_oracle
from oracles import outer as oracle

from ssdd_jax.core.approximation import init_networks
from ssdd_jax.core.bases import fit_pca
from ssdd_jax.core.distilled import Layout, compress, expand, init_distilled, resize_images, take_images
from ssdd_jax.core.kernel import Kernel
from ssdd_jax.core.krr import append_bias, krr_predict
from ssdd_jax.core.outer import (
    init_outer,
    make_outer_step,
    make_warm_up_step,
    outer_loss,
    staggered_ages,
    support_rows,
    warm_up_ages,
)
from ssdd_jax.core.pool import train_member
from ssdd_jax.core.stores.factored import factored
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.nets import conv, make_learner

pytestmark = pytest.mark.core

SHAPE, BASE, WIDTH = (8, 8, 2), (4, 4, 2), 6
ADAMW = {"learning_rate": 0.02, "weight_decay": 0.01}
SGD = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
OUTER = optax.adamw(**ADAMW)
INNER = optax.chain(optax.add_decayed_weights(SGD["weight_decay"]), optax.sgd(SGD["learning_rate"], SGD["momentum"]))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def variables_of(learner, seed=0):
    """Return trained-looking variables: every norm does something."""
    random = np.random.RandomState(seed)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        spread = np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return jnp.asarray(spread * random.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(learner.init, jax.random.key(0)))


def with_one_draw(learner):
    """Return the learner with an initializer of one random call: drawing every layer apart takes most of a step's compilation."""
    variables = variables_of(learner)
    flat, unravel = ravel_pytree(variables["params"])
    resting = {"scale": 1.0, "bias": 0.0, "var": 1.0, "mean": 0.0}
    rest = lambda path, leaf: (
        leaf * np.prod(leaf.shape[:-1]) ** -0.5 if path[-1].key == "kernel" else jnp.full_like(leaf, resting[path[-1].key])
    )

    def init(key):
        drawn = {**variables, "params": unravel(jax.random.normal(key, flat.shape))}
        return jax.tree_util.tree_map_with_path(rest, drawn)

    return learner._replace(init=init)


LEARNER = with_one_draw(make_learner("convnet", (4, 8), SHAPE, WIDTH))
KERNEL = feature_kernel(LEARNER)
# Three prototypes and a little noise.
REAL_IMAGES = 2 * draw(3, *SHAPE, seed=8)[jnp.arange(16) % 3] + 0.3 * draw(16, *SHAPE, seed=10)
REAL_REPRS = jnp.tanh(REAL_IMAGES.reshape(16, -1) @ draw(128, WIDTH, seed=9) / 8) + 1.0


def make_set(views=("identity", "rot90"), kinds=("stored", "stored"), count=5, contrast=4.0):
    layout = Layout(SHAPE, BASE, views, kinds)
    reprs = draw(len(views), count, WIDTH, seed=1) + 1.0
    pixels = resize_images(draw(40, *SHAPE, seed=2), BASE).reshape(40, -1)
    start = init_distilled(
        contrast * draw(count, *SHAPE),
        reprs,
        layout,
        image_store=factored(fit_pca(pixels, 7)),
        repr_store=factored(fit_pca(draw(40, WIDTH, seed=3) + 1.0, 4)),
    )
    if "network" not in kinds:
        return start
    networks = init_networks(jax.random.key(3), layout.count("network"), 4, 3)
    return compress(start, layout, networks.replace(w2=0.3 * draw(*networks.w2.shape, seed=4), b1=0.3 * draw(*networks.b1.shape, seed=5)))


def in_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def blocks_of(variables):
    params, stats = in_float64(variables["params"]), in_float64(variables["batch_stats"])
    return [
        {
            "kernel": params[f"Conv_{i}"]["Conv_0"]["kernel"],
            "bias": params[f"Conv_{i}"]["Conv_0"]["bias"],
            "scale": params[f"BatchNorm_{i}"]["scale"],
            "shift": params[f"BatchNorm_{i}"]["bias"],
            **stats[f"BatchNorm_{i}"],
        }
        for i in range(len(stats))
    ]


def oracle_step(distilled, variables, images=REAL_IMAGES, reprs=REAL_REPRS, ridge=1e-6):
    layout = distilled.layout
    as_dict = lambda part: None if part is None else in_float64({f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    return oracle.outer_step(
        as_dict(distilled.images),
        as_dict(distilled.reprs),
        as_dict(distilled.networks),
        blocks_of(variables),
        np.asarray(images, np.float64),
        np.asarray(reprs, np.float64),
        base_shape=layout.base_shape,
        image_shape=layout.image_shape,
        views=layout.views,
        kinds=layout.view_targets,
        ridge=ridge,
    )


def flat(gradients):
    """Return {(part, leaf): array} of a gradient of ours or of the oracle's."""
    parts = {name: gradients[name] if isinstance(gradients, dict) else getattr(gradients, name) for name in ("images", "reprs", "networks")}
    found = {}
    for part, leaves in parts.items():
        if leaves is not None:
            leaves = leaves if isinstance(leaves, dict) else {f.name: getattr(leaves, f.name) for f in dataclasses.fields(leaves)}
            found |= {(part, name): np.asarray(leaf, np.float64) for name, leaf in leaves.items()}
    return found


def relative_error(ours, expected):
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def differ(left, right):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def member_of(pool, index):
    return jax.tree.map(lambda leaf: leaf[index], pool)


SETTINGS = [
    (("identity",), ("stored",)),
    (("identity", "rot90", "hflip"), ("stored", "stored", "shared")),
    (("identity", "rot270", "rot180"), ("stored", "network", "network")),
]


@pytest.mark.parametrize(("views", "kinds"), SETTINGS)
def test_the_oracles_gradient_equals_its_finite_differences(views, kinds):
    distilled, variables = make_set(views, kinds, count=2), variables_of(LEARNER)
    _, gradients = oracle_step(distilled, variables, ridge=1e-2)
    as_dict = lambda part: None if part is None else in_float64({f.name: getattr(part, f.name) for f in dataclasses.fields(part)})
    parts = {name: as_dict(getattr(distilled, name)) for name in ("images", "reprs", "networks")}
    real = np.asarray(REAL_IMAGES, np.float64), np.asarray(REAL_REPRS, np.float64)
    layout, blocks = distilled.layout, blocks_of(variables)
    settings = {"base_shape": BASE, "image_shape": SHAPE, "views": views, "kinds": kinds}
    support = oracle.features(blocks, np.asarray(support_rows(distilled)[0], np.float64))[0].reshape(2 * len(views), -1)
    trace = np.sum(krr_oracle.with_bias(support) ** 2)

    def loss_of(part, name, array):
        moved = {**parts, part: {**parts[part], name: array}}
        rows = moved["images"]["coefficients"] @ moved["images"]["bases"] + moved["images"]["mean"]
        up = [oracle.bilinear(BASE[axis], SHAPE[axis]) for axis in (0, 1)]
        images = np.einsum("yi,nijc,xj->nyxc", up[0], rows.reshape(-1, *BASE), up[1])
        now = oracle.features(blocks, np.concatenate([oracle.VIEWS[view][0](images) for view in views]))[0]
        # The ridge times the trace stays what it was before the move.
        ridge = 1e-2 * trace / np.sum(krr_oracle.with_bias(now.reshape(len(now), -1)) ** 2)
        return oracle.outer_step(*moved.values(), blocks, *real, ridge=ridge, **settings)[0]

    assert layout.view_targets == kinds
    for (part, name), gradient in flat(gradients).items():
        index = np.unravel_index(np.argmax(np.abs(gradient)), gradient.shape)
        step = np.zeros(gradient.shape)
        step[index] = 1e-6
        value = parts[part][name]
        slope = (loss_of(part, name, value + step) - loss_of(part, name, value - step)) / 2e-6
        assert slope == pytest.approx(gradient[index], rel=1e-5), (part, name)


# float32 misses the float64 gradient by about 1e-8 times the condition of the kernel: images of high contrast keep that below 1e4.
@pytest.mark.parametrize(
    ("views", "kinds", "widths", "count", "form"),
    [(*setting, (16, 32), 3, "dual") for setting in SETTINGS] + [(*setting, (1,), 60, "primal") for setting in SETTINGS[1:]],
)
def test_loss_and_gradient_equal_the_float64_oracle(views, kinds, widths, count, form):
    learner = make_learner("convnet", widths, SHAPE, WIDTH)
    distilled, variables = make_set(views, kinds, count, contrast=64.0), variables_of(learner)
    features = learner.features(variables, support_rows(distilled)[0])
    assert form == ("primal" if features.shape[0] > features.shape[1] + 1 else "dual")
    expected, gradients = oracle_step(distilled, variables)
    loss_fn = lambda d: outer_loss(d, variables, REAL_IMAGES, REAL_REPRS, kernel=feature_kernel(learner))[0]
    loss, ours = jax.jit(jax.value_and_grad(loss_fn))(distilled)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    ours, gradients = flat(ours), flat(gradients)
    assert ours.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert relative_error(ours[name], gradient) < 1e-4, name


def test_without_its_bias_the_kernel_is_that_of_the_features_alone():
    distilled, variables = make_set(), variables_of(LEARNER)
    support, targets = support_rows(distilled)
    features = [LEARNER.features(variables, images) for images in (support, REAL_IMAGES)]
    for bias, complete in ((False, lambda rows: rows), (True, append_bias)):
        expected = krr_predict(complete(features[0]), targets, complete(features[1]), ridge=1e-2, ridge_scale="mean_trace")
        kernel = feature_kernel(LEARNER, ridge=1e-2, ridge_scale="mean_trace", bias=bias)
        np.testing.assert_allclose(kernel.predict(variables, support, targets, REAL_IMAGES)[0], expected, rtol=1e-4, atol=1e-5)


def test_members_without_an_optimizer_are_refused(key):
    with pytest.raises(ValueError, match="the kernel has members; give the optimizer that trains them"):
        make_outer_step(kernel=KERNEL, optimizer=OUTER)
    with pytest.raises(ValueError, match="the kernel has members; give the optimizer that trains them"):
        init_outer(key, make_set(), kernel=KERNEL, optimizer=OUTER)


def test_one_member_a_step_equals_a_step_written_by_hand(key):
    distilled = make_set()
    state = init_outer(key, distilled, kernel=KERNEL, optimizer=OUTER, inner_optimizer=INNER, pool_size=1)
    state = dataclasses.replace(
        state, pool=dataclasses.replace(state.pool, variables=jax.tree.map(lambda x: x[None], variables_of(LEARNER)))
    )
    step = jitted()

    def inner_loss(params, stats, rows, targets):
        outputs, stats = LEARNER.apply_train({"params": params, "batch_stats": stats}, rows)
        return jnp.mean((outputs - targets) ** 2), stats

    inner_gradient = jax.jit(jax.value_and_grad(inner_loss, has_aux=True))
    values = {name: np.asarray(leaf, np.float64) for name, leaf in flat(distilled).items()}
    moments = dict.fromkeys(values, (0.0, 0.0))
    params, velocity = in_float64(member_of(state.pool, 0).variables["params"]), None
    for count in (1, 2, 3):
        before = member_of(state.pool, 0).variables
        rows, targets = support_rows(state.distilled)
        loss, gradients = oracle_step(state.distilled, before, ridge=1e-2)
        for name, gradient in flat(gradients).items():
            values[name], *moments[name] = oracle.adamw_step(values[name], gradient, *moments[name], count, **ADAMW)
        (member_loss, stats), inner = inner_gradient(before["params"], before["batch_stats"], rows, targets)
        velocity = velocity or jax.tree.map(np.zeros_like, params)
        pairs = jax.tree.map(lambda p, g, v: oracle.sgd_step(p, np.asarray(g, np.float64), v, **SGD), params, inner, velocity)
        params, velocity = jax.tree.transpose(jax.tree.structure(params), None, pairs)
        state, metrics = step(state, REAL_IMAGES, REAL_REPRS, key)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
        np.testing.assert_allclose(metrics["member_loss"], member_loss, rtol=1e-4)
        for name, ours in flat(state.distilled).items():
            np.testing.assert_allclose(ours, values[name], rtol=1e-3, atol=1e-4, err_msg=str(name))
        after = member_of(state.pool, 0).variables
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), after["params"], params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), after["batch_stats"], stats)
        assert int(state.pool.age[0]) == int(state.step) == count


def start(key, pool_size=3, distilled=None):
    distilled = make_set() if distilled is None else distilled
    return init_outer(key, distilled, kernel=KERNEL, optimizer=OUTER, inner_optimizer=INNER, pool_size=pool_size)


def build(**settings):
    of_kernel = {name: settings.pop(name) for name in ("chunk_size", "remat") if name in settings}
    kernel = feature_kernel(LEARNER, ridge=1e-2, **of_kernel)
    return make_outer_step(**{"kernel": kernel, "optimizer": OUTER, "inner_optimizer": INNER, "max_age": 100, **settings})


@functools.cache
def jitted(**settings):
    return jax.jit(build(**settings))


@jax.jit
def train(member, rows, targets):
    return train_member(member, rows, targets, LEARNER, INNER)


@jax.jit
def loss_and_gradient(distilled, variables):
    loss_fn = lambda d: outer_loss(d, variables, REAL_IMAGES, REAL_REPRS, kernel=feature_kernel(LEARNER, ridge=1e-2))[0]
    return jax.value_and_grad(loss_fn)(distilled)


def run(state, step, num_steps, seed=0):
    losses = []
    for step_key in jax.random.split(jax.random.key(seed), num_steps):
        state, metrics = step(state, REAL_IMAGES, REAL_REPRS, step_key)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_a_state_has_buffers_of_its_own_so_that_donating_it_takes_nothing_from_the_caller(key):
    images, reprs, pca = draw(5, *SHAPE), draw(1, 5, WIDTH), fit_pca(draw(30, 128), 4)
    given = {leaf.unsafe_buffer_pointer() for leaf in (images, reprs, *jax.tree.leaves(pca))}
    for store in (Plain, factored(pca, 1.0)):
        start = init_distilled(images, reprs, Layout(SHAPE, SHAPE), image_store=store)
        state = init_outer(key, start, kernel=Kernel(None, None), optimizer=OUTER, inner_optimizer=INNER, pool_size=1)
        buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
        assert len(set(buffers)) == len(buffers)
        assert not given & set(buffers)


def test_members_start_untrained_and_different(key):
    state = start(key)
    np.testing.assert_array_equal(state.pool.age, [0, 0, 0])
    assert int(state.step) == 0
    kernels = np.asarray(state.pool.variables["params"]["Conv_0"]["Conv_0"]["kernel"])
    assert len({kernel.tobytes() for kernel in kernels}) == 3


def test_members_may_start_as_if_they_had_aged(key):
    np.testing.assert_array_equal(staggered_ages(10, 100), np.arange(0, 100, 10))
    np.testing.assert_array_equal(staggered_ages(3, 10), [0, 3, 6])
    np.testing.assert_array_equal(staggered_ages(4, 2), [0, 0, 1, 1])
    settings = dict(kernel=KERNEL, optimizer=OUTER, inner_optimizer=INNER, pool_size=3)
    aged = init_outer(key, make_set(), **settings, ages=staggered_ages(3, 10))
    # Nothing else of them differs: they are untrained.
    np.testing.assert_array_equal(aged.pool.age, [0, 3, 6])
    assert_equal(dataclasses.replace(aged.pool, age=0), dataclasses.replace(start(key).pool, age=0))


def test_a_term_of_the_set_is_added_to_the_loss_and_moves_the_images_that_take_part(key):
    state = start(key)
    term = lambda distilled: 3 * jnp.sum(distilled.images.coefficients**2)
    sgd = optax.sgd(1.0)
    state = dataclasses.replace(state, opt_state=sgd.init(state.distilled))
    plain, plain_metrics = jitted(optimizer=sgd, support_images=2)(state, REAL_IMAGES, REAL_REPRS, key)
    found, metrics = jitted(optimizer=sgd, support_images=2, regularizer=term)(state, REAL_IMAGES, REAL_REPRS, key)
    before = np.asarray(state.distilled.images.coefficients)
    by_term = np.asarray(plain.distilled.images.coefficients) - np.asarray(found.distilled.images.coefficients)
    chosen = np.abs(by_term).max(1) > 1e-2
    assert chosen.sum() == 2
    np.testing.assert_allclose(by_term, 6 * before * chosen[:, None], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(metrics["loss"] - plain_metrics["loss"], 3 * np.sum(before[chosen] ** 2), rtol=1e-3)
    assert_equal(found.pool, plain.pool)


def test_members_train_on_the_rows_and_the_loss_that_are_given_and_the_set_moves_as_before(key):
    state = start(key, pool_size=1)

    def last_image(key, distilled):
        views, targets = expand(distilled)
        return views[0, -1:] + jax.random.uniform(key), targets[0, -1:]

    plain, plain_metrics = jitted()(state, REAL_IMAGES, REAL_REPRS, key)
    twice = lambda outputs, targets: 2 * jnp.mean((outputs - targets) ** 2)
    step = jitted(member_rows=last_image, member_loss=twice)
    found, metrics = step(state, REAL_IMAGES, REAL_REPRS, key)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, found.distilled, plain.distilled)
    close(metrics["loss"], plain_metrics["loss"])
    rows = last_image(jax.random.fold_in(key, 3), state.distilled)
    expected, value = train_member(member_of(state.pool, 0), *rows, LEARNER, INNER, twice)
    close(metrics["member_loss"], value)
    jax.tree.map(close, member_of(found.pool, 0), expected)
    _, other = step(state, REAL_IMAGES, REAL_REPRS, jax.random.key(5))
    assert not np.isclose(other["member_loss"], value, rtol=1e-3)


def test_several_members_a_step_average_their_losses_and_gradients(key):
    state = start(key, pool_size=3)
    sgd = optax.sgd(1.0)
    state = dataclasses.replace(state, opt_state=sgd.init(state.distilled))
    after, metrics = jax.jit(build(members_per_step=3, optimizer=sgd))(state, REAL_IMAGES, REAL_REPRS, key)
    losses, gradients = zip(*[loss_and_gradient(state.distilled, member_of(state.pool, i).variables) for i in range(3)], strict=True)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-3)
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *gradients)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(mean), rtol=1e-2)
    for name, gradient in flat(mean).items():
        assert relative_error(flat(state.distilled)[name] - flat(after.distilled)[name], gradient) < 1e-2, name


def test_members_are_drawn_without_replacement_and_all_get_their_turn(key):
    state, step = start(key), jitted(members_per_step=2)
    totals = np.zeros(3, int)
    for count, step_key in enumerate(jax.random.split(key, 12), 1):
        before = state
        state, metrics = step(state, REAL_IMAGES, REAL_REPRS, step_key)
        grown = np.asarray(state.pool.age - before.pool.age)
        assert sorted(grown) == [0, 1, 1]
        idle = int(np.argmin(grown))
        assert_equal(member_of(state.pool, idle), member_of(before.pool, idle))
        assert differ(member_of(state.pool, int(np.argmax(grown))), member_of(before.pool, int(np.argmax(grown))))
        totals += grown
        assert float(metrics["mean_age"]) == pytest.approx(2 * count / 3)
    assert totals.min() >= 4


def test_a_member_past_its_age_starts_over_inside_the_step(key):
    state, step = start(key, pool_size=1), jitted(max_age=2)
    ages = []
    for step_key in jax.random.split(key, 6):
        state, _ = step(state, REAL_IMAGES, REAL_REPRS, step_key)
        ages.append(int(state.pool.age[0]))
    assert ages == [1, 2, 0, 1, 2, 0]


def test_the_loss_falls_on_a_toy(key):
    state, losses = run(start(key), jitted(), 60)
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    unseen = LEARNER.init(jax.random.key(7))
    assert float(loss_and_gradient(state.distilled, unseen)[0]) < float(loss_and_gradient(make_set(), unseen)[0])


def test_many_steps_are_one_trace(key):
    traces = []
    step = build(members_per_step=2, support_images=2)

    @jax.jit
    def counted(state, images, reprs, step_key):
        traces.append(1)
        return step(state, images, reprs, step_key)

    state, _ = run(start(key), counted, 5)
    assert len(traces) == 1
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start(key))


def test_the_same_seed_gives_the_same_bits_and_another_other_ones(key):
    step = jitted(support_images=2)
    first, again, other = (run(start(key), step, 4, seed)[0] for seed in (0, 0, 1))
    assert_equal(first, again)
    assert differ(first.distilled, other.distilled)
    assert differ(first.pool, other.pool)


def test_scanned_steps_equal_dispatched_ones(key):
    step, keys = build(), jax.random.split(jax.random.key(0), 4)
    scanned, _ = jax.jit(lambda s: jax.lax.scan(lambda s, k: step(s, REAL_IMAGES, REAL_REPRS, k), s, keys))(start(key))
    looped, _ = run(start(key), jitted(), 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), scanned, looped)


def test_a_step_on_some_images_leaves_the_others_alone_and_draws_afresh(key):
    plain = optax.sgd(0.1)
    state = start(key, pool_size=1)
    state = dataclasses.replace(state, opt_state=plain.init(state.distilled))
    step = jax.jit(build(optimizer=plain, support_images=2))
    drawn = set()
    for step_key in jax.random.split(key, 8):
        after, metrics = step(state, REAL_IMAGES, REAL_REPRS, step_key)
        before_rows, after_rows = state.distilled.images.coefficients, after.distilled.images.coefficients
        moved = np.flatnonzero((np.asarray(before_rows) != np.asarray(after_rows)).any(1))
        reprs_moved = np.asarray(state.distilled.reprs.coefficients) != np.asarray(after.distilled.reprs.coefficients)
        np.testing.assert_array_equal(np.flatnonzero(reprs_moved.any((0, 2))), moved)
        assert len(moved) == 2
        drawn.add(tuple(moved))
        loss, _ = loss_and_gradient(take_images(state.distilled, jnp.asarray(moved)), member_of(state.pool, 0).variables)
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)
    assert len(drawn) > 2


def test_a_member_trains_on_the_images_that_the_step_chose(key):
    state = start(key, pool_size=1)
    after, metrics = jitted(support_images=2)(state, REAL_IMAGES, REAL_REPRS, key)
    pairs = itertools.combinations(range(5), 2)
    rows = {pair: support_rows(take_images(state.distilled, jnp.array(pair))) for pair in pairs}
    losses = {pair: float(train(member_of(state.pool, 0), *rows[pair])[1]) for pair in rows}
    chosen = min(losses, key=lambda pair: abs(losses[pair] - float(metrics["member_loss"])))
    assert losses[chosen] == pytest.approx(float(metrics["member_loss"]), rel=1e-3)
    moved = np.asarray(after.distilled.images.coefficients) - np.asarray(state.distilled.images.coefficients)
    # AdamW's weight decay moves every coefficient a little, its gradient only those of the chosen images.
    assert set(np.argsort(-np.abs(moved).min(1))[:2]) == set(chosen)


@pytest.mark.parametrize("support_images", [5, 9])
def test_as_many_support_images_as_there_are_take_them_all(key, support_images):
    # The functions of a convolution's own gradient are printed with their addresses on older versions.
    program = lambda **settings: re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(build(**settings))(start(key), REAL_IMAGES, REAL_REPRS, key)))
    assert program(support_images=support_images) == program()
    assert program(support_images=4) != program()


def test_the_support_is_every_view_of_every_image():
    distilled = make_set()
    images, reprs = expand(distilled)
    rows, targets = support_rows(distilled)
    np.testing.assert_array_equal(rows, jnp.concatenate(list(images)))
    np.testing.assert_array_equal(targets, jnp.concatenate(list(reprs)))


def test_warm_up_trains_every_member_to_its_age_and_no_further(key):
    state, ages = start(key), jnp.array([2, 0, 1])
    warm_up = jax.jit(make_warm_up_step(kernel=KERNEL, inner_optimizer=INNER))
    before = state
    for _ in range(3):
        for member in range(3):
            state, _ = warm_up(state, member, ages, key)
    np.testing.assert_array_equal(state.pool.age, ages)
    assert_equal(member_of(state.pool, 1), member_of(before.pool, 1))
    assert_equal(state.distilled, before.distilled)
    expected = member_of(before.pool, 0)
    for _ in range(2):
        expected, _ = train(expected, *support_rows(before.distilled))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), member_of(state.pool, 0), expected)


def test_warm_up_on_some_images_trains_on_those_that_its_key_draws(key):
    state, ages = start(key), jnp.array([1, 1, 1])
    warm_up = jax.jit(make_warm_up_step(kernel=KERNEL, inner_optimizer=INNER, support_images=2))
    drawn = take_images(state.distilled, jax.random.permutation(key, 5)[:2])
    expected, _ = train(member_of(state.pool, 1), *support_rows(drawn))
    trained = member_of(warm_up(state, 1, ages, key)[0].pool, 1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), trained, expected)


@pytest.mark.parametrize("max_age", [1, 2, 10])
def test_warm_up_ages_lie_below_the_limit(key, max_age):
    ages = np.asarray(warm_up_ages(key, 500, max_age))
    assert ages.min() == 1
    assert ages.max() == max(max_age - 1, 1)


@pytest.mark.parametrize(("views", "kinds"), SETTINGS)
def test_a_step_in_parts_is_the_step_of_all_rows_at_once(views, kinds, key):
    state = start(key, pool_size=1, distilled=make_set(views, kinds))
    plain, plain_metrics = jitted()(state, REAL_IMAGES, REAL_REPRS, key)
    fast, metrics = jitted(chunk_size=3, remat=True)(state, REAL_IMAGES, REAL_REPRS, key)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, metrics, plain_metrics)
    jax.tree.map(close, fast.distilled, plain.distilled)
    jax.tree.map(close, fast.pool.variables, plain.pool.variables)
    with pytest.raises(AssertionError):
        jax.tree.map(close, fast.distilled, state.distilled)


def test_a_step_of_fast_convolutions_is_that_of_plain_ones(key, monkeypatch):
    state = start(key, pool_size=1)

    def stepped(least_operations, **settings):
        monkeypatch.setattr(conv, "MIN_OPERATIONS", least_operations)
        traced = jax.jit(build(**settings)).trace(state, REAL_IMAGES, REAL_REPRS, key)
        lowered = traced.lower(lowering_platforms=("cpu",))
        return lowered.compile()(state, REAL_IMAGES, REAL_REPRS, key), lowered.as_text()

    # The first layer is gathered, the second in tiles.
    monkeypatch.setattr(conv, "MAX_GATHERED", 9 * SHAPE[-1])
    monkeypatch.setattr(conv, "MIN_TILED", 4)
    (plain, plain_metrics), text = stepped(10**9)
    assert "36x4x8" not in text
    (fast, metrics), text = stepped(0, chunk_size=3, remat=True)
    assert "36x4x8" in text
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, metrics, plain_metrics)
    jax.tree.map(close, fast.distilled, plain.distilled)
    jax.tree.map(close, fast.pool.variables, plain.pool.variables)
