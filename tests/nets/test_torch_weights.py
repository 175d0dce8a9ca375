import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.recipe import CASES, NUM_OUTPUTS, draw_images, draw_state_dict
from oracles.convnet_in import convnet_frepo, convnet_in

from ssdd_jax.nets import NETS, make_learner, variables_from_torch
from ssdd_jax.nets.resnet import BasicBlock
from ssdd_jax.nets.torch_weights import parameter_names, torch_from_variables

GOLDEN = Path(__file__).parents[1] / "golden"
OUTPUTS = np.load(GOLDEN / "nets.npz")
KEYS = json.loads((GOLDEN / "nets.json").read_text())


def template(learner):
    return jax.eval_shape(learner.init, jax.random.key(0))


def given(case, num_outputs=NUM_OUTPUTS, **options):
    """Return net, learner, state dict and the template of a case."""
    net, widths, shape, seed = CASES[case]
    learner = make_learner(net, widths, shape, num_outputs, **options)
    return net, learner, draw_state_dict(KEYS[case], seed), template(learner)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_network_has_a_case():
    # PyTorch's outputs, or the network written from its formula.
    assert {case[0] for case in CASES.values()} | {"convnet_in", "convnet_frepo", "convnet_no_norm"} == set(NETS)


@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 8, 1)])
def test_the_convnet_of_label_sets_with_the_weights_of_pytorch_gives_the_features_and_outputs_of_its_formula(shape):
    widths = (4, 5)
    learner = make_learner("convnet_in", widths, shape, NUM_OUTPUTS)
    # The order of the parameters is PyTorch's: of each block the convolution's and the norm's, then those of the linear layer.
    channels, shapes = (shape[2], *widths), []
    for block in range(2):
        shapes += [(f"features.{4 * block}.weight", (channels[block + 1], channels[block], 3, 3))]
        vectors = (f"features.{4 * block}.bias", f"features.{4 * block + 1}.weight", f"features.{4 * block + 1}.bias")
        shapes += [(name, (channels[block + 1],)) for name in vectors]
    margin = 4 if shape[2] == 1 else 0
    pixels = (shape[0] + margin) // 4 * ((shape[1] + margin) // 4)
    shapes += [("classifier.weight", (NUM_OUTPUTS, widths[-1] * pixels)), ("classifier.bias", (NUM_OUTPUTS,))]
    state_dict, images = draw_state_dict(shapes, 10), draw_images(shape, 10)
    variables = variables_from_torch("convnet_in", state_dict, template(learner))
    found = jax.jit(lambda *args: (learner.features(*args), learner.apply(*args)))(variables, images)
    features, outputs = convnet_in(state_dict, images.transpose(0, 3, 1, 2))
    flattened = features.transpose(0, 2, 3, 1).reshape(4, -1)
    np.testing.assert_allclose(found[0], flattened, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("net", "places"), [("convnet_frepo", (0, 4)), ("convnet_no_norm", (0, 3))])
@pytest.mark.parametrize("shape", [(8, 8, 3), (9, 8, 1)])
def test_the_networks_of_frepo_give_the_features_and_outputs_of_their_formula(net, places, shape):
    widths, norm = (4, 5), net == "convnet_frepo"
    learner = make_learner(net, widths, shape, NUM_OUTPUTS)
    channels, shapes = (shape[2], *widths), []
    for block, place in enumerate(places):
        if norm and block:
            leaves = ("weight", "bias", "running_mean", "running_var")
            shapes += [(f"features.{place - 1}.{leaf}", (channels[block],)) for leaf in leaves]
        shapes += [(f"features.{place}.weight", (channels[block + 1], channels[block], 3, 3))]
        shapes += [(f"features.{place}.bias", (channels[block + 1],))]
    margin = 4 if shape[2] == 1 else 0
    pixels = (shape[0] + margin) // 4 * ((shape[1] + margin) // 4)
    shapes += [("classifier.weight", (NUM_OUTPUTS, widths[-1] * pixels)), ("classifier.bias", (NUM_OUTPUTS,))]
    state_dict, images = draw_state_dict(shapes, 11), draw_images(shape, 11)
    variables = variables_from_torch(net, state_dict, template(learner))
    found = jax.jit(lambda *args: (learner.features(*args), learner.apply(*args)))(variables, images)
    features, outputs = convnet_frepo(state_dict, images.transpose(0, 3, 1, 2), norm)
    np.testing.assert_allclose(found[0], features.transpose(0, 2, 3, 1).reshape(4, -1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], outputs, rtol=1e-4, atol=1e-4)


