"""The library inside a program that has switched 64-bit numbers on."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, optax
from ssdd_jax import Layout, feature_kernel, init_distilled, init_outer, make_learner, make_outer_step
images, reprs = jax.random.normal(jax.random.key(0), (24, 8, 8, 1), jnp.float32), jax.random.normal(jax.random.key(1), (24, 3), jnp.float32)
start = init_distilled(images[:6], reprs[None, :6], Layout((8, 8, 1), (8, 8, 1)))
kernel = feature_kernel(make_learner("convnet", (4,), (8, 8, 1), 3))
parts = dict(kernel=kernel, optimizer=optax.adam(1e-2), inner_optimizer=optax.sgd(0.1, 0.9))
state = jax.jit(lambda key: init_outer(key, start, pool_size=2, **parts))(jax.random.key(2))
new, metrics = jax.jit(make_outer_step(max_age=5, **parts))(state, images, reprs, jax.random.key(3))
assert jax.config.jax_enable_x64
assert {str(leaf.dtype) for leaf in jax.tree.leaves((new.pool.variables, new.distilled))} == {"float32"}
# A state that is stepped again must be of the types that it was compiled for.
assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, state)
"""


def test_parameters_statistics_and_states_keep_their_types():
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "JAX_ENABLE_X64": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
