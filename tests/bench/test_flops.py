import jax
import jax.numpy as jnp
import pytest

from experiments.bench.cases import Case, Work
from experiments.bench.flops import convnet_layers, count_operations, feature_width, kernel_operations, training_operations
from experiments.bench.parts import outer_memory
from ssdd_jax.core.krr import append_bias, krr_predict
from ssdd_jax.nets import make_learner
from ssdd_jax.nets.conv import COLUMNS

PAPER = (128, 256, 512)


def conv(x, kernel, stride=1, padding=1):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convnet(kernels, x):
    for kernel in kernels:
        x = jax.nn.relu(conv(x, kernel))
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return x.reshape(len(x), -1)


def kernels(widths, channels):
    return [jax.ShapeDtypeStruct((3, 3, a, b), jnp.float32) for a, b in zip((channels, *widths), widths, strict=False)]


def images(count, side, channels):
    return jax.ShapeDtypeStruct((count, side, side, channels), jnp.float32)


def total(fn, *args, **settings):
    return count_operations(fn, *args, **settings).total


def test_the_convnet_of_the_paper_has_its_published_operations():
    # 154.5 million multiply-adds an image of 32 pixels, 233.6 of 64.
    assert sum(convnet_layers(PAPER, (32, 32, 3))) / 2e6 == pytest.approx(154.5, abs=0.05)
    assert sum(convnet_layers((64, *PAPER), (64, 64, 3))) / 2e6 == pytest.approx(233.6, abs=0.05)
    assert feature_width(PAPER, (32, 32, 3)) == 8192


def test_the_count_of_a_convnet_is_the_count_by_hand():
    layers = convnet_layers(PAPER, (32, 32, 3))
    weights, batch = kernels(PAPER, 3), images(2, 32, 3)
    assert total(convnet, weights, batch) == 2 * sum(layers)
    loss = lambda weights, x: jnp.sum(convnet(weights, x) ** 2)
    assert total(jax.grad(loss, 1), weights, batch) == 2 * 2 * sum(layers)
    assert total(jax.grad(loss), weights, batch) == 2 * training_operations(layers, 0)


def test_our_learner_has_the_operations_of_its_convolutions():
    # Its features do not need the head.
    learner = make_learner("convnet", PAPER, (32, 32, 3), 512)
    variables = jax.eval_shape(learner.init, jax.random.key(0))
    layers = convnet_layers(PAPER, (32, 32, 3))
    # Neighbouring outputs of the first share a row, in which each has 3 of all columns and zeros for the others.
    layers[0] = layers[0] * (3 + COLUMNS - 1) // 3
    assert total(learner.features, variables, images(16, 32, 3)) == 16 * sum(layers)


@pytest.mark.parametrize("differentiate", [lambda f: f, lambda f: jax.grad(f, (0, 1))], ids=["forward", "gradient"])
def test_the_count_agrees_with_xla(differentiate):
    fn = differentiate(lambda weights, x: jnp.sum(convnet(weights, x) ** 2))
    args = kernels((64, 128), 32), images(8, 16, 32)
    analysis = jax.jit(fn).lower(*args).cost_analysis()
    # XLA leaves out what multiplies the padding, and counts elementwise work.
    assert total(fn, *args, padding=False) == pytest.approx(analysis["flops"], rel=0.02)


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_is_as_much_work_as_the_convolution(stride):
    x, kernel = images(2, 8, 4), jax.ShapeDtypeStruct((3, 3, 4, 8), jnp.float32)
    fn = lambda x, kernel: conv(x, kernel, stride)
    forward = total(fn, x, kernel)
    side = (8 + 2 - 3) // stride + 1
    assert forward == 2 * 2 * side**2 * 9 * 4 * 8
    gradients = lambda x, kernel: jax.vjp(fn, x, kernel)[1](jnp.ones((2, side, side, 8)))
    assert total(gradients, x, kernel) == 2 * forward


def test_groups_of_a_convolution_divide_its_work():
    grouped = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    assert total(grouped, images(2, 8, 16), jax.ShapeDtypeStruct((3, 3, 4, 16), jnp.float32)) == 2 * 2 * 64 * 9 * 4 * 16


def test_loops_count_as_often_as_they_run_and_the_largest_branch_counts():
    square = jnp.eye(8)
    once = 2 * 8**3
    many = lambda length: lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=length)[0]
    assert total(many(7), square) == 7 * once
    assert total(lambda x: jax.lax.map(lambda row: row @ x, x), square) == once
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    assert total(lambda i, x: jax.lax.switch(i, branches, x), 0, square) == 2 * once
    counted = count_operations(lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x), square)
    assert counted.total == once
    assert counted.notes
    assert total(jax.jit(jax.vmap(lambda x: x @ x)), jnp.ones((5, 8, 8))) == 5 * once
    computed_again = jax.value_and_grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x @ x))(x)))
    assert total(computed_again, square) == (1 + 1 + 2) * once


@jax.custom_vjp
def doubled(x):
    return x @ x


doubled.defvjp(lambda x: (x @ x, x), lambda x, gradient: (gradient @ x @ x @ x,))


def test_rules_of_differentiation_count_as_they_are_written():
    once = 2 * 8**3
    assert total(doubled, jnp.eye(8)) == once
    assert total(jax.value_and_grad(lambda x: doubled(x).sum()), jnp.eye(8)) == 4 * once


def test_what_no_result_depends_on_does_not_count():
    assert total(lambda x: (x @ x, x)[1], jnp.eye(8)) == 0


def test_a_factorization_and_a_solve_count_as_usual():
    matrix, rhs = 3 * jnp.eye(12), jnp.ones((12, 5))
    assert total(jnp.linalg.cholesky, matrix) == 12**3 // 3
    assert total(lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True), matrix, rhs) == 12**2 * 5


@pytest.mark.parametrize(("n", "q"), [(40, 301), (301, 40)])
def test_the_regression_needs_no_more_than_what_ours_does(n, q):
    b, d = 64, 16
    rows = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, q - 1), (n, d), (b, q - 1), (b, d))]

    def loss(support, targets, real, reprs):
        return jnp.mean((krr_predict(append_bias(support), targets, append_bias(real)) - reprs) ** 2)

    counted = total(jax.value_and_grad(loss, (0, 1)), *rows)
    # The search for a ridge has another factorization in its loop; a primal system is the cheapest form here.
    assert kernel_operations(n, q, d, b) <= counted
    assert counted < 1.6 * kernel_operations(n, q, d, b)


def test_the_memory_of_a_step_is_told_before_it_is_compiled():
    work = Work(Case("digits", "ours", (8, 8, 1), 1000, 10))
    peak = work.outer_program({}).memory()["peak"] or 0
    # Of so small a step the rest is a good part.
    assert peak / 3 < outer_memory(work) < 2 * peak
