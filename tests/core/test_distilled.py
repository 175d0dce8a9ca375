import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.outer import bilinear
from oracles.storage import count_stored_scalars

from ssdd_jax.core.approximation import Networks, init_networks
from ssdd_jax.core.bases import PCA, fit_pca
from ssdd_jax.core.distilled import (
    DistilledSet,
    Layout,
    budget_scalars,
    compress,
    expand,
    finished_shapes,
    init_distilled,
    max_images,
    num_images,
    num_stored_scalars,
    reconstruct_images,
    resize_images,
    take_images,
    view_coefficients,
)
from ssdd_jax.core.outer import outer_loss
from ssdd_jax.core.quantise import quantise
from ssdd_jax.core.stores.factored import factored
from ssdd_jax.core.stores.plain import Plain
from ssdd_jax.core.views import VIEWS
from ssdd_jax.kernels.feature import feature_kernel
from ssdd_jax.nets import make_learner

pytestmark = pytest.mark.core

SHAPE, BASE, WIDTH = (8, 8, 1), (4, 4, 1), 6
VIEW_NAMES = ("identity", "rot90", "hflip", "dim")
KINDS = ("stored", "network", "shared", "stored")
LAYOUT = Layout(SHAPE, BASE, VIEW_NAMES, KINDS)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)


def unfitted(num_bases, width):
    zeros = lambda: PCA(jnp.zeros(width), jnp.zeros((num_bases, width)), jnp.zeros(width))
    return factored(zeros) if num_bases else Plain


def pca_of(rows, num_components):
    return fit_pca(rows.reshape(-1, rows.shape[-1]), num_components)


def make_set(layout=LAYOUT, count=5, image_bases=7, repr_bases=4, factor_scale="balanced"):
    images, reprs = draw(count, *layout.image_shape) + 2.0, draw(len(layout.views), count, WIDTH, seed=1) + 3.0
    pixels = resize_images(draw(40, *layout.image_shape, seed=2) + 2.0, layout.base_shape).reshape(40, -1)
    return init_distilled(
        images,
        reprs,
        layout,
        image_store=factored(fit_pca(pixels, image_bases), factor_scale) if image_bases else Plain,
        repr_store=factored(fit_pca(draw(40, WIDTH, seed=3) + 3.0, repr_bases), factor_scale) if repr_bases else Plain,
    )


def finished(layout=LAYOUT, count=5, image_bases=7, repr_bases=4, hidden=3):
    count_networks = layout.count("network")
    networks = None
    if count_networks:
        start = init_networks(jax.random.key(0), count_networks, repr_bases or WIDTH, hidden)
        networks = start.replace(w2=draw(*start.w2.shape, seed=4), b1=draw(*start.b1.shape, seed=5), b2=draw(*start.b2.shape, seed=6))
    return compress(make_set(layout, count, image_bases, repr_bases), layout, networks)


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_bases_start_orthonormal_when_the_factors_are_not_scaled():
    distilled = make_set(factor_scale=1.0)
    for factors in (distilled.images, distilled.reprs):
        np.testing.assert_allclose(factors.bases @ factors.bases.T, np.eye(len(factors.bases)), atol=1e-5)


def test_the_factor_scale_moves_no_product():
    one, balanced, each, five = (make_set(factor_scale=scale) for scale in (1.0, "balanced", "each", 5.0))
    for name in ("images", "reprs"):
        plain, even, alike, scaled = (getattr(distilled, name) for distilled in (one, balanced, each, five))
        np.testing.assert_allclose(scaled.bases, 5 * plain.bases, rtol=1e-5)
        for factors in (even, alike, scaled):
            np.testing.assert_allclose(factors.coefficients @ factors.bases, plain.coefficients @ plain.bases, rtol=1e-3, atol=1e-4)
            np.testing.assert_array_equal(factors.mean, plain.mean)


