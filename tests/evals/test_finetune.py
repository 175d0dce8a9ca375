import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.evals.finetune import init_finetuning, make_finetune_step
from ssdd_jax.nets import make_learner
from ssdd_jax.nets.layers import HEAD
from ssdd_jax.settings.augment import crop_and_flip

pytestmark = pytest.mark.core

SHAPE = (4, 4, 1)


def test_the_backbone_is_kept_and_the_head_is_fresh(key):
    pretrained = make_learner("convnet", (4,), SHAPE, 7).init(key)
    learner = make_learner("convnet", (4,), SHAPE, 2)
    member = init_finetuning(jax.random.key(1), pretrained, learner, optax.sgd(0.1))
    params = member.variables["params"]
    assert jax.tree.leaves(params[HEAD])[0].shape[-1] == 2
    for name in set(params) - {HEAD}:
        jax.tree.map(np.testing.assert_array_equal, params[name], pretrained["params"][name])
    assert jax.tree.structure(params) == jax.tree.structure(learner.init(key)["params"])


def test_fine_tuning_learns_moves_the_whole_network_and_depends_on_the_seed(key):
    random = np.random.RandomState(0)
    labels = random.randint(0, 2, 64)
    images = (random.randint(0, 100, (64, *SHAPE)) + 120 * labels[:, None, None, None]).astype(np.uint8)
    learner, optimizer = make_learner("convnet", (4,), SHAPE, 2), optax.sgd(0.1, 0.9)
    view = crop_and_flip(1, 0.5)
    step = jax.jit(make_finetune_step(learner=learner, optimizer=optimizer, view=view, normalize=lambda x: x - 0.5))
    start = init_finetuning(key, learner.init(key), learner, optimizer)
    batches = [(jnp.asarray(images[rows]), jnp.asarray(labels[rows])) for rows in np.asarray(batch_schedule(key, 64, 32, 30))]
    first = {seed: step(start, 0, seed, *batches[0])[1]["loss"] for seed in (0, 1)}
    assert float(first[0]) != float(first[1])
    member = start
    for i, batch in enumerate(batches):
        member, metrics = step(member, i, 0, *batch)
    assert float(metrics["loss"]) < 0.5 * float(first[0])
    moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), member.variables["params"], start.variables["params"])
    # The bias before a batch norm has no gradient; everything else moves.
    assert sum(jax.tree.leaves(moved)) >= len(jax.tree.leaves(moved)) - 1
