import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssdd_jax.nets import make_learner
from ssdd_jax.nets.layers import BatchNorm, Conv, Linear, average_pool

pytestmark = pytest.mark.core
RESNET = (64, 128, 256, 512)


def num_params(learner):
    params = jax.eval_shape(learner.init, jax.random.key(0))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def num_features(learner, shape):
    variables = jax.eval_shape(learner.init, jax.random.key(0))
    return jax.eval_shape(learner.features, variables, jax.ShapeDtypeStruct((2, *shape), jnp.float32)).shape


@pytest.mark.parametrize(
    ("net", "widths", "shape", "backbone", "features", "total"),
    [
        ("convnet", (128, 256, 512), (32, 32, 3), 1_480_704, 8192, 5_675_520),
        ("convnet", (64, 128, 256, 512), (64, 64, 3), 1_552_896, 8192, 5_747_712),
        ("resnet18", RESNET, (32, 32, 3), 11_168_832, 512, 11_431_488),
        ("resnet10", RESNET, (32, 32, 3), 4_898_112, 512, 5_160_768),
    ],
)
def test_parameter_counts_and_feature_widths_are_the_published_ones(net, widths, shape, backbone, features, total):
    with_head = make_learner(net, widths, shape, 512)
    assert num_params(make_learner(net, widths, shape, 0)) == backbone
    assert num_params(with_head) == total
    assert num_features(with_head, shape) == (2, features)


def test_the_stem_of_the_resnet_makes_stages_of_34_17_9_and_5_pixels():
    learner = make_learner("resnet10", (2, 2, 2, 2), (32, 32, 3), 0)
    sizes = []

    def record(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        if isinstance(context.module, Conv):
            sizes.append(out.shape[1])
        return out

    variables = learner.init(jax.random.key(0))
    with nn.intercept_methods(record):
        learner.features(variables, jnp.zeros((1, 32, 32, 3)))
    assert list(dict.fromkeys(sizes)) == [34, 17, 9, 5]


def test_a_residual_block_starts_as_the_identity_because_its_last_norm_starts_at_zero():
    learner = make_learner("resnet18", (4, 8), (8, 8, 3), 0)
    scales = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(learner.init(jax.random.key(0))["params"])
        if "scale" in jax.tree_util.keystr(path)
    ]
    assert sum(bool((scale == 0).all()) for scale in scales) == 4


@pytest.mark.parametrize(("layer", "fan_in"), [(Conv(64), 9 * 7), (Linear(4096), 7)])
def test_weights_and_biases_start_uniform_within_one_over_the_root_of_the_fan_in(layer, fan_in, key):
    x = jnp.zeros((1, 4, 4, 7)) if isinstance(layer, Conv) else jnp.zeros((1, 7))
    limit = fan_in**-0.5
    kernel, bias = (np.asarray(leaf) for leaf in sorted(jax.tree.leaves(layer.init(key, x)["params"]), key=lambda p: -p.ndim))
    for value in (kernel, bias):
        assert np.abs(value).max() <= limit
    assert np.abs(kernel).max() > 0.95 * limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)


def test_batch_norm_normalizes_by_the_biased_and_averages_the_unbiased_variance(key):
    x = 3 + 2 * jax.random.normal(key, (5, 4, 4, 2))
    norm = BatchNorm()
    variables = norm.init(key, x, True)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    rows = np.asarray(x, np.float64).reshape(-1, 2)
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(-1, 2), expected, atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
    assert abs(rows.var(0, ddof=1) - rows.var(0)).max() > 1e-3


def test_evaluation_uses_running_statistics_and_does_not_depend_on_the_batch(key):
    learner = make_learner("convnet", (4, 8), (8, 8, 1), 3)
    variables = learner.init(key)
    x = jax.random.normal(key, (6, 8, 8, 1))
    np.testing.assert_allclose(learner.apply(variables, x)[:2], learner.apply(variables, x[:2]), atol=1e-6)
    in_training, stats = learner.apply_train(variables, x)
    assert not np.allclose(in_training, learner.apply(variables, x))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


def test_average_pool_is_the_mean_of_blocks_and_drops_an_odd_row():
    x = jnp.arange(15.0).reshape(1, 5, 3, 1)
    np.testing.assert_allclose(average_pool(x)[0, :, :, 0], [[2.0], [8.0]])


def test_a_pooled_convnet_is_the_spatial_mean_of_its_flattened_features(key):
    flat, pooled = (make_learner("convnet", (4, 8), (8, 8, 1), 0, pooled=p) for p in (False, True))
    variables, x = flat.init(key), jax.random.normal(key, (3, 8, 8, 1))
    expected = flat.features(variables, x).reshape(3, 2, 2, 8).mean((1, 2))
    np.testing.assert_allclose(pooled.features(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("convnt", (4,), (8, 8, 1), 3), "net is 'convnt', expected one of convnet"),
        (("convnet", (4, 4, 4, 4), (8, 8, 1), 3), "a convnet of 4 blocks halves"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        make_learner(*args)