def test_balanced_factors_have_the_same_root_mean_square():
    rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
    unscaled, distilled = make_set(factor_scale=1.0), make_set()
    for name in ("images", "reprs"):
        assert rms(getattr(distilled, name).bases) == pytest.approx(rms(getattr(distilled, name).coefficients), rel=1e-4)
        assert rms(getattr(unscaled, name).bases) != pytest.approx(rms(getattr(unscaled, name).coefficients), rel=0.1)


def test_every_basis_and_its_coefficients_can_have_the_same_root_mean_square():
    rms = lambda x, axis: np.sqrt(np.mean(np.square(x), axis))
    distilled = make_set(factor_scale="each")
    for factors in (distilled.images, distilled.reprs):
        coefficients = np.reshape(factors.coefficients, (-1, len(factors.bases)))
        np.testing.assert_allclose(rms(factors.bases, 1), rms(coefficients, 0), rtol=1e-3)


def test_few_bits_lose_less_where_every_basis_has_a_scale_of_its_own():
    lost = lambda scale: float(jnp.mean((expand(quantise(of := make_set(factor_scale=scale), 4))[0] - expand(of)[0]) ** 2))
    assert lost("each") < lost("balanced")


def test_full_rank_reconstructs_images_and_representations_exactly():
    layout = Layout(SHAPE, SHAPE, VIEW_NAMES, ("stored",) * 4)
    images, reprs = expand(make_set(layout, image_bases=39, repr_bases=WIDTH))
    original, original_reprs = draw(5, *SHAPE) + 2.0, draw(4, 5, WIDTH, seed=1) + 3.0
    np.testing.assert_allclose(reprs, original_reprs, rtol=1e-4, atol=1e-4)
    full = init_distilled(
        original[:3],
        original_reprs[:, :3],
        layout,
        image_store=factored(fit_pca(original.reshape(5, -1), 4)),
        repr_store=factored(pca_of(original_reprs, 6)),
    )
    np.testing.assert_allclose(expand(full)[0][0], original[:3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("image_bases", [3, 10])
def test_image_error_equals_the_discarded_variance(image_bases):
    images = draw(30, *SHAPE) + 5.0
    pca = fit_pca(images.reshape(30, -1), image_bases)
    distilled = init_distilled(images, draw(1, 30, WIDTH), Layout(SHAPE, SHAPE), image_store=factored(pca))
    error = jnp.mean(jnp.sum((reconstruct_images(distilled) - images) ** 2, (1, 2, 3)))
    np.testing.assert_allclose(error, pca.variances[image_bases:].sum(), rtol=1e-3)


def test_images_are_upsampled_bilinearly_with_half_pixel_centres():
    small = draw(3, 4, 4, 1)
    distilled = DistilledSet(Plain(small), Plain(draw(1, 3, WIDTH)), None, Layout((8, 12, 1), (4, 4, 1)))
    expected = np.einsum("yi,nijc,xj->nyxc", bilinear(4, 8), np.asarray(small), bilinear(4, 12))
    np.testing.assert_allclose(reconstruct_images(distilled), expected, rtol=1e-5, atol=1e-6)


def test_shrinking_by_two_averages_out_a_checkerboard():
    board = jnp.indices((8, 8)).sum(0).reshape(1, 8, 8, 1) % 2 * 1.0
    np.testing.assert_allclose(resize_images(board, BASE)[:, 1:-1, 1:-1], 0.5, atol=1e-6)


def test_every_view_expands_to_its_images_and_its_kind_of_target():
    distilled = finished()
    images, reprs = expand(distilled)
    for view, image in zip(VIEW_NAMES, images, strict=True):
        np.testing.assert_array_equal(image, VIEWS[view](reconstruct_images(distilled)))
    net, factors = distilled.networks, distilled.reprs
    first, last = factors.coefficients
    shift = jnp.maximum(first @ net.w1[0] + net.b1, 0) @ net.w2[0] + net.b2
    for coefficients, expected in zip(view_coefficients(distilled), (first, first + shift, first, last), strict=True):
        np.testing.assert_allclose(coefficients, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reprs[3], last @ factors.bases + factors.mean[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("repr_bases", [0, 4])
def test_expand_after_compress_with_perfect_networks_is_the_identity(repr_bases):
    layout = Layout(SHAPE, BASE, VIEW_NAMES, ("stored", "network", "network", "network"))
    before = make_set(layout, count=5, repr_bases=repr_bases)
    assert before.layout.view_targets == ("stored",) * 4
    coefficients = np.asarray(view_coefficients(before), np.float64)
    first, shifts = coefficients[0], coefficients[1:] - coefficients[:1]
    # As many hidden units as images, all active: linear interpolation of the five shifts in random features.
    random = np.random.RandomState(0)
    w1, b1 = random.normal(size=(first.shape[1], 5)), np.full(5, 40.0)
    w2 = np.stack([np.linalg.solve(first @ w1 + b1, shift) for shift in shifts])
    stack = lambda array: jnp.asarray(np.stack([array] * 3), jnp.float32)
    networks = Networks(stack(w1), stack(b1), jnp.asarray(w2, jnp.float32), jnp.zeros((3, first.shape[1])))
    after = compress(before, layout, networks)
    assert view_coefficients(after).shape == (4, *first.shape)
    np.testing.assert_array_equal(expand(after)[0], expand(before)[0])
    np.testing.assert_allclose(expand(after)[1], expand(before)[1], atol=2e-2)
    assert float(jnp.abs(expand(before)[1][1:] - expand(before)[1][:1]).max()) > 1.0


def test_compress_to_stored_targets_is_the_identity():
    before = make_set(Layout(SHAPE, BASE, VIEW_NAMES, ("stored",) * 4))
    after = compress(before, before.layout)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_compress_keeps_the_coefficients_of_the_views_that_stay_stored():
    before = make_set()
    assert before.layout.view_targets == ("stored", "stored", "shared", "stored")
    assert before.reprs.coefficients.shape[0] == 3
    after = finished()
    np.testing.assert_array_equal(after.reprs.coefficients, before.reprs.coefficients[jnp.array([0, 2])])


KIND_CHOICES = [("stored",), ("stored", "stored", "shared"), ("stored", "network", "network"), KINDS]


@pytest.mark.parametrize("kinds", KIND_CHOICES)
@pytest.mark.parametrize(("image_bases", "repr_bases"), [(0, 0), (7, 0), (0, 4), (7, 4)])
def test_stored_scalars_equal_the_hand_formula(kinds, image_bases, repr_bases):
    layout = Layout(SHAPE, BASE, VIEW_NAMES[: len(kinds)], kinds)
    m, p, d, hidden = 5, 16, WIDTH, 3
    width = repr_bases or d
    by_hand = m * p if image_bases == 0 else image_bases * p + p + m * image_bases
    by_hand += 0 if repr_bases == 0 else repr_bases * d + d
    by_hand += kinds.count("stored") * m * width + kinds.count("network") * (2 * width * hidden + hidden + width)
    distilled = finished(layout, m, image_bases, repr_bases, hidden)
    sizes = {"num_image_bases": image_bases, "num_repr_bases": repr_bases, "hidden": hidden}
    assert num_stored_scalars(distilled) == by_hand
    assert count_stored_scalars(m, layout, d, **sizes) == by_hand
    shapes = finished_shapes(m, layout, d, image_store=unfitted(image_bases, p), repr_store=unfitted(repr_bases, d), hidden=hidden)
    assert shapes == jax.eval_shape(lambda: distilled)
    assert num_images(distilled) == m


def test_stored_scalars_of_the_published_setting():
    layout = Layout((32, 32, 3), (16, 16, 3), ("identity", "rot90", "rot180", "rot270"), ("stored", "network", "network", "network"))
    budget = budget_scalars(100, (32, 32, 3), 512)
    assert budget == 358_400
    means = 16 * 16 * 3 + 512
    # The published count leaves the means out.
    stores = {"image_store": unfitted(200, 16 * 16 * 3), "repr_store": unfitted(200, 512)}
    assert max_images(budget + means, lambda m: num_stored_scalars(finished_shapes(m, layout, 512, hidden=4, **stores))) == 242


@given(
    budget=st.integers(0, 20_000),
    kinds=st.sampled_from(KIND_CHOICES),
    repr_width=st.integers(1, 64),
    image_bases=st.integers(0, 16),
    repr_bases=st.integers(0, 16),
    hidden=st.integers(0, 8),
)
@settings(max_examples=200, deadline=None)
def test_the_budget_holds_max_images_and_not_one_more(budget, kinds, repr_width, image_bases, repr_bases, hidden):
    layout = Layout(SHAPE, BASE, VIEW_NAMES[: len(kinds)], kinds)
    sizes = {"num_image_bases": image_bases, "num_repr_bases": repr_bases, "hidden": hidden}
    cost = lambda m: count_stored_scalars(m, layout, repr_width, **sizes)
    most = max_images(budget, cost)
    assert cost(most + 1) > budget
    assert most == 0 or cost(most) <= budget


def every_kind_of_set():
    return {
        "factors, all kinds of targets": finished(),
        "factors, no bases of representations": finished(repr_bases=0),
        "factors, no bases of images": finished(image_bases=0),
        "plain": make_set(Layout(SHAPE, BASE, VIEW_NAMES, ("stored",) * 4), image_bases=0, repr_bases=0),
        "during distillation": make_set(),
    }


@pytest.mark.parametrize("name", every_kind_of_set())
def test_every_leaf_receives_a_gradient_from_the_outer_loss(name, key):
    distilled = every_kind_of_set()[name]
    learner = make_learner("convnet", (4,), SHAPE, WIDTH)
    shapes = jax.eval_shape(learner.init, key)
    variables = {
        "params": jax.tree.map(lambda leaf: draw(*leaf.shape), shapes["params"]),
        "batch_stats": jax.tree.map(lambda leaf: jnp.abs(draw(*leaf.shape)) + 0.5, shapes["batch_stats"]),
    }
    kernel = feature_kernel(learner, ridge=1e-2)
    loss = lambda d: outer_loss(d, variables, draw(6, *SHAPE, seed=8), draw(6, WIDTH, seed=9), kernel=kernel)[0]
    for path, gradient in leaves(jax.jit(jax.grad(loss))(distilled)).items():
        assert bool(jnp.isfinite(gradient).all()), path
        # No stored coefficient, pixel or basis entry is dead; a hidden unit may be.
        axes = tuple(range(1, gradient.ndim)) if "networks" not in path else None
        assert float(jnp.abs(gradient).max(axes).min()) > 1e-8, path


def test_taking_images_takes_their_rows_of_every_view_and_shares_the_rest():
    index = jnp.array([3, 1])
    for distilled in every_kind_of_set().values():
        taken = take_images(distilled, index)
        assert num_images(taken) == 2
        for whole, part in zip(expand(distilled), expand(taken), strict=True):
            np.testing.assert_allclose(part, whole[:, index], rtol=1e-5, atol=1e-5)


def test_the_gradient_of_taken_images_leaves_the_others_alone():
    distilled = finished()
    total = lambda d: sum(jnp.sum(x**2) for x in expand(take_images(d, jnp.array([3, 1]))))
    gradient = jax.grad(total)(distilled)
    moved = np.abs(gradient.images.coefficients).max(1) > 0
    np.testing.assert_array_equal(moved, [False, True, False, True, False])
    np.testing.assert_array_equal(np.abs(gradient.reprs.coefficients).max((0, 2)) > 0, moved)
    assert float(jnp.abs(gradient.images.bases).min(1).max()) > 0


def test_works_inside_jit_vmap_and_grad():
    distilled = finished()
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), distilled)
    images, reprs = jax.jit(jax.vmap(expand))(pair)
    expected = expand(jax.tree.map(lambda leaf: 2 * leaf, distilled))
    np.testing.assert_allclose(images[1], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reprs[1], expected[1], rtol=1e-4, atol=1e-4)
    scalars = jax.jit(lambda d: jnp.zeros(()) + num_stored_scalars(d))(distilled)
    assert int(scalars) == num_stored_scalars(distilled)
    gradient = jax.jit(jax.vmap(jax.grad(lambda d: expand(d)[1].sum())))(pair)
    np.testing.assert_allclose(gradient.reprs.mean, np.full((2, WIDTH), 4 * 5), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHAPE, BASE, ("identity", "rot90"), ("stored",)), "expected one of stored, shared, network per view, 'stored' first"),
        ((SHAPE, BASE, ("identity", "rot90"), ("shared", "stored")), "'stored' first"),
        ((SHAPE, BASE, ("identity", "rot90"), ("stored", "guessed")), "expected one of stored, shared, network"),
        ((SHAPE, BASE, ("identity", "mirror"), ("stored", "stored")), "unknown view 'mirror'"),
        ((SHAPE, BASE, ("rot90", "identity"), ("stored", "network")), "networks predict shifts from the image itself, expected 'identity'"),
        ((SHAPE, (4, 4, 3)), r"base shape \(4, 4, 3\): expected at most \(8, 8, 1\) with as many channels"),
        ((SHAPE, (9, 4, 1)), r"base shape \(9, 4, 1\)"),
    ],
)
def test_layouts_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Layout(*arguments)


