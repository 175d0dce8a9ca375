"""Experts: what their rows are, and that an interrupted computation leaves the same ones."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lines import line_registered
from torch_pickles import write_lists

from ssdd_jax.core.batching import batch_schedule
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.nets import make_learner
from ssdd_jax.nets.flat import flat_learner
from ssdd_jax.progress import Display
from ssdd_jax.rng import Stream, step_key
from ssdd_jax.runtime import stop
from ssdd_jax.runtime.encode import GrowingFile
from ssdd_jax.runtime.health import NumericalError
from ssdd_jax.settings.methods import ExpertSpec
from ssdd_jax.settings.spec import DataSpec, NetSpec, RunSpec, TeacherSpec
from ssdd_jax.stages import experts
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data

WHERE = "config.methods.datm.experts"
SPEC = ExpertSpec(count=2, epochs=2, batch_size=24, augment="", net=NetSpec("line"), learning_rate=0.05)


@pytest.fixture(autouse=True)
def line():
    with line_registered():
        yield


@pytest.fixture(scope="module")
def data():
    return load_data(DataSpec(limit=64), "test")


def make_context(folder, data):
    spec = RunSpec(data=DataSpec(limit=64), teacher=TeacherSpec(widths=(2,)))
    return Context(spec, data, folder, Metrics(folder / "metrics.jsonl"), Display())


def trained(folder, data, spec=SPEC):
    return make_context(folder, data).experts(spec, WHERE)


def network(spec, data):
    return flat_learner(spec.net, data.image_shape, data.num_classes, WHERE, spec.precision)


@pytest.mark.parametrize(("optimizer", "rho"), [("sgd", 0.01), ("gsam", 0.0)])
def test_the_rows_are_those_of_gradient_descent_in_shuffled_batches_epoch_by_epoch(optimizer, rho, data, tmp_path):
    rows = trained(tmp_path, data, replace(SPEC, optimizer=optimizer, rho=rho))
    flat = network(SPEC, data)
    assert rows.shape == (2 * 3, flat.num_params)
    images, labels = data.normalize(jnp.asarray(data.train_images)), jnp.asarray(data.train_labels)

    @jax.jit
    def descend(params, batch):
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(flat.apply(params, images[batch]), labels[batch]).mean()
        return params - 0.05 * jax.grad(loss)(params)

    for expert in range(2):
        params = flat.init(step_key(0, Stream.EXPERT_INIT, expert))
        np.testing.assert_array_equal(rows[np.array([3 * expert])][0], params)
        # 64 images make three batches of 24, the last of which has eight images of the first.
        schedule = batch_schedule(experts.expert_keys(0, expert)[0], 64, 24, 6)
        for epoch in (1, 2):
            for batch in schedule[3 * (epoch - 1) : 3 * epoch]:
                params = descend(params, batch)
            np.testing.assert_allclose(rows[np.array([3 * expert + epoch])][0], params, rtol=1e-4, atol=1e-6)


def test_an_augmented_expert_is_another_and_a_function_of_its_settings(data, tmp_path):
    augmented = replace(SPEC, augment="cutout")
    one, other = trained(tmp_path, data, augmented)[:], trained(tmp_path / "again", data, augmented)[:]
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, trained(tmp_path, data)[:])


class Cut(BaseException):
    pass


@pytest.mark.parametrize("where", ["between rows", "in a row", "before the record"])
@pytest.mark.parametrize("row", [1, 3, 5])
def test_experts_that_were_cut_off_go_on_to_the_same_bits(where, row, data, tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole", data)[:]
    append, record = GrowingFile.append, GrowingFile.record

    def cut(growing, rows):
        if growing.done == row:
            if where == "in a row":
                growing.rows[row, :100] = rows[0, :100]
            raise Cut
        append(growing, rows)

    def unrecorded(growing):
        if growing.done == row + 1:
            raise Cut
        record(growing)

    with monkeypatch.context() as patch:
        if where == "before the record":
            patch.setattr(GrowingFile, "record", unrecorded)
        else:
            patch.setattr(GrowingFile, "append", cut)
        if where == "before the record" and row == 3:
            # What an expert starts from is recorded with its first epoch.
            patch.setattr(GrowingFile, "append", cut)
        with pytest.raises(Cut):
            trained(tmp_path, data)
    assert not list((tmp_path / "checkpoints").glob("*.npy"))
    assert trained(tmp_path, data)[:].tobytes() == whole.tobytes()
    lines = [(folder / "metrics.jsonl").read_text() for folder in (tmp_path, tmp_path / "whole")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [3, 6, 3, 6]
    assert sorted(path.suffix for path in (tmp_path / "checkpoints").iterdir()) == [".json", ".npy"]


def test_experts_stop_on_request_and_go_on_to_the_same_bits(data, tmp_path, monkeypatch):
    whole, asked = trained(tmp_path / "whole", data)[:], iter([False] * 7 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(stop, "requested", lambda: next(asked))
        patch.setattr(stop._Request, "seen", False)
        # In the middle of the second expert's first epoch.
        with pytest.raises(stop.Stopped, match=r"stopped at step 2 of experts-\w+/1; run the same command to go on"):
            trained(tmp_path, data)
    assert trained(tmp_path, data)[:].tobytes() == whole.tobytes()


def test_experts_are_trained_once_and_a_damaged_file_is_made_again(data, tmp_path, monkeypatch, capsys):
    first = trained(tmp_path, data)[:]
    with monkeypatch.context() as patch:
        patch.setattr(experts, "train_experts", lambda *_: pytest.fail("trained again"))
        np.testing.assert_array_equal(trained(tmp_path, data)[:], first)
    (file,) = (tmp_path / "checkpoints").glob("*.npy")
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(trained(tmp_path, data)[:], first)
    assert "it has changed since it was written; it is recomputed" in " ".join(capsys.readouterr().out.split())


def test_an_expert_that_diverges_names_its_learning_rate(data, tmp_path):
    with pytest.raises(
        NumericalError, match=r"experts-\w+/0: .*not finite at step .*config\.methods\.datm\.experts\.learning_rate \(1e\+38\)"
    ):
        trained(tmp_path, data, replace(SPEC, learning_rate=1e38))


PUBLISHED = replace(SPEC, net=NetSpec("convnet_in", (2, 3)))


def torch_snapshot(seed):
    """Return the parameters of convnet_in of widths 2 and 3 on grey images of 8 pixels, as PyTorch lists them."""
    draw = np.random.RandomState(seed)
    shapes = [(2, 1, 3, 3), (2,), (2,), (2,), (3, 2, 3, 3), (3,), (3,), (3,), (10, 3 * 3 * 3), (10,)]
    return [draw.normal(size=shape).astype(np.float32) for shape in shapes]


def test_published_trajectories_become_rows(data, tmp_path):
    for number in (0, 1, 10):
        trajectories = [[torch_snapshot(100 * number + 10 * i + k) for k in range(3)] for i in range(1 + (number == 1))]
        write_lists(tmp_path / f"replay_buffer_{number}.pt", trajectories)
    rows = trained(tmp_path / "run", data, replace(PUBLISHED, files=str(tmp_path), count=4))[:]
    flat = network(PUBLISHED, data)
    assert rows.shape == (4 * 3, flat.num_params)
    seeds = [base + k for base in (0, 100, 110, 1000) for k in range(3)]
    # As the same network reads them: OIHW, and the linear layer's columns channel by channel.
    learner = make_learner("convnet_in", (2, 3), (8, 8, 1), 10)
    template = learner.init(jax.random.key(0))
    for seed, row in zip(seeds, rows, strict=True):
        weights = torch_snapshot(seed)
        variables = jax.tree.map(jnp.zeros_like, template)["params"]
        for block in range(2):
            kernel, bias, scale, offset = weights[4 * block : 4 * block + 4]
            variables[f"Conv_{block}"]["Conv_0"] = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias}
            variables[f"InstanceNorm_{block}"] = {"scale": scale, "bias": offset}
        linear = weights[8].reshape(10, 3, 3, 3).transpose(2, 3, 1, 0).reshape(27, 10)
        variables["Linear_0"]["Dense_0"] = {"kernel": linear, "bias": weights[9]}
        np.testing.assert_array_equal(row, flat.flatten({"params": variables}))
    # One file alone.
    alone = replace(PUBLISHED, files=str(tmp_path / "replay_buffer_1.pt"), count=2)
    np.testing.assert_array_equal(trained(tmp_path / "run", data, alone)[:], rows[3:9])


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ([[torch_snapshot(k) for k in range(3)]], {"count": 2}, "have 1 trajectories, expected .*count = 2; lower that"),
        ([[torch_snapshot(k) for k in range(4)]], {}, r"has a trajectory of 4 snapshots, expected 3: .*epochs \(2\) and the beginning"),
        ([3], {}, "has a trajectory of type int, expected 3"),
        (7, {}, "holds an object of type int, expected a list of trajectories"),
        (
            [[torch_snapshot(k)[:-1] for k in range(3)]],
            {},
            "it has a snapshot of 9 tensors, expected a list of the 10 parameters of convnet_in",
        ),
        (
            [[torch_snapshot(k) for k in range(3)]],
            {"net": NetSpec("convnet_in", (2, 4))},
            r"features\.4\.bias of the state dict has shape",
        ),
        ([[[np.full_like(part, np.inf) for part in torch_snapshot(0)]] * 3], {}, "it has a snapshot with NaN or infinity"),
        ([[torch_snapshot(k) for k in range(3)]], {"net": NetSpec("line")}, "does not fit the network: net is 'line', of whose parameters"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused_in_one_line(content, changes, message, data, tmp_path):
    file = write_lists(tmp_path / "replay_buffer_0.pt", content)
    with pytest.raises(DataError, match=message) as caught:
        trained(tmp_path / "run", data, replace(PUBLISHED, files=str(file), **{"count": 1, **changes}))
    assert "\n" not in str(caught.value)


def test_files_go_by_their_content_and_missing_ones_are_refused(data, tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write_lists(tmp_path / folder / "replay_buffer_0.pt", [[torch_snapshot(k) for k in range(3)]])
    name = lambda folder: make_context(tmp_path, data).experts_file(replace(PUBLISHED, files=str(tmp_path / folder))).name
    here = name("here")
    assert here == name("there")
    assert len({here, name("nowhere"), make_context(tmp_path, data).experts_file(PUBLISHED).name}) == 3
    write_lists(tmp_path / "here" / "replay_buffer_0.pt", [[torch_snapshot(k + 1) for k in range(3)]])
    assert name("here") != here
    with pytest.raises(InputError, match=r"config\.x\.files is '.*nowhere', expected a file replay_buffer_N\.pt or a folder of them"):
        experts.trajectory_files(str(tmp_path / "nowhere"), "config.x.files")
