"""The outer optimizer: what is kept goes on when approximation networks join, and they start as if they were alone. Students' recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.approximation import init_networks
from ssdd_jax.core.distilled import Layout, compress, init_distilled
from ssdd_jax.core.optimizers import continue_with_networks, outer_optimizer, sgd, student_optimizer, student_schedule
from ssdd_jax.settings.evaluation import LABEL_RECIPES, RECIPES, RecipeSpec
from ssdd_jax.settings.methods import RegressionSpec
from ssdd_jax.settings.spec import OuterSpec, RunSpec

pytestmark = pytest.mark.core

LAYOUT = Layout((2, 2, 1), (2, 2, 1), ("identity", "hflip", "vflip"), ("stored", "network", "stored"))
SPEC, METHOD = RunSpec(outer=OuterSpec(steps=6, final_rate=0.5, weight_decay=0.1)), RegressionSpec(learning_rate=0.1)
FREE, JOINT = 4, 2


def draw_like(tree, seed):
    random = np.random.RandomState(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), tree)


def adamw(values, grads, first=0):
    """Return what optax's AdamW alone makes of an array, with the outer loop's schedule from its step `first` on."""
    rate = lambda count: 0.1 * (1 - 0.5 * (count + first) / 6)
    optimizer = optax.adamw(rate, weight_decay=0.1)
    state = optimizer.init(values)
    for grad in grads:
        updates, state = optimizer.update(grad, state, values)
        values = optax.apply_updates(values, updates)
    return values


def test_moments_and_schedule_of_what_is_kept_go_on_and_networks_start_afresh():
    start = init_distilled(jnp.ones((3, 2, 2, 1)), draw_like(jnp.zeros((3, 3, 5)), 9), LAYOUT)
    distilled, optimizer, seen = start, outer_optimizer(SPEC, METHOD), []
    state = optimizer.init(distilled)
    for step in range(FREE):
        seen.append(draw_like(distilled, step))
        updates, state = optimizer.update(seen[-1], state, distilled)
        distilled = optax.apply_updates(distilled, updates)
    networks = init_networks(jax.random.key(0), 1, 5, 2)
    distilled, optimizer, joined = compress(distilled, LAYOUT, networks), outer_optimizer(SPEC, METHOD, FREE), []
    state = continue_with_networks(optimizer, state, distilled, LAYOUT)
    for step in range(JOINT):
        joined.append(draw_like(distilled, FREE + step))
        updates, state = optimizer.update(joined[-1], state, distilled)
        distilled = optax.apply_updates(distilled, updates)
    pixels = adamw(start.images.rows, [grad.images.rows for grad in seen + joined])
    np.testing.assert_allclose(distilled.images.rows, pixels, rtol=1e-5)
    # The first and the third view are kept.
    rows = jnp.array([0, 2])
    targets = adamw(start.reprs.rows[rows], [grad.reprs.rows[rows] for grad in seen] + [grad.reprs.rows for grad in joined])
    np.testing.assert_allclose(distilled.reprs.rows, targets, rtol=1e-5)
    np.testing.assert_allclose(distilled.networks.w1, adamw(networks.w1, [grad.networks.w1 for grad in joined], FREE), rtol=1e-5)


@pytest.mark.parametrize("per_epoch", [1, 3, 17])
@pytest.mark.parametrize(("name", "full", "epochs"), [("dc", 502, 1001), ("datm", 502, 1001), ("krr_st_label", 500, 1000)])
def test_the_rate_of_a_label_recipe_drops_to_a_tenth_after_whole_epochs(name, full, epochs, per_epoch):
    recipe = LABEL_RECIPES[name]
    assert recipe.epochs == epochs
    rate = student_schedule(recipe, epochs * per_epoch, per_epoch)
    # That of `datm` is the set's, of which these are shares.
    peak = recipe.learning_rate or 1.0
    assert peak == (1.0 if name == "datm" else 0.01)
    for done, share in ((0, 1.0), (full * per_epoch - 1, 1.0), (full * per_epoch, 0.1), (epochs * per_epoch - 1, 0.1)):
        np.testing.assert_allclose(rate(jnp.asarray(done)), share * peak, rtol=1e-6)


def test_the_rate_of_frepo_warms_up_for_500_updates_and_falls_to_a_hundredth():
    rate = student_schedule(LABEL_RECIPES["frepo"], 2000, 1)
    expected = {0: 0.0, 250: 1.5e-4, 500: 3e-4, 1250: 3e-4 * (0.01 + 0.99 / 2), 2000: 3e-6}
    for done, value in expected.items():
        np.testing.assert_allclose(rate(jnp.asarray(done)), value, rtol=1e-4, atol=1e-10)


def moved(recipe, updates, gradients, start):
    """Return the values after every update of a student's optimizer."""
    optimizer, values, seen = student_optimizer(recipe, updates, 1), jnp.asarray(start), []
    state, step = optimizer.init(values), jax.jit(optimizer.update)
    for gradient in gradients:
        changes, state = step(jnp.asarray(gradient), state, values)
        values = optax.apply_updates(values, changes)
        seen.append(np.asarray(values))
    return seen


@pytest.mark.parametrize("reset", [True, False])
def test_after_the_drop_the_momentum_starts_at_zero_or_goes_on(reset):
    random = np.random.RandomState(0)
    start, gradients = random.normal(size=3).astype(np.float32), random.normal(size=(7, 3)).astype(np.float32)
    recipe = RecipeSpec(learning_rate=0.1, weight_decay=0.2, decay_at=3 / 7, reset_momentum=reset)
    values, momentum, expected = start.astype(np.float64), np.zeros(3), []
    for number, gradient in enumerate(gradients):
        if reset and number == 3:
            momentum = np.zeros(3)
        momentum = 0.9 * momentum + gradient + 0.2 * values
        values = values - (0.1 if number < 3 else 0.01) * momentum
        expected.append(values)
    np.testing.assert_allclose(moved(recipe, 7, gradients, start), expected, rtol=1e-5)


def test_adamw_created_anew_has_the_moments_and_the_count_of_its_first_update():
    random = np.random.RandomState(1)
    start, gradients = random.normal(size=3).astype(np.float32), random.normal(size=(5, 3)).astype(np.float32)
    recipe = RecipeSpec("adamw", 0.1, weight_decay=0.3, decay_at=0.4, reset_momentum=True)
    seen = moved(recipe, 5, gradients, start)
    alone = RecipeSpec("adamw", 0.01, weight_decay=0.3)
    np.testing.assert_allclose(seen[2:], moved(alone, 3, gradients[2:], seen[1]), rtol=1e-5)


@pytest.mark.parametrize("kind", RECIPES)
def test_without_a_drop_the_optimizer_is_plain_sgd(kind):
    recipe, params = RECIPES[kind], {"w": jnp.ones((2, 3))}
    plain = sgd(recipe, optax.constant_schedule(recipe.learning_rate))
    programs = []
    for optimizer in (student_optimizer(recipe, 10, 2), plain):
        state = optimizer.init(params)
        programs.append(str(jax.make_jaxpr(optimizer.update)(params, state, params)))
    assert programs[0] == programs[1]