def test_views_without_networks_start_anywhere():
    """The four quarters of one image that share its label (IDM)."""
    zooms = ("zoom_tl", "zoom_tr", "zoom_bl", "zoom_br")
    layout = Layout(SHAPE, SHAPE, zooms, ("stored", "shared", "shared", "shared"))
    images, targets = draw(5, *SHAPE), draw(4, 5, WIDTH)
    shown, expanded = expand(init_distilled(images, targets, layout))
    np.testing.assert_array_equal(shown[3], VIEWS["zoom_br"](images))
    np.testing.assert_array_equal(expanded, jnp.broadcast_to(targets[0], (4, 5, WIDTH)))


def test_shapes_are_plain_integers_wherever_they_come_from():
    layout = Layout(tuple(np.array(SHAPE)), tuple(np.array(BASE, np.uint8)))
    assert layout == Layout(SHAPE, BASE)
    assert {type(side) for side in (*layout.image_shape, *layout.base_shape)} == {int}
    with pytest.raises(TypeError):
        Layout((8.5, 8, 1), BASE)


def test_what_does_not_fit_the_layout_is_refused():
    with pytest.raises(ValueError, match=r"images have shape \(6, 8, 1\), expected the layout's \(8, 8, 1\)"):
        init_distilled(draw(5, 6, 8, 1), draw(4, 5, WIDTH), LAYOUT)
    with pytest.raises(ValueError, match=r"view_reprs has shape \(3, 5, 6\), expected \(4, 5, d\)"):
        init_distilled(draw(5, *SHAPE), draw(3, 5, WIDTH), LAYOUT)


def test_compress_refuses_what_it_cannot_do():
    full, networks = make_set(), init_networks(jax.random.key(0), 1, 4, 3)
    with pytest.raises(ValueError, match="1 views of kind 'network', expected one network each; call fit_networks"):
        compress(full, LAYOUT)
    with pytest.raises(ValueError, match="only the view targets may differ"):
        compress(full, Layout(SHAPE, SHAPE, VIEW_NAMES, KINDS), networks)
    with pytest.raises(ValueError, match="already compressed"):
        compress(finished(), LAYOUT, networks)
    with pytest.raises(ValueError, match=r"stores a view that .* does not have"):
        compress(full, Layout(SHAPE, BASE, VIEW_NAMES, ("stored", "network", "stored", "stored")), networks)
    with pytest.raises(ValueError, match="the set has no networks; call compress"):
        view_coefficients(full.replace(layout=LAYOUT))
