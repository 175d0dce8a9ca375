"""Every protocol of the registry as a library: with the plain tools, no stage and no runtime."""

from dataclasses import fields, is_dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssdd_jax.evals import protocol
from ssdd_jax.evals.protocol import Encoded, Readout, Steps, Tools, Trainable
from ssdd_jax.io.scratch import Scratch
from ssdd_jax.nets import make_learner
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.evaluation import FewSpec, FinetuneSpec, KnnSpec, LinearSpec

pytestmark = pytest.mark.core

SHAPE = (4, 4, 1)
SPECS = {
    "linear": LinearSpec(steps=60, batch_size=16),
    "few": FewSpec(fractions=(0.5, 0.25), steps=20),
    "knn": KnnSpec(neighbors=5),
    "finetune": FinetuneSpec(steps=40, batch_size=16, padding=0, flip=0.0, learning_rate=0.05),
}


def toy_readout(trains=True):
    """Two seeds; classes that features and pixels tell apart."""
    random = np.random.RandomState(0)
    train_labels, eval_labels = (random.randint(0, 3, n).astype(np.int32) for n in (60, 30))
    feature = lambda labels: (2 * np.eye(3)[labels] + 0.3 * random.normal(size=(len(labels), 3))).astype(np.float32)
    image = lambda labels: (random.randint(0, 40, (len(labels), *SHAPE)) + 80 * labels[:, None, None, None]).astype(np.uint8)
    encoded = [Encoded(*2 * (feature(train_labels), feature(eval_labels))) for _ in range(2)]
    variables = [make_learner("convnet", (4,), SHAPE, 7).init(jax.random.key(seed)) for seed in (0, 1)]
    networks = Trainable(
        variables,
        lambda num_outputs: make_learner("convnet", (4,), SHAPE, num_outputs),
        image(train_labels),
        image(eval_labels),
        lambda images: (images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images) - 0.3,
    )
    return Readout((0, 1), encoded, train_labels, eval_labels, 3, networks if trains else None)


def test_what_protocols_read_has_one_centre_and_one_scale_those_of_the_training_images():
    random = np.random.RandomState(0)
    parts = [1e3 * random.normal(size=(40, 5)) + 50 for _ in range(4)]
    found = Encoded(*parts).standardised()
    for train, held_out, before, before_held_out in (
        (found.train_features, found.eval_features, *parts[:2]),
        (found.train_reprs, found.eval_reprs, *parts[2:]),
    ):
        np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
        assert np.mean(train**2) == pytest.approx(1)
        # One scale for all columns, so that distances keep their ratios.
        scale = (before[0] - before[1])[0] / (train[0] - train[1])[0]
        np.testing.assert_allclose(scale * (held_out[3] - train[2]), before_held_out[3] - before[2], rtol=1e-5)
    constant = Encoded(*[np.ones((4, 2), np.float32)] * 4).standardised()
    assert not constant.train_features.any()


def test_what_is_standardised_does_not_depend_on_where_it_lies(tmp_path, monkeypatch):
    random = np.random.RandomState(0)
    parts = [random.normal(size=(rows, 5)).astype(np.float32) + 3 for rows in (40, 7, 40, 7)]
    monkeypatch.setattr(protocol, "PART_BYTES", 170)
    in_memory, on_disk = Encoded(*parts).standardised(), Encoded(*parts).standardised(Scratch(tmp_path, 200))
    assert isinstance(on_disk.train_features, np.memmap)
    assert not isinstance(on_disk.eval_features, np.memmap)
    for name in ("train_features", "eval_features", "train_reprs", "eval_reprs"):
        np.testing.assert_array_equal(getattr(in_memory, name), getattr(on_disk, name))


def test_the_registry_has_a_test_case_each():
    assert set(SPECS) == set(PROTOCOLS)


@pytest.mark.parametrize("name", SPECS)
def test_a_protocol_returns_the_scores_that_it_announces_and_reads_what_is_there(name):
    protocol, spec = PROTOCOLS[name], SPECS[name]
    assert protocol.spec is PROTOCOLS.spec(name) is type(spec)
    assert is_dataclass(protocol.spec)
    assert {f.name for f in fields(protocol.spec)}
    assert protocol.version >= 1
    readout, tools = toy_readout(protocol.trains), Tools()
    scores = protocol.run(spec, readout, tools)
    assert set(scores) == set(protocol.columns(spec))
    for values in scores.values():
        assert len(values) == 2
        assert all(0.8 < value <= 1.0 for value in values)
    # What is compiled is kept, and the numbers depend on the readout alone.
    before = len(tools.kept)
    assert protocol.run(spec, readout, tools) == scores
    assert len(tools.kept) == before


def test_columns_of_few_labels_go_up_and_no_two_protocols_share_one():
    assert PROTOCOLS["few"].columns(SPECS["few"]) == {"few_25": "25 % of labels", "few_50": "50 % of labels"}
    names = [score for name, protocol in PROTOCOLS.items() for score in protocol.columns(SPECS[name])]
    assert len(set(names)) == len(names)


def test_fine_tuning_without_networks_is_refused():
    with pytest.raises(ValueError, match="finetune: the readout has no networks"):
        PROTOCOLS["finetune"].run(SPECS["finetune"], toy_readout(trains=False), Tools())


def test_the_plain_tools_run_steps_in_order_on_the_rows_that_are_drawn():
    steps = Steps(
        step=lambda state, number, batch, factor: (10 * state + factor * batch[0].sum(), {"loss": state}),
        draw=lambda number, factor: (jnp.array([number, number + 1]),),
    )
    last = Tools().train(steps, [jnp.array(0), jnp.array(1)], 2, [(1,), (2,)], name="toy", tables=(np.arange(5),))
    # Rows 0 and 1, then 1 and 2.
    assert [int(state) for state in last] == [10 * 1 + 3, 10 * (10 + 2) + 6]
