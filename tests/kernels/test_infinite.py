from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import kernels as oracle
from oracles.krr import finite_difference

from ssdd_jax.core.distilled import Layout, init_distilled
from ssdd_jax.core.outer import outer_loss
from ssdd_jax.kernels.infinite import conv_kernel, fc_kernel
from ssdd_jax.registry import KERNELS

pytestmark = pytest.mark.core

KINDS = ("nngp", "ntk")
FC = {(depth, kind): partial(fc_kernel, depth=depth, kind=kind) for depth in (1, 3) for kind in KINDS}
CONV = {kind: partial(conv_kernel, depth=2, kind=kind) for kind in KINDS}
ALL = [*FC.values(), *CONV.values()]
# Computed in float64 from the recursion of Jacot et al.; a Monte-Carlo run of 200,000 hidden units agrees with the first.
EXPECTED = {
    (1, "nngp"): [[1.2351528245, 0.1331974716, 0.0145159668], [0.0234905414, 0.2381321271, 1.2788362361]],
    (1, "ntk"): [[2.3254362099, 0.105758766, -0.1127030097], [-0.147144344, 0.3214557072, 2.4350652503]],
    (3, "nngp"): [[1.263764573, 0.3078297463, 0.6789536038], [0.6676711121, 0.3519750082, 1.3037737603]],
    (3, "ntk"): [[4.2725283712, 0.505343918, 0.9113533823], [0.8870614612, 0.7168374502, 4.5383318067]],
}


def rows():
    return np.sin(np.arange(6) + 0.5).reshape(2, 3), np.cos(0.4 * np.arange(9)).reshape(3, 3)


def images(count, shape=(4, 3, 2), seed=0):
    return np.random.RandomState(seed).normal(size=(count, *shape))


@pytest.mark.parametrize("settings", FC)
def test_fully_connected_kernels_have_their_known_values(settings, float64):
    np.testing.assert_allclose(FC[settings](*map(jnp.asarray, rows())), EXPECTED[settings], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize(("kernel", "of_pair"), [(fc_kernel, oracle.fc), (conv_kernel, oracle.conv)])
def test_kernels_of_any_depth_equal_the_recursion_of_every_pair(kernel, of_pair, depth, float64):
    x, y = images(2), images(3, seed=1)
    flat = (lambda image: image.reshape(-1)) if kernel is fc_kernel else (lambda image: image)
    for i, kind in enumerate(KINDS):
        expected = [[of_pair(flat(a), flat(b), depth)[i] for b in y] for a in x]
        np.testing.assert_allclose(kernel(jnp.asarray(x), jnp.asarray(y), depth=depth, kind=kind), expected, rtol=1e-9)


def test_the_network_of_finite_width_comes_near_its_nngp():
    x, y = rows()
    draw, width = np.random.RandomState(0), 100_000
    weights, biases = draw.normal(size=(3, width)) * np.sqrt(2 / 3), 0.1 * draw.normal(size=width)
    hidden = lambda inputs: np.maximum(inputs @ weights + biases, 0)
    np.testing.assert_allclose(2 * hidden(x) @ hidden(y).T / width + 0.01, EXPECTED[1, "nngp"], atol=0.02)


@pytest.mark.parametrize("kernel", ALL)
def test_a_kernel_of_one_batch_is_symmetric_positive_and_that_of_two_equal_batches(kernel, float64):
    x = jnp.asarray(images(6))
    own = np.asarray(kernel(x, x))
    np.testing.assert_allclose(own, own.T, rtol=1e-12)
    np.testing.assert_array_equal(own, kernel(x, jnp.array(x)))
    assert np.linalg.eigvalsh(own).min() > 0
    # The diagonal has the angle 0 to the last bit: its tangent kernel is one half of the former one, not the rounding of an angle.
    np.testing.assert_allclose(np.diag(kernel(x.astype(jnp.float32), x.astype(jnp.float32))), np.diag(own), rtol=1e-5)


def test_scaled_inputs_scale_the_first_covariance_by_the_square(float64):
    x, y = map(jnp.asarray, rows())
    linear = lambda factor: fc_kernel(factor * x, factor * y, depth=0) - 0.01
    np.testing.assert_allclose(linear(3.0), 9 * linear(1.0), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_one_pixel_have_the_fully_connected_kernel(kind, float64):
    x, y = (jnp.asarray(images(n, (1, 1, 5), n)) for n in (2, 3))
    np.testing.assert_allclose(conv_kernel(x, y, depth=3, kind=kind, size=1), fc_kernel(x, y, depth=3, kind=kind), rtol=1e-12)
    # Of a window of 3 x 3 eight pixels are zeros outside: weights of a ninth of the variance.
    expected = [
        [oracle.fc(a.reshape(-1), b.reshape(-1), 3, weights=2 / 9)[KINDS.index(kind)] for b in np.asarray(y)] for a in np.asarray(x)
    ]
    np.testing.assert_allclose(conv_kernel(x, y, depth=3, kind=kind), expected, rtol=1e-12)


@pytest.mark.parametrize("kernel", [FC[3, "ntk"], *CONV.values()])
def test_blocks_have_the_values_and_gradients_of_the_whole(kernel, float64):
    x, y = jnp.asarray(images(5)), jnp.asarray(images(3, seed=1))
    total = lambda x, y, **limit: jnp.sum(jnp.sin(kernel(x, y, **limit)))
    # The convolutional kernels in blocks of two rows, of which the last is filled up; the other one row by row.
    limit = 2 * 3 * 12 if kernel.func is conv_kernel else 1
    np.testing.assert_allclose(kernel(x, y, max_numbers=limit), kernel(x, y), rtol=1e-13)
    gradients = jax.jit(jax.grad(partial(total, max_numbers=limit), (0, 1)))(x, y)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), gradients, jax.jit(jax.grad(total, (0, 1)))(x, y))


