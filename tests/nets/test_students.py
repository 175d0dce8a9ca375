import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssdd_jax.nets import NETS, make_learner, net_widths
from ssdd_jax.nets.layers import HEAD, Conv, DepthwiseConv, InstanceNorm, max_pool
from ssdd_jax.nets.vgg import pad_to
from ssdd_jax.nets.vit import layer_norm

# A small one of every network: name -> widths, factor.
SMALL = {
    "convnet": ((4, 8), 1.0),
    "vgg11": ((), 1 / 32),
    "alexnet": ((), 1 / 32),
    "resnet10": ((), 1 / 32),
    "resnet18": ((2, 2, 4, 8), 1.0),
    "mobilenet": ((), 1 / 16),
    "vit": ((12, 12), 1.0),
    "convnet_in": ((4, 8), 1.0),
    "convnet_frepo": ((4, 8), 1.0),
    "convnet_no_norm": ((4, 8), 1.0),
}
RESNET = (64, 128, 256, 512)


def template(learner):
    return jax.eval_shape(learner.init, jax.random.key(0))


def num_params(learner):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template(learner)["params"]))


def filled(learner):
    """Return variables of the learner's shapes in which every norm and bias does something."""
    random = np.random.RandomState(0)

    def value(path, leaf):
        draw = random.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return jnp.asarray(0.5 + np.abs(draw))
        return jnp.asarray(draw * (leaf.size / leaf.shape[-1]) ** -0.5 if leaf.ndim > 1 else 0.5 * draw)

    return jax.tree_util.tree_map_with_path(value, template(learner))


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def test_the_networks_and_their_order():
    published = ("convnet", "vgg11", "alexnet", "resnet10", "resnet18", "mobilenet", "vit")
    assert tuple(NETS) == (*published, "convnet_in", "convnet_frepo", "convnet_no_norm") == tuple(SMALL)


@pytest.mark.core
@pytest.mark.parametrize(
    ("net", "side", "widths", "backbone", "features", "total"),
    [
        ("convnet", 32, (128, 256, 512), 1_480_704, 8192, 5_675_520),
        ("convnet", 64, (64, 128, 256, 512), 1_552_896, 8192, 5_747_712),
        ("vgg11", 32, (64, 128, 256, 256, 512, 512, 512, 512), 9_225_984, 512, 9_488_640),
        ("alexnet", 32, (128, 192, 256, 192, 192), 1_843_392, 3072, 3_416_768),
        ("resnet10", 32, RESNET, 4_898_112, 512, 5_160_768),
        ("resnet18", 32, RESNET, 11_168_832, 512, 11_431_488),
        ("mobilenet", 32, (32, 16, 24, 32, 64, 96, 160, 320, 1280), 1_079_504, 1280, 1_735_376),
        ("vit", 32, (192,) * 6, 2_691_648, 192, 2_790_464),
        ("convnet_in", 32, (128,) * 3, 299_520, 2048, 1_348_608),
        # Three convolutions with their biases, 3,584 + 295,168 + 1,180,160; and two norms, of 128 and 256 channels.
        ("convnet_no_norm", 32, (128, 256, 512), 1_478_912, 8192, 5_673_728),
        ("convnet_frepo", 32, (128, 256, 512), 1_478_912 + 768, 8192, 5_673_728 + 768),
    ],
)
def test_without_widths_a_network_is_the_published_one(net, side, widths, backbone, features, total):
    shape = (side, side, 3)
    with_head = make_learner(net, (), shape, 512)
    assert net_widths(net, (), shape, 1.0) == widths
    assert num_params(make_learner(net, (), shape, 0)) == backbone
    assert num_params(with_head) == total
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    assert jax.eval_shape(with_head.features, template(with_head), images).shape == (2, features)


