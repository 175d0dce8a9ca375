import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.outer import block_forward

from ssdd_jax.nets import NETS, conv, make_learner
from ssdd_jax.nets.initial import kaiming_fan_out_init
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


def test_the_stem_of_the_resnet_makes_stages_of_34_17_9_and_5_pixels(output_sides):
    learner = make_learner("resnet10", (2, 2, 2, 2), (32, 32, 3), 0)
    assert output_sides(Conv, learner.init, jax.random.key(0)) == [34, 17, 9, 5]


def test_a_residual_block_starts_as_the_identity_because_its_last_norm_starts_at_zero():
    learner = make_learner("resnet10", (4, 4, 8, 8), (8, 8, 3), 0)
    scales = [
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(learner.init)(jax.random.key(0))["params"])
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
    variables = fill(learner)
    x = jax.random.normal(key, (6, 8, 8, 1))
    np.testing.assert_allclose(learner.apply(variables, x)[:2], learner.apply(variables, x[:2]), atol=1e-6)
    in_training, stats = learner.apply_train(variables, x)
    assert not np.allclose(in_training, learner.apply(variables, x))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])


def test_average_pool_is_the_mean_of_blocks_and_drops_an_odd_row():
    x = jnp.arange(15.0).reshape(1, 5, 3, 1)
    np.testing.assert_allclose(average_pool(x)[0, :, :, 0], [[2.0], [8.0]])


@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (2, 5, 7, 3)])
def test_the_gradient_of_average_pool_is_the_derived_one(shape):
    def loss(x):
        return jnp.sum(jnp.tanh(average_pool(x)) * draw(2, 3, 2, 3)[:, : shape[1] // 2, :1])

    def plain(x):
        with conv.plain_convolutions():
            return loss(x)

    np.testing.assert_allclose(*(jax.jit(jax.grad(fn))(draw(*shape, seed=1)) for fn in (loss, plain)), rtol=1e-6)


def test_a_pooled_convnet_is_the_spatial_mean_of_its_flattened_features(key):
    flat, pooled = (make_learner("convnet", (4, 8), (8, 8, 1), 0, pooled=p) for p in (False, True))
    variables, x = fill(flat), jax.random.normal(key, (3, 8, 8, 1))
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


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def fill(learner):
    """Return variables of the learner's shapes in which every norm does something."""
    value = lambda path, leaf: jnp.abs(draw(*leaf.shape)) + 0.5 if path[-1].key == "var" else 0.3 * draw(*leaf.shape)
    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(learner.init, jax.random.key(0)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_batch_norm_is_the_derived_one(dtype):
    x, params = (3 + 2 * draw(4, 3, 2, 5)).astype(dtype), {"scale": draw(5, seed=1), "bias": draw(5, seed=2)}
    running = {"mean": jnp.zeros(5), "var": jnp.ones(5)}

    def loss(x, params):
        y, updated = BatchNorm().apply({"params": params, "batch_stats": running}, x, True, mutable=["batch_stats"])
        # Through the running statistics, too.
        of_stats = sum(jnp.sum(jnp.tanh(leaf) * draw(5, seed=3)) for leaf in jax.tree.leaves(updated))
        return jnp.sum(jnp.tanh(y.astype(jnp.float32)) * draw(*x.shape, seed=4)) + of_stats

    def plain(x, params):
        with conv.plain_convolutions():
            return loss(x, params)

    for mine, theirs in zip(*(jax.tree.leaves(jax.jit(jax.grad(fn, (0, 1)))(x, params)) for fn in (loss, plain)), strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(mine.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance, atol=tolerance)


def test_resnet_convolutions_start_he_normal_over_fan_out(key):
    conv = Conv(32, use_bias=False, kernel_init=kaiming_fan_out_init)
    kernel = jax.jit(conv.init)(key, jnp.zeros((1, 4, 4, 16)))["params"]["Conv_0"]["kernel"]
    assert float(kernel.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_away_from_its_start_equals_the_formula(train, affine):
    x, running = 2 * draw(6, 3) + 3, {"mean": draw(3, seed=1), "var": jnp.abs(draw(3, seed=2)) + 1}
    params = {"scale": draw(3, seed=3), "bias": draw(3, seed=4)} if affine else {}
    y, updated = BatchNorm(affine=affine).apply({"params": params, "batch_stats": running}, x, train, mutable=["batch_stats"])
    rows, mean, var = (np.asarray(array, np.float64) for array in (x, running["mean"], running["var"]))
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) if train else (rows - mean) / np.sqrt(var + 1e-5)
    if affine:
        expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    stats = updated.get("batch_stats", running)
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * rows.mean(0) if train else mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * rows.var(0, ddof=1) if train else var, rtol=1e-5)


def test_a_convnet_equals_its_formula_in_float64():
    learner, images = make_learner("convnet", (4, 6), (8, 8, 2), 5), draw(3, 8, 8, 2)
    variables, x = fill(learner), np.asarray(images, np.float64)
    params, stats = variables["params"], variables["batch_stats"]
    for i in range(2):
        norm, conv = params[f"BatchNorm_{i}"], params[f"Conv_{i}"]["Conv_0"]
        block = {"kernel": conv["kernel"], "bias": conv["bias"], "scale": norm["scale"], "shift": norm["bias"], **stats[f"BatchNorm_{i}"]}
        x, _ = block_forward({name: np.asarray(leaf, np.float64) for name, leaf in block.items()}, x)
    expected = x.reshape(3, -1)
    np.testing.assert_allclose(learner.features(variables, images), expected, rtol=1e-4, atol=1e-5)
    head = params["Linear_0"]["Dense_0"]
    outputs = expected @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(learner.apply(variables, images), outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("net", "widths"), [("convnet", (4,)), ("resnet10", (4, 4, 4, 4))])
def test_without_a_head_the_outputs_are_the_features_and_training_moves_every_statistic(net, widths):
    learner, images = make_learner(net, widths, (4, 4, 1), 0), draw(3, 4, 4, 1)
    variables = fill(learner)
    np.testing.assert_array_equal(learner.apply(variables, images), learner.features(variables, images))
    _, stats = learner.apply_train(variables, images)
    for before, after in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(stats), strict=True):
        assert not np.array_equal(before, after)


IMAGES = jax.random.normal(jax.random.key(1), (6, 16, 16, 3))


def outputs_and_gradients(learner, variables):
    def loss(params):
        outputs, stats = learner.apply_train({**variables, "params": params}, IMAGES)
        return jnp.mean((outputs - 1.0) ** 2), (outputs, stats)

    gradients, (outputs, stats) = jax.grad(loss, has_aux=True)(variables["params"])
    return learner.features(variables, IMAGES), learner.apply(variables, IMAGES), outputs, stats, gradients


@pytest.mark.parametrize("net", ["convnet", "resnet10", "vit"])
def test_bfloat16_activations_stay_near_float32_and_all_that_is_returned_is_float32(net):
    widths = {"convnet": (8, 16), "resnet10": (8, 8, 16, 16), "vit": (12, 12)}[net]
    exact, rounded = (make_learner(net, widths, (16, 16, 3), 5, precision=precision) for precision in ("float32", "bfloat16"))
    variables = fill(exact)
    expected, found = (jax.jit(outputs_and_gradients, static_argnums=0)(learner, variables) for learner in (exact, rounded))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
    norm = lambda trees: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(trees)))
    for mine, theirs in zip(found, expected, strict=True):
        error = norm(jax.tree.map(lambda a, b: a - b, mine, theirs)) / (norm(theirs) + 1e-6)
        assert error < 0.1
    assert norm(jax.tree.map(lambda a, b: a - b, found[2], expected[2])) > 0