@pytest.mark.parametrize("kernel", ALL)
def test_gradients_equal_finite_differences_also_of_a_batch_with_itself(kernel, float64):
    x, y = images(2, (2, 2, 1)), images(2, (2, 2, 1), 1)
    weights = np.random.RandomState(2).normal(size=(2, 2))
    for of in map(jax.jit, (lambda a: jnp.sum(weights * kernel(a, jnp.asarray(y))), lambda a: jnp.sum(weights * kernel(a, a)))):
        expected = finite_difference(lambda a, of=of: float(of(jnp.asarray(a))), x)
        np.testing.assert_allclose(jax.jit(jax.grad(of))(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kernel", ALL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_equal_zero_opposite_and_large_images_have_finite_values_and_gradients(kernel, dtype):
    image = jnp.asarray(images(1), jnp.float32)
    large = 1e15 if dtype is jnp.float32 else 1e3
    x = jnp.concatenate([image, image, 0 * image, 0 * image, large * image, -large * image, image + 1e-4]).astype(dtype)
    values, gradient = jax.jit(jax.value_and_grad(lambda a: jnp.mean(kernel(a, a) / 1e30)))(x)
    assert np.isfinite(values)
    assert np.isfinite(gradient).all()
    assert kernel(x, x).dtype == jnp.float32


def predict(kernel, support, targets, points):
    return jax.jit(partial(kernel.predict, None))(support, targets, points)[0]


@pytest.mark.parametrize("name", ["fc_ntk", "fc_nngp", "conv_ntk", "conv_nngp"])
def test_predictions_interpolate_and_do_not_depend_on_the_order_of_the_support(name, float64):
    kernel = KERNELS[name](None)
    assert kernel.learner is None
    support, targets, points = (jnp.asarray(images(n, shape, n)) for n, shape in ((5, (4, 4, 2)), (5, (3,)), (4, (4, 4, 2))))
    np.testing.assert_allclose(predict(kernel, support, targets, support), targets, atol=1e-3)
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(
        predict(kernel, support[order], targets[order], points), predict(kernel, support, targets, points), rtol=1e-6
    )
    shallow = predict(KERNELS[name](None, depth=2), support, targets, points)
    assert float(jnp.abs(shallow - predict(kernel, support, targets, points)).max()) > 1e-3


@pytest.mark.parametrize("name", ["fc_ntk", "conv_ntk"])
def test_the_outer_loss_has_finite_gradients_where_distilled_and_real_images_are_equal(name):
    x = jnp.asarray(images(4, (4, 4, 1)), jnp.float32)
    distilled = init_distilled(jnp.concatenate([x, x[:1]]), jnp.eye(5)[None], Layout((4, 4, 1), (4, 4, 1)))
    loss_fn = lambda d: outer_loss(d, None, x, jnp.eye(5)[:4], kernel=KERNELS[name](None))[0]
    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(distilled)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients.images.rows).max()) > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fc_kernel(x, x[:, :1]), r"shapes \(2, 4, 3, 2\) and \(2, 1, 3, 2\), expected two batches"),
        (lambda x: conv_kernel(x[0], x[0]), r"expected two batches \(n, H, W, C\)"),
        (lambda x: fc_kernel(x, x, depth=-1), "depth is -1, expected at least 0"),
        (lambda x: conv_kernel(x, x, kind="nkt"), "kind is 'nkt', expected one of ntk, nngp"),
        (lambda x: conv_kernel(x, x, size=2), "size is 2, expected an odd number"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(images(2), jnp.float32))