@pytest.mark.core
def test_a_deeper_vit_has_more_blocks():
    assert num_params(make_learner("vit", (192,) * 9, (32, 32, 3), 512)) == 4_125_056
    assert num_params(make_learner("vit", (192,) * 12, (32, 32, 3), 512)) == 5_459_648


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "num_classes", "total"), [((32, 32, 3), 100, 504_420), ((32, 32, 3), 10, 320_010), ((28, 28, 1), 10, 317_706)]
)
def test_the_convnet_of_label_sets_has_the_published_number_of_parameters(shape, num_classes, total):
    assert num_params(make_learner("convnet_in", (), shape, num_classes)) == total


@pytest.mark.core
@pytest.mark.parametrize(
    ("shape", "widths", "sides"),
    [
        ((8, 8, 1), (4,) * 3, [12, 6, 3]),
        ((16, 16, 1), (4,) * 3, [20, 10, 5]),
        ((28, 28, 1), (32, 32, 32), [32, 16, 8]),
        ((32, 32, 1), (4,) * 3, [36, 18, 9]),
        ((32, 32, 3), (4,) * 3, [32, 16, 8]),
        ((64, 64, 3), (4,) * 4, [64, 32, 16, 8]),
    ],
)
@pytest.mark.parametrize("net", ["convnet_in", "convnet_frepo", "convnet_no_norm"])
def test_only_images_of_one_channel_are_padded_to_more_pixels(net, shape, widths, sides, output_sides):
    learner = make_learner(net, widths, shape, 0)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    assert output_sides(Conv, learner.features, template(learner), images) == sides
    assert jax.eval_shape(learner.features, template(learner), images).shape == (2, widths[-1] * (sides[-1] // 2) ** 2)


@pytest.mark.core
def test_instance_norm_is_its_formula_and_a_constant_channel_becomes_its_bias():
    x, norm = 3 + 2 * images_of(2, 5, 4, 3), InstanceNorm()
    x = x.at[1, :, :, 2].set(7.0)
    params = {"scale": images_of(3, seed=1), "bias": images_of(3, seed=2)}
    y = norm.apply({"params": params}, x)
    rows, scale, bias = (np.asarray(array, np.float64) for array in (x, params["scale"], params["bias"]))
    for n in range(2):
        for channel in range(3):
            values = rows[n, :, :, channel]
            expected = (values - values.mean()) / np.sqrt(values.var() + 1e-5) * scale[channel] + bias[channel]
            np.testing.assert_allclose(y[n, :, :, channel], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[1, :, :, 2], np.full((5, 4), bias[2]), atol=1e-6)


@pytest.mark.core
def test_in_the_network_of_frepo_nine_tenths_of_a_running_statistic_are_the_latest_batch_of_a_blocks_input():
    learner, images = make_learner("convnet_frepo", (4, 5, 6), (8, 8, 3), 0), images_of(5, 8, 8, 3)
    variables = filled(learner)
    assert set(variables["batch_stats"]) == {"BatchNorm_0", "BatchNorm_1"}
    _, stats = learner.apply_train(variables, images)
    # The first block, which has no norm, is the network of one block.
    inputs = make_learner("convnet_frepo", (4,), (8, 8, 3), 0).features({**variables, "batch_stats": {}}, images)
    rows, old, new = (np.asarray(inputs, np.float64).reshape(-1, 4), variables["batch_stats"]["BatchNorm_0"], stats["BatchNorm_0"])
    np.testing.assert_allclose(new["mean"], 0.1 * old["mean"] + 0.9 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.1 * old["var"] + 0.9 * rows.var(0), rtol=1e-4)


@pytest.mark.core
@pytest.mark.parametrize("net", ["convnet_frepo", "convnet_no_norm"])
def test_the_networks_of_frepo_start_lecun_normal_without_biases(net):
    params = make_learner(net, (32, 32), (8, 8, 3), 40).init(jax.random.key(0))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            assert float(leaf.std()) == pytest.approx((leaf.size / leaf.shape[-1]) ** -0.5, rel=0.1), name
        else:
            np.testing.assert_array_equal(leaf, 1.0 if "scale" in name else 0.0)


@pytest.mark.core
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (64, 64, 3)])
def test_every_network_takes_small_images_and_its_linear_layer_is_the_only_thing_that_outputs_add(net, shape):
    widths, factor = SMALL[net]
    bare, with_head = (make_learner(net, widths, shape, n, width_factor=factor) for n in (0, 3))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    features = jax.eval_shape(with_head.features, template(with_head), images)
    assert features == jax.eval_shape(bare.apply, template(bare), images)
    assert jax.eval_shape(with_head.apply, template(with_head), images).shape == (2, 3)
    params = dict(template(with_head)["params"])
    assert params.pop(HEAD) == {
        "Dense_0": {"kernel": jax.ShapeDtypeStruct((features.shape[1], 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    }
    assert params == template(bare)["params"]


@pytest.mark.core
@pytest.mark.parametrize("net", NETS)
def test_a_pooled_representation_is_as_wide_as_the_last_width(net):
    shape, (widths, factor) = (64, 64, 3), SMALL[net]
    learner = make_learner(net, widths, shape, 0, pooled=True, width_factor=factor)
    features = jax.eval_shape(learner.features, template(learner), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert features.shape == (2, net_widths(net, widths, shape, factor)[-1])


@pytest.mark.parametrize("net", NETS)
def test_every_parameter_gets_a_finite_gradient_and_training_moves_every_statistic(net):
    widths, factor = SMALL[net]
    learner, images = make_learner(net, widths, (8, 8, 1), 3, width_factor=factor), images_of(4, 8, 8, 1)
    variables = filled(learner)

    def loss(params):
        outputs, stats = learner.apply_train({**variables, "params": params}, images)
        return (outputs**2).mean(), (outputs, stats)

    # Hardly optimized, it compiles much faster.
    gradient = jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"]).compile({"xla_backend_optimization_level": 0})
    grads, (outputs, stats) = gradient(variables["params"])
    assert outputs.shape == (4, 3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
        assert np.any(leaf != 0), jax.tree_util.keystr(path)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    for before, after in zip(jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(stats), strict=True):
        assert not np.array_equal(before, after)
    assert (stats == {}) == (net in ("vit", "convnet_in", "convnet_no_norm"))


@pytest.mark.core
def test_padding_is_centred_and_leaves_larger_images_as_they_are():
    x = images_of(1, 3, 6, 2)
    np.testing.assert_array_equal(pad_to(x, 6), np.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0))))
    np.testing.assert_array_equal(pad_to(x, 3), x)


@pytest.mark.core
def test_a_vit_starts_as_timms():
    params = jax.jit(make_learner("vit", (96,), (32, 32, 3), 40).init)(jax.random.key(0))["params"]
    flat = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for name, leaf in flat.items():
        if "patch_embed" in name:
            assert 0.9 * 48**-0.5 < np.abs(leaf).max() <= 48**-0.5
        elif name.endswith("['bias']"):
            assert not leaf.any()
        elif "scale" in name:
            assert (leaf == 1).all()
        else:
            assert leaf.std() == pytest.approx(0.02, rel=0.25), name


@pytest.mark.core
@pytest.mark.parametrize(
    ("net", "widths", "side", "factor", "expected"),
    [
        ("convnet", (), 28, 0.25, (32, 64, 128)),
        ("convnet", (), 64, 0.125, (8, 16, 32, 64)),
        ("convnet", (), 224, 1.0, (32, 64, 128, 256, 512)),
        ("convnet", (10, 3), 28, 0.5, (5, 2)),
        ("resnet18", (8, 8, 16, 16), 28, 0.01, (1,) * 4),
        ("vit", (), 28, 0.25, (48,) * 6),
    ],
)
def test_the_width_factor_multiplies_published_and_given_widths(net, widths, side, factor, expected):
    assert net_widths(net, widths, (side, side, 1), factor) == expected
    if side < 224:
        one, other = make_learner(net, widths, (side, side, 1), 2, width_factor=factor), make_learner(net, expected, (side, side, 1), 2)
        assert template(one) == template(other)


@pytest.mark.core
@pytest.mark.parametrize(
    ("args", "factor", "message"),
    [
        (("vgg11", (4, 8), (32, 32, 3), 0), 1.0, r"vgg11 got 2 widths \(4, 8\), expected 8; give \(\) for \(64, 128"),
        (("alexnet", (4,), (32, 32, 3), 0), 1.0, "alexnet got 1 widths .*, expected 5"),
        (("resnet18", (4, 8), (32, 32, 3), 0), 1.0, r"resnet18 got 2 widths \(4, 8\), expected 4; give \(\) for \(64, 128"),
        (("mobilenet", (4, 4), (32, 32, 3), 0), 1.0, "mobilenet got 2 widths .*, expected 9"),
        (
            ("vit", (12, 24), (32, 32, 3), 0),
            1.0,
            r"vit got widths \(12, 24\), expected one per block, all equal and divisible by its 3 heads",
        ),
        (("vit", (), (32, 32, 3), 0), 0.1, r"vit got widths \(19, .*divisible by its 3 heads"),
        (("vit", (), (30, 32, 3), 0), 1.0, "sides divisible by its patches of 4 pixels"),
        (("alexnet", (), (4, 8, 3), 0), 1.0, r"alexnet halves \(4, 8, 3\) images to nothing, expected at least 8 x 8 pixels"),
        (("convnet", (), (4, 4, 3), 0), 1.0, "a convnet of 3 blocks halves"),
        (("convnet_in", (), (7, 7, 3), 0), 1.0, "a convnet_in of 3 blocks halves"),
        (("convnet_in", (), (3, 8, 1), 0), 1.0, "a convnet_in of 3 blocks halves"),
        (("convnet_frepo", (), (3, 8, 1), 0), 1.0, "a convnet_frepo of 3 blocks halves"),
        (("convnet_no_norm", (), (7, 7, 3), 0), 1.0, "a convnet_no_norm of 3 blocks halves"),
        (("convnet", (), (32, 32, 3), 0), 0.0, "width_factor is 0.0, expected a positive number"),
        (("convnet", (), (32, 32, 3), 0), math.nan, "width_factor is nan"),
    ],
)
def test_widths_and_images_that_do_not_fit_a_network_are_refused(args, factor, message):
    with pytest.raises(ValueError, match=message) as error:
        make_learner(*args, width_factor=factor)
    assert "\n" not in str(error.value)


@pytest.mark.core
def test_max_pool_equals_the_window_maximum_and_so_does_its_gradient_where_none_tie():
    x = images_of(2, 5, 7, 3)
    window = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(max_pool(x), window(x))
    gradient = lambda pool: jax.grad(lambda x: jnp.sin(pool(x)).sum())(x)
    np.testing.assert_array_equal(gradient(max_pool), gradient(window))
    np.testing.assert_array_equal(jax.grad(lambda x: max_pool(nn.relu(x)).sum())(-jnp.abs(x)), jnp.zeros_like(x))


@pytest.mark.core
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 4), (1, 2)])
def test_a_depthwise_convolution_equals_a_convolution_with_a_group_a_channel(stride, size):
    x, layer = images_of(2, *size, 3), DepthwiseConv(stride)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    grouped = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )
    np.testing.assert_allclose(layer.apply(variables, x), grouped, rtol=1e-5, atol=1e-6)
    assert np.abs(kernel).max() <= 1 / 3


@pytest.mark.core
def test_the_layer_norm_of_a_vit_adds_a_millionth_to_the_variance():
    # As small as the root of it: what the comparison with PyTorch, on activations of order one, would not see.
    x, norm = 1e-3 * images_of(2, 24), layer_norm("norm")
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    rows = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6), rtol=1e-4, atol=1e-5)