def test_the_parameters_of_a_sequence_of_layers_have_pytorchs_order():
    names = parameter_names("convnet_in", template(make_learner("convnet_in", (4, 5), (8, 8, 3), 2)))
    layers = [f"features.{number}" for number in (0, 1, 4, 5)] + ["classifier"]
    assert names == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    # Layer 10 comes after layer 9.
    many = parameter_names("convnet_in", template(make_learner("convnet_in", (2,) * 4, (16, 16, 3), 2)))
    assert many[-4:-2] == ["features.13.weight", "features.13.bias"]
    with pytest.raises(ValueError, match="net is 'resnet10', of whose parameters PyTorch's order is not known; expected one such as conv"):
        parameter_names("resnet10", given("resnet10")[3])


@pytest.mark.parametrize("case", CASES)
def test_with_the_weights_of_pytorch_a_network_gives_its_features_and_outputs(case):
    net, learner, state_dict, wanted = given(case)
    images = draw_images(*CASES[case][2:])
    variables = variables_from_torch(net, state_dict, wanted)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), wanted)
    features, outputs = jax.jit(lambda *args: (learner.features(*args), learner.apply(*args)))(variables, images)
    # PyTorch flattens channels first.
    expected = OUTPUTS[f"{case}/features"].reshape(4, CASES[case][1][-1], -1).transpose(0, 2, 1).reshape(4, -1)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs, OUTPUTS[f"{case}/outputs"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_variables_become_the_state_dict_that_they_were_read_from(case):
    net, _, state_dict, shapes = given(case)
    variables = variables_from_torch(net, state_dict, shapes)
    written = torch_from_variables(net, variables)
    assert {name: array.shape for name, array in written.items()}.items() <= {n: a.shape for n, a in state_dict.items()}.items()
    for name, array in written.items():
        np.testing.assert_array_equal(array, state_dict[name])
    assert_same(variables_from_torch(net, written, shapes), variables)


@pytest.mark.parametrize("case", ["vgg11", "alexnet"])
def test_a_pooled_network_gives_the_spatial_mean(case):
    net, learner, state_dict, wanted = given(case, 0, pooled=True)
    features = jax.jit(learner.features)(variables_from_torch(net, state_dict, wanted), draw_images(*CASES[case][2:]))
    expected = OUTPUTS[f"{case}/features"].reshape(4, CASES[case][1][-1], -1).mean(2)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_the_stages_of_resnet18_are_as_large_as_in_pytorch(output_sides):
    _, learner, _, wanted = given("resnet18")
    sides = output_sides(BasicBlock, learner.features, wanted, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    assert sides == [34, 17, 9, 5] == list(OUTPUTS["resnet18/sides"])


@pytest.mark.core
@pytest.mark.parametrize("case", ["convnet_28", "vgg11", "alexnet", "resnet10", "mobilenet", "vit"])
def test_without_a_linear_layer_in_the_template_that_of_the_state_dict_is_left_out(case):
    net, _, state_dict, wanted = given(case, 0)
    variables = variables_from_torch(net, state_dict, wanted)
    assert "Linear_0" not in variables["params"]
    whole = variables_from_torch(net, state_dict, given(case)[3])
    assert_same(variables["params"], {name: leaf for name, leaf in whole["params"].items() if name != "Linear_0"})
    assert_same(variables["batch_stats"], whole["batch_stats"])


@pytest.mark.core
def test_the_linear_layer_of_a_pooled_network_keeps_the_order_of_its_rows():
    net, _, state_dict, wanted = given("convnet_28", pooled=True)
    state_dict["fc.weight"] = np.arange(NUM_OUTPUTS * 16, dtype=np.float32).reshape(NUM_OUTPUTS, 16)
    kernel = variables_from_torch(net, state_dict, wanted)["params"]["Linear_0"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, state_dict["fc.weight"].T)


@pytest.mark.core
@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("module.", {}),
        ("backbone.", {"projector.0.weight": np.zeros((3, 3)), "classifier.bias": np.zeros(3), "momentum_backbone.bn1.bias": np.zeros(8)}),
        ("encoder.", {"projector.0.weight": np.zeros((3, 3))}),
        ("module.backbone.", {"module.projector.0.weight": np.zeros((3, 3))}),
        ("backbone.module.", {}),
        ("_orig_mod.", {}),
        ("module._orig_mod.", {"n_averaged": np.zeros((), np.int64)}),
        ("_orig_mod.module.backbone._orig_mod.", {"_orig_mod.module.projector.0.weight": np.zeros((3, 3))}),
        ("model.", {"loss.temperature": np.ones(1), "bn1.weight": np.zeros(3)}),
        ("net.encoder.trunk.", {"net.encoder.neck.weight": np.zeros((3, 3))}),
        ("student.", {"teacher.conv1.weight": np.zeros((3, 3, 3, 3)), "center": np.zeros(3)}),
        ("", {"hyper_parameters": "no array", "bn1.num_batches_tracked": np.zeros((), np.int64)}),
    ],
)
def test_prefixes_of_wrappers_and_of_selfsupervised_checkpoints_are_stripped(prefix, others):
    net, _, state_dict, wanted = given("resnet10", 0)
    wrapped = {f"{prefix}{key}": array for key, array in state_dict.items()} | others
    assert_same(variables_from_torch(net, wrapped, wanted), variables_from_torch(net, state_dict, wanted))


