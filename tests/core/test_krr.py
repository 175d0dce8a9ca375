import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import krr as oracle

from ssdd_jax.core.krr import append_bias, krr_predict, ridge_predict, ridge_strength

pytestmark = pytest.mark.core

SCALES = ["absolute", "trace", "mean_trace"]
# (support rows, feature width): a dual and a primal system.
SHAPES = [(6, 10), (20, 7)]


def draw(num_support, width, seed=0, num_targets=5, num_outputs=3):
    random = np.random.RandomState(seed)
    shapes = [(num_support, width), (num_support, num_outputs), (num_targets, width), (num_targets, num_outputs)]
    return [random.normal(size=shape) for shape in shapes]


def in_float32(arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def loss(f_support, y_support, f_target, y_target, **settings):
    return jnp.mean((krr_predict(f_support, y_support, f_target, **settings) - y_target) ** 2)


@given(
    shape=st.sampled_from([(1, 1), (1, 5), (6, 10), (8, 8), (12, 3)]),
    ridge=st.floats(1e-3, 10.0),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_predictions_equal_the_float64_oracle_in_both_forms(shape, ridge, scale, seed):
    f_support, y_support, f_target, _ = draw(*shape, seed)
    strength = oracle.ridge_strength(f_support, ridge, scale)
    expected = oracle.dual(f_support, y_support, f_target, strength)
    np.testing.assert_allclose(expected, oracle.primal(f_support, y_support, f_target, strength), rtol=1e-6, atol=1e-9)
    predicted = krr_predict(*in_float32((f_support, y_support, f_target)), ridge=ridge, ridge_scale=scale)
    np.testing.assert_allclose(predicted, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_primal_and_dual_systems_predict_the_same(scale):
    f_support, y_support, f_target, _ = in_float32(draw(12, 8))
    # Columns of zeros change no kernel and make the dual the smaller system.
    widen = lambda features: jnp.pad(features, ((0, 0), (0, 8)))
    primal = krr_predict(f_support, y_support, f_target, ridge=0.1, ridge_scale=scale)
    dual = krr_predict(widen(f_support), y_support, widen(f_target), ridge=0.1, ridge_scale=scale)
    np.testing.assert_allclose(primal, dual, rtol=1e-4, atol=1e-5)


# Few targets and rows against wide features and outputs, and the other way round.
@pytest.mark.parametrize(("num_support", "num_targets", "num_outputs", "by_kernel"), [(4, 5, 30, True), (12, 40, 2, False)])
def test_the_cheaper_order_of_products_predicts_what_the_oracle_does(num_support, num_targets, num_outputs, by_kernel):
    width = 20
    f_support, y_support, f_target, y_target = draw(num_support, width, num_targets=num_targets, num_outputs=num_outputs)
    expected = oracle.dual(f_support, y_support, f_target, oracle.ridge_strength(f_support, 0.1, "trace"))
    arrays = in_float32((f_support, y_support, f_target))
    np.testing.assert_allclose(krr_predict(*arrays, ridge=0.1), expected, rtol=1e-4, atol=1e-5)
    products = jax.make_jaxpr(lambda *a: ridge_predict(*a, ridge=0.1, ridge_scale="trace"))(*arrays).jaxpr
    shapes = [equation.outvars[0].aval.shape for equation in products.eqns if equation.primitive.name == "dot_general"]
    assert ((num_targets, num_support) in shapes) == by_kernel
    assert ((width, num_outputs) in shapes) != by_kernel


@pytest.mark.parametrize(("num_support", "width"), [(8, 8), (9, 8)])
def test_the_smaller_system_is_factored(num_support, width):
    arrays = in_float32(draw(num_support, width))[:3]
    jaxpr = str(jax.make_jaxpr(krr_predict)(*arrays))
    assert f"f32[{width},{width}] = cholesky" in jaxpr
    assert f"f32[{width + 1},{width + 1}] = cholesky" not in jaxpr


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["trace", "mean_trace"])
def test_predictions_do_not_move_when_features_are_scaled_and_the_ridge_is_relative(shape, scale):
    f_support, y_support, f_target, _ = in_float32(draw(*shape))
    predict = lambda factor: krr_predict(factor * f_support, y_support, factor * f_target, ridge=0.1, ridge_scale=scale)
    np.testing.assert_allclose(predict(16.0), predict(1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_move_when_features_are_scaled_and_the_ridge_is_absolute(shape):
    f_support, y_support, f_target, _ = in_float32(draw(*shape))
    predict = lambda factor: krr_predict(factor * f_support, y_support, factor * f_target, ridge=0.1, ridge_scale="absolute")
    assert float(jnp.abs(predict(16.0) - predict(1.0)).max()) > 1e-3


def test_ridge_scales_differ_by_the_trace_and_the_number_of_rows():
    strengths = [float(ridge_strength(jnp.float32(12.0), 4, 0.5, scale)) for scale in SCALES]
    assert strengths == [0.5, 6.0, 1.5]


def test_a_vanishing_ridge_interpolates_the_support_targets():
    f_support, y_support, _, _ = in_float32(draw(6, 40))
    np.testing.assert_allclose(krr_predict(f_support, y_support, f_support, ridge=1e-7), y_support, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_infinite_ridge_predicts_zero(shape):
    f_support, y_support, f_target, _ = in_float32(draw(*shape))
    assert float(jnp.abs(krr_predict(f_support, y_support, f_target, ridge=1e9)).max()) < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_support_rows_have_no_order_and_target_rows_keep_theirs(shape):
    f_support, y_support, f_target, _ = in_float32(draw(*shape))
    expected = krr_predict(f_support, y_support, f_target, ridge=1e-2)
    support_order, target_order = np.random.RandomState(1).permutation(shape[0]), np.array([3, 1, 4, 0, 2])
    predicted = krr_predict(f_support[support_order], y_support[support_order], f_target[target_order], ridge=1e-2)
    np.testing.assert_allclose(predicted, expected[target_order], rtol=1e-4, atol=1e-5)


def test_the_bias_feature_is_an_intercept():
    f_support, _, f_target, _ = in_float32(draw(20, 4))
    constant = jnp.full((20, 1), 7.0)
    np.testing.assert_array_equal(append_bias(f_support), jnp.concatenate([f_support, jnp.ones((20, 1))], 1))
    np.testing.assert_allclose(krr_predict(append_bias(f_support), constant, append_bias(f_target)), 7.0, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", SCALES)
def test_gradients_equal_the_oracle_and_its_finite_differences(shape, scale):
    arrays = draw(*shape)
    expected, f_gradient, y_gradient = oracle.loss_and_gradients(*arrays, 0.05, scale)
    strength = oracle.ridge_strength(arrays[0], 0.05, scale)
    with_constant_strength = lambda f, y: np.mean((oracle.dual(f, y, arrays[2], strength) - arrays[3]) ** 2)
    np.testing.assert_allclose(f_gradient, oracle.finite_difference(lambda f: with_constant_strength(f, arrays[1]), arrays[0]), atol=1e-7)
    np.testing.assert_allclose(y_gradient, oracle.finite_difference(lambda y: with_constant_strength(arrays[0], y), arrays[1]), atol=1e-7)
    value, gradients = jax.value_and_grad(loss, (0, 1))(*in_float32(arrays), ridge=0.05, ridge_scale=scale)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(gradients[0], f_gradient, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradients[1], y_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", ["trace", "mean_trace"])
def test_the_trace_is_held_constant_and_that_changes_the_gradient(shape, scale):
    arrays = draw(*shape)
    held = oracle.loss_and_gradients(*arrays, 0.05, scale)[1]
    moving = oracle.loss_and_gradients(*arrays, 0.05, scale, trace_is_constant=False)[1]
    whole = lambda f: oracle.loss_and_gradients(f, *arrays[1:], 0.05, scale)[0]
    np.testing.assert_allclose(moving, oracle.finite_difference(whole, arrays[0]), atol=1e-7)
    gradient = np.asarray(jax.grad(loss)(*in_float32(arrays), ridge=0.05, ridge_scale=scale))
    assert np.linalg.norm(gradient - held) < 0.01 * np.linalg.norm(moving - held)
    assert np.linalg.norm(moving - held) > 1e-3 * np.linalg.norm(held)


def test_vmap_equals_a_loop():
    stacked = [jnp.stack(arrays) for arrays in zip(*[in_float32(draw(6, 10, seed)) for seed in range(3)], strict=True)][:3]
    loop = jnp.stack([krr_predict(*[array[i] for array in stacked]) for i in range(3)])
    np.testing.assert_allclose(jax.vmap(krr_predict)(*stacked), loop, rtol=1e-4, atol=1e-5)


def test_predicts_inside_jit_vmap_and_grad():
    f_support, y_support, f_target, y_target = in_float32(draw(6, 10))
    shifted = lambda shift: loss(f_support + shift, y_support, f_target, y_target, ridge=0.05)
    gradients = jax.jit(jax.vmap(jax.grad(shifted)))(jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(gradients, [jax.grad(shifted)(0.0), jax.grad(shifted)(0.1)], rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (((6,), (6, 3), (5, 10)), {}, r"shapes \(6,\), \(6, 3\), \(5, 10\), expected \(n, q\), \(n, d\), \(b, q\)"),
        (((6, 10), (6, 3), (5, 9)), {}, "support features are 10 wide, target features 9; use one network"),
        (((6, 10), (7, 3), (5, 10)), {}, "6 support features and 7 support targets, expected one each"),
        (((6, 10), (6, 3), (5, 10)), {"ridge": -1.0}, "ridge is -1.0, expected at least 0"),
        (((6, 10), (6, 3), (5, 10)), {"ridge_scale": "median"}, "'median', expected one of absolute, trace, mean_trace"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(krr_predict)(*[jnp.ones(shape) for shape in arguments], **settings)


@pytest.mark.parametrize("shape", [(6, 10), (12, 4)])
@pytest.mark.parametrize("ridge", [0.0, 1e-12])
def test_a_singular_kernel_has_its_ridge_raised_and_counted(shape, ridge):
    f_support, y_support, f_target, y_target = in_float32(draw(*shape))
    # Equal rows, or equal columns, and no ridge: the kernel of either form is singular.
    f_support = f_support.at[:, 1].set(f_support[:, 0])
    f_support = f_support.at[1].set(f_support[0])
    predicted = krr_predict(f_support, y_support, f_target, ridge=ridge)
    _, raises = ridge_predict(f_support, y_support, f_target, ridge=ridge, ridge_scale="trace")
    assert np.isfinite(predicted).all()
    assert 1 <= int(raises) <= 4
    gradients = jax.grad(loss, (0, 1))(f_support, y_support, f_target, y_target, ridge=ridge)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # The stated strength: the machine epsilon of the trace, then ten times as much a raise.
    strength = float(jnp.finfo(jnp.float32).eps) * 10 ** (int(raises) - 1)
    expected = krr_predict(f_support, y_support, f_target, ridge=strength)
    np.testing.assert_allclose(predicted, expected, rtol=0.2, atol=0.05)


def test_a_kernel_of_zeros_predicts_zero_and_one_that_is_not_finite_is_not_hidden():
    _, y_support, f_target, _ = in_float32(draw(6, 10))
    zeros = jnp.zeros((6, 10))
    np.testing.assert_array_equal(krr_predict(zeros, y_support, f_target, ridge=0.0), 0.0)
    predicted, raises = ridge_predict(zeros.at[0, 0].set(jnp.inf), y_support, f_target, ridge=1e-6, ridge_scale="trace")
    assert np.isnan(predicted).any()
    assert int(raises) == 0


def test_one_singular_kernel_among_several_leaves_the_others_as_they_are():
    (f, y, t, _), (g, *_) = in_float32(draw(6, 10)), in_float32(draw(6, 10, seed=1))
    both = jnp.stack([f, g.at[1].set(g[0])])
    predicted, raises = jax.vmap(lambda features: ridge_predict(features, y, t, ridge=0.0, ridge_scale="trace"))(both)
    assert int(raises[0]) == 0 < int(raises[1])
    np.testing.assert_allclose(predicted[0], krr_predict(f, y, t, ridge=0.0), rtol=1e-4, atol=1e-5)
    assert np.isfinite(predicted).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_numbers_of_few_bits_are_computed_in_float32(dtype):
    f, y, t, _ = in_float32(draw(6, 10))
    small = [(4 * array).astype(dtype) for array in (f, y, t)]
    predicted = krr_predict(*small)
    assert predicted.dtype == jnp.float32
    np.testing.assert_array_equal(predicted, krr_predict(*[array.astype(jnp.float32) for array in small]))


def test_a_ridge_may_be_traced_and_has_its_true_gradient():
    f, y, t, y_target = in_float32(draw(6, 10))
    error = lambda ridge: loss(f, y, t, y_target, ridge=ridge)
    ridges = jnp.array([0.03, 0.3])
    expected = [error(float(ridge)) for ridge in ridges]
    np.testing.assert_allclose(jax.vmap(error)(ridges), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(error)(0.03), expected[0], rtol=1e-5)
    difference = (error(0.101) - error(0.099)) / 0.002
    np.testing.assert_allclose(jax.grad(error)(0.1), difference, rtol=1e-2)


def test_no_support_row_is_refused_and_an_increase_of_the_ridge_is_no_nan():
    f, y, t, _ = in_float32(draw(6, 10))
    with pytest.raises(ValueError, match="there are no support rows"):
        krr_predict(f[:0], y[:0], t)
    with jax.debug_nans(True):
        predicted, increases = krr_predict(jnp.ones((6, 10)), y, t, ridge=0.0, return_increases=True)
    assert np.isfinite(predicted).all()
    assert increases > 0
    predicted, increases = krr_predict(f, y, t, return_increases=True)
    assert increases == 0
    np.testing.assert_array_equal(predicted, krr_predict(f, y, t))