@pytest.mark.parametrize(("precision", "word"), [("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("bfloat16", "bf16")])
def test_every_product_of_a_network_has_the_precision_that_was_asked_for(precision, word):
    learner = make_learner("convnet", (8, 16), (16, 16, 3), 5, precision=precision)
    variables = fill(learner)
    text = jax.jit(lambda v: outputs_and_gradients(learner, v)).trace(variables).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]
    assert len(products) > 8
    assert all(word in line for line in products)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'float16', expected one of tensorfloat32, float32, bfloat16"):
        make_learner("convnet", (8, 16), (16, 16, 3), 5, precision="float16")


# The smallest of each network that has all of its layers.
SMALL = {
    "convnet": ((4, 5), (8, 8, 2)),
    "vgg11": ((2,) * 8, (32, 32, 1)),
    "alexnet": ((3,) * 5, (32, 32, 1)),
    "resnet10": ((2, 3, 4, 5), (8, 8, 1)),
    "resnet18": ((2, 3, 4, 5), (8, 8, 1)),
    "mobilenet": ((2,) * 9, (8, 8, 1)),
    "vit": ((6, 6), (8, 8, 1)),
    "convnet_in": ((4, 5), (8, 8, 1)),
    "convnet_frepo": ((4, 5), (8, 8, 1)),
    "convnet_no_norm": ((4, 5), (8, 8, 1)),
}


@pytest.mark.parametrize("net", list(NETS))
def test_without_fast_convolutions_there_is_forward_mode_and_the_second_derivative(net, monkeypatch):
    monkeypatch.setattr(conv, "MIN_OPERATIONS", 0)
    widths, shape = SMALL[net]
    fast, plain = (make_learner(net, widths, shape, 2, precision="float32", fast_convolutions=fast) for fast in (True, False))
    # Quicker than `init`, which would compile another program.
    variables = jax.tree.map(lambda leaf: 0.1 + 0.1 * abs(draw(*leaf.shape)), jax.eval_shape(fast.init, jax.random.key(0)))
    images = draw(2, *shape)

    forward = lambda x: jax.jvp(lambda x: plain.apply(variables, x), (x,), (x,))
    outputs, tangent, expected = jax.jit(lambda x: (*forward(x), fast.apply(variables, x)))(images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4)
    assert np.isfinite(tangent).all()
    assert np.abs(tangent).max() > 0

    def loss(factor):
        params = jax.tree.map(lambda leaf: factor * leaf, variables["params"])
        return jnp.sum(plain.apply_train({**variables, "params": params}, images)[0])

    # Traced only: compiling it takes seconds.
    jax.eval_shape(jax.jacfwd(jax.grad(loss)), 1.0)


def test_the_hessian_without_fast_convolutions_is_that_of_reverse_mode(monkeypatch):
    monkeypatch.setattr(conv, "MIN_OPERATIONS", 0)
    fast, plain = (make_learner("convnet", (2,), (4, 4, 1), 1, precision="float32", fast_convolutions=fast) for fast in (True, False))
    variables, image = fill(fast), draw(1, 4, 4, 1)
    value = lambda learner: lambda x: jnp.sum(jnp.tanh(learner.apply(variables, x)))
    found = jax.jit(jax.hessian(value(plain)))(image)
    expected = jax.jit(jax.jacrev(jax.jacrev(value(fast))))(image)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.eval_shape(jax.hessian(value(fast)), image)