@pytest.mark.core
def test_a_wrapper_around_any_layer_is_stripped():
    net, _, state_dict, wanted = given("vgg11", 0)
    wrapped = {key.replace("features.", "features.module.").replace(".4.", "._orig_mod.4."): array for key, array in state_dict.items()}
    assert set(wrapped).isdisjoint(key for key in state_dict if key.startswith("features."))
    assert_same(variables_from_torch(net, wrapped, wanted), variables_from_torch(net, state_dict, wanted))


@pytest.mark.core
@pytest.mark.parametrize(
    ("trained", "average"),
    [("backbone.", "momentum_backbone."), ("encoder.", "ema."), ("module.encoder_q.", "module.encoder_k."), ("backbone.", "encoder.")],
)
def test_of_two_networks_that_fit_the_trained_one_is_taken(trained, average):
    net, _, state_dict, wanted = given("resnet10", 0)
    # In either order.
    for first, second in ((trained, average), (average, trained)):
        both = {f"{prefix}{key}": array + (prefix == average) for prefix in (first, second) for key, array in state_dict.items()}
        assert_same(variables_from_torch(net, both, wanted), variables_from_torch(net, state_dict, wanted))


def error_of(net, state_dict, wanted):
    with pytest.raises(ValueError, match="expected") as error:
        variables_from_torch(net, state_dict, wanted)
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.core
def test_two_networks_that_fit_alike_are_both_named():
    net, _, state_dict, wanted = given("resnet10", 0)
    both = {f"{prefix}.module.{key}": array for prefix in ("student", "teacher") for key, array in state_dict.items()}
    text = error_of(net, both, wanted)
    assert text.startswith("2 networks in the state dict fit resnet10, expected one (their first arrays: student.module.bn1.")
    assert ", teacher.module.bn1." in text
    assert "if k.startswith(PREFIX)" in text
    # Another network next to it does not count.
    other = {f"teacher.{key}": array for key, array in given("vgg11", 0)[2].items()} | {f"net.{key}": a for key, a in state_dict.items()}
    assert_same(variables_from_torch(net, other, wanted), variables_from_torch(net, state_dict, wanted))
    small = {f"teacher.{key}": array[None] for key, array in state_dict.items()} | {
        f"net.{key}": array for key, array in state_dict.items()
    }
    assert_same(variables_from_torch(net, small, wanted), variables_from_torch(net, state_dict, wanted))


