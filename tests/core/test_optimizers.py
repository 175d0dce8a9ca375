"""The outer optimizer: what is kept goes on when approximation networks join, and they start as if they were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.approximation import init_networks
from ssdd_jax.core.distilled import Layout, compress, init_distilled
from ssdd_jax.core.optimizers import continue_with_networks, outer_optimizer
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
