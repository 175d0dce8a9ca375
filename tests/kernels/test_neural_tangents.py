import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.kernels.infinite import conv_kernel, fc_kernel, matrix_kernel
from ssdd_jax.kernels.neural_tangents import nt_kernel
from ssdd_jax.kernels.pooled import pooled_kernel
from ssdd_jax.registry import KERNELS

pytestmark = pytest.mark.core

HERE = importlib.util.find_spec("neural_tangents") is not None


def rows(count, *shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=(count, *shape)))


@pytest.mark.skipif(not HERE, reason="needs neural-tangents, as in `make test-oldest`")
# It was written for earlier versions of jax.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize(
    ("family", "depth", "kernel"),
    [("fc", 3, fc_kernel), ("conv", 2, conv_kernel), ("convnet", 1, pooled_kernel)],
    ids=["fc", "conv", "convnet"],
)
def test_our_kernels_have_its_values_and_gradients(family, depth, kernel, kind, float64):
    support, points, targets = rows(3, 4, 3, 2), rows(4, 4, 3, 2, seed=1), rows(3, 2, seed=2)
    theirs, ours = partial(nt_kernel, family=family, depth=depth, kind=kind), partial(kernel, depth=depth, kind=kind)
    for x in (support, points):
        np.testing.assert_allclose(ours(x, support), theirs(x, support), rtol=1e-6)
    gradients = []
    for matrix in (theirs, ours):
        predict = matrix_kernel(matrix, ridge=1e-3).predict
        loss = lambda x, predict=predict: jnp.mean(predict(None, x, targets, points)[0] ** 2)
        gradients.append(jax.jit(jax.grad(loss))(support))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(HERE, reason="needs an environment without neural-tangents")
def test_without_it_one_line_says_what_to_install():
    kernel = KERNELS["nt_convnet_ntk"](None)
    with pytest.raises(ValueError, match=r"cannot be imported .*pip install ssdd-jax\[neural-tangents\].* take the kernel without nt_"):
        kernel.predict(None, rows(2, 8, 8, 1), rows(2, 1), rows(2, 8, 8, 1))
