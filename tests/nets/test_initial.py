"""How networks start: PyTorch's distributions, drawn all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.nets import NETS, make_learner
from ssdd_jax.nets.initial import DRAWS, fan_in, fan_out, initializer, kaiming_fan_out_init, lecun_normal_init, torch_kernel_init


def draws_of(jaxpr):
    """Return how many numbers every draw of random bits has, those of nested programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            found.append(int(np.prod(equation.params["shape"])))
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                found += draws_of(value.jaxpr)
    return found


@pytest.mark.parametrize("net", sorted(NETS))
def test_a_network_is_drawn_at_once_and_every_number_of_it_once(net):
    published = NETS[net].published_widths((32, 32, 3))
    learner = make_learner(net, tuple(3 if net == "vit" else 2 for _ in published), (32, 32, 3), 5)
    jaxpr = jax.make_jaxpr(learner.init)(jax.random.key(0)).jaxpr
    params = jax.tree_util.tree_leaves_with_path(jax.eval_shape(learner.init, jax.random.key(0))["params"])
    params = [(jax.tree_util.keystr(path), leaf) for path, leaf in params]
    # A normalization's scale and bias start at one and zero, as do biases of some networks.
    drawn = [leaf.size for name, leaf in params if "kernel" in name or "cls_token" in name or "pos_embed" in name]
    counts = draws_of(jaxpr)
    assert len(counts) <= 2
    assert sum(drawn) <= sum(counts) <= sum(leaf.size for _, leaf in params)


def test_layers_of_a_network_start_different_and_with_another_key_otherwise():
    learner = make_learner("convnet", (8, 8, 8), (8, 8, 8), 4)
    first, second = (learner.init(jax.random.key(seed))["params"] for seed in (0, 1))
    kernels = [np.asarray(first[f"Conv_{i}"]["Conv_0"]["kernel"]) for i in range(3)]
    assert len({kernel.tobytes() for kernel in kernels}) == 3
    numbers = np.concatenate(
        [np.ravel(leaf) for name in ("Conv_0", "Conv_1", "Conv_2", "Linear_0") for leaf in jax.tree.leaves(first[name])]
    )
    assert len(np.unique(numbers)) > 0.999 * len(numbers)
    assert not np.allclose(kernels[0], second["Conv_0"]["Conv_0"]["kernel"])
    # All within their own limits, and near them.
    for kernel in kernels:
        assert 0.95 < np.abs(kernel).max() * 72**0.5 <= 1
    assert np.abs(first["Linear_0"]["Dense_0"]["bias"]).max() <= 8**-0.5


@pytest.mark.parametrize(
    ("init", "theirs"),
    [
        (torch_kernel_init, jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
        (kaiming_fan_out_init, jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")),
        (lecun_normal_init, jax.nn.initializers.lecun_normal()),
    ],
)
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (11, 4)])
def test_by_itself_an_initializer_is_that_of_jax(init, theirs, shape):
    key = jax.random.key(3)
    np.testing.assert_allclose(init(key, shape), theirs(key, shape), rtol=1e-5, atol=1e-6)
    assert init(key, shape, jnp.bfloat16).dtype == jnp.bfloat16


def test_fans_count_the_window():
    assert (fan_in((3, 3, 5, 7)), fan_out((3, 3, 5, 7))) == (45, 63)
    assert (fan_in((11, 4)), fan_out((11, 4))) == (11, 4)


@pytest.mark.parametrize("kind", sorted(DRAWS))
def test_a_draw_has_scale_one(kind):
    values = np.asarray(initializer(kind, lambda shape: 1.0)(jax.random.key(0), (20_000,)))
    assert abs(values.mean()) < 0.03
    np.testing.assert_allclose(np.abs(values).max() if kind == "uniform" else values.std(), 1, rtol=0.03)