@pytest.mark.core
def test_the_same_array_wrapped_and_not_is_refused():
    net, _, state_dict, wanted = given("resnet10", 0)
    with pytest.raises(ValueError, match=r"has both conv1\.weight, module\.conv1\.weight, expected one of them"):
        variables_from_torch(net, state_dict | {"module.conv1.weight": state_dict["conv1.weight"]}, wanted)


@pytest.mark.core
def test_the_names_found_are_shown_next_to_those_expected():
    net, _, _, wanted = given("resnet10", 0)
    text = error_of(net, {f"trunk\n{key}": array for key, array in given("vgg11", 0)[2].items()}, wanted)
    assert "lacks bn1.bias (60 of 60 arrays of resnet10); found trunk?features.0.weight, trunk?features.0.bias, " in text
    assert ", ..., expected bn1.bias, bn1.running_mean, bn1.running_var, ...; is it another network's?" in text
    assert "found no arrays, expected bn1.bias" in error_of(net, {"args": "x"}, wanted)


@pytest.mark.core
def test_half_precision_is_widened_and_other_kinds_of_numbers_are_refused():
    net, _, state_dict, wanted = given("resnet10", 0)
    for kind in (np.float16, jnp.bfloat16, np.float64):
        weights = {key: array if array.dtype == np.int64 else array.astype(kind) for key, array in state_dict.items()}
        found = variables_from_torch(net, weights, wanted)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        np.testing.assert_array_equal(found["params"]["bn1"]["bias"], state_dict["bn1.bias"].astype(kind).astype(np.float32))

    class Quantized:
        def __repr__(self):
            return "an object of torch.QInt8Storage"

    for value, what in ((np.zeros(8, np.int8), "has dtype int8"), (Quantized(), "is an object of torch.QInt8Storage")):
        assert f"bn1.bias of the state dict {what}, expected " in error_of(net, state_dict | {"bn1.bias": value}, wanted)


@pytest.mark.core
@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("resnet10", {"layer2.0.bn1.bias": None, "layer4.0.bn1.bias": None}, r"lacks layer2\.0\.bn1\.bias \(2 of 62 arrays of resnet10\)"),
        ("vgg11", {"features.8.bias": None, "features.11.bias": None}, r"lacks features\.8\.bias \(2 of"),
        ("mobilenet", {"layers.9.conv1.weight": None, "layers.10.conv1.weight": None}, r"lacks layers\.9\.conv1\.weight \(2 of"),
        ("convnet", {"fc.weight": None}, r"lacks fc\.weight \(1 of"),
        ("vit", {"blocks.1.attn.qkv.bias": None}, r"lacks blocks\.1\.attn\.qkv\.bias \(1 of"),
        ("resnet10", {"layer1.1.conv1.weight": np.zeros((8, 8, 3, 3))}, r"has layer1\.1\.conv1\.weight \(1 such\), which resnet10 lacks"),
        ("vit", {"fc.weight": np.zeros((2, 2))}, r"has fc\.weight \(1 such\), which vit lacks"),
        ("alexnet", {"features.4.weight": np.zeros((12, 8, 3, 3))}, r"features\.4\.weight .* \(12, 8, 3, 3\), expected \(12, 8, 5, 5\)"),
        ("convnet", {"fc.weight": np.zeros((10, 9))}, r"fc\.weight of the state dict has shape \(10, 9\), expected \(10, 256\)"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_the_name_of_an_array(case, change, message):
    net, _, state_dict, wanted = given(case)
    state_dict = {key: array for key, array in (state_dict | change).items() if array is not None}
    with pytest.raises(ValueError, match=message) as error:
        variables_from_torch(net, state_dict, wanted)
    assert "\n" not in str(error.value)


def test_the_weights_of_an_unknown_network_are_refused():
    with pytest.raises(ValueError, match="net is 'vgg', expected one of convnet"):
        variables_from_torch("vgg", {}, {})
