"""Teachers that are read from published checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden.recipe import TEACHER_SEED, TEACHER_SHAPE, TEACHER_WIDTHS, draw_images

from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.metrics import Metrics
from ssdd_jax.io.torch_files import read_state_dict
from ssdd_jax.main import main
from ssdd_jax.nets import make_learner
from ssdd_jax.progress import Display
from ssdd_jax.settings.fields import PRECISIONS
from ssdd_jax.settings.spec import DataSpec, RunSpec, TeacherSpec
from ssdd_jax.stages.context import Context
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.evaluate import teacher_is_there
from ssdd_jax.stages.networks import teacher_learner
from ssdd_jax.stages.teacher import Teacher, checkpoint_fingerprint, freeze, read_teacher, teacher_digest

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKPOINT = GOLDEN / "torch" / "teacher.ckpt"
SPEC = TeacherSpec(net="resnet18", widths=TEACHER_WIDTHS)


def test_a_solo_learn_checkpoint_gives_its_representations():
    learner = teacher_learner(SPEC, TEACHER_SHAPE)
    variables = read_teacher(str(CHECKPOINT), "resnet18", learner)
    expected = np.load(GOLDEN / "nets.npz")["teacher/features"]
    np.testing.assert_allclose(learner.apply(variables, draw_images(TEACHER_SHAPE, TEACHER_SEED)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_a_safetensors_file_gives_the_same_teacher(tmp_path, kind):
    arrays = {name: array.astype(kind) if array.dtype == np.float32 else array for name, array in read_state_dict(CHECKPOINT).items()}
    safetensors.numpy.save_file(arrays, tmp_path / "teacher.safetensors")
    learner = teacher_learner(SPEC, TEACHER_SHAPE)
    found, expected = (read_teacher(str(file), "resnet18", learner) for file in (tmp_path / "teacher.safetensors", CHECKPOINT))
    jax.tree.map(lambda mine, theirs: np.testing.assert_array_equal(mine, np.asarray(theirs, kind).astype(np.float32)), found, expected)


def test_a_checkpoint_of_another_network_or_without_weights_is_named():
    for spec, file, message in (
        (replace(SPEC, widths=(2, 2, 4, 8)), CHECKPOINT, r"teacher\.ckpt: .*layer4"),
        (replace(SPEC, net="resnet10"), CHECKPOINT, r"teacher\.ckpt: .*layer1\.1"),
        (SPEC, GOLDEN / "torch" / "bare.pt", "bare.pt"),
        (SPEC, GOLDEN / "torch" / "legacy.pt", "legacy format"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_teacher(str(file), spec.net, teacher_learner(spec, TEACHER_SHAPE))
        assert "\n" not in str(caught.value)


def test_a_published_teacher_has_another_name_at_another_precision():
    class Data:
        digest = "data"

    name = lambda precision: teacher_digest(replace(SPEC, checkpoint=str(CHECKPOINT), precision=precision), Data, "f" * 64)
    assert len({name(precision) for precision in PRECISIONS}) == len(PRECISIONS)


def test_weights_or_representations_that_are_not_finite_are_refused_before_anything_is_distilled():
    data = load_data(DataSpec(limit=64), "test")
    spec = RunSpec(teacher=TeacherSpec(widths=(4,)))
    learner = teacher_learner(spec.teacher, data.image_shape)
    variables = learner.init(jax.random.key(0))
    bad = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), variables)
    with pytest.raises(DataError, match=r"the teacher's .* holds NaN or infinity.*another config\.teacher\.learning_rate"):
        freeze(spec, data, learner, bad, "name")
    published = replace(spec, teacher=replace(spec.teacher, checkpoint="weights.pt"))
    huge = jax.tree.map(lambda leaf: 1e30 * leaf, variables)
    with pytest.raises(DataError, match=r"representations of the 64 training images are not all finite; check config\.teacher\.checkpoint"):
        freeze(published, data, learner, huge, "name")


def test_a_teacher_of_no_steps_needs_no_pretraining(tmp_path):
    data = load_data(DataSpec(limit=64), "test")
    context = lambda steps: Context(RunSpec(teacher=TeacherSpec(steps=steps)), data, tmp_path, Metrics(tmp_path / "m"), Display(quiet=True))
    assert teacher_is_there(context(0))
    assert not teacher_is_there(context(1))


def test_the_weights_are_no_constants_of_the_programs_that_represent():
    data = load_data(DataSpec(limit=64), "test")
    learner = teacher_learner(TeacherSpec(widths=(4,)), data.image_shape)
    variables = jax.tree.map(lambda leaf: 1.2345 * jnp.ones_like(leaf), learner.init(jax.random.key(0)))
    represent = Teacher(learner, variables, np.zeros(4, np.float32), 1.0, "name").jitted(data.normalize)
    lowered = represent.func.lower(*represent.args, data.train_images[:8]).as_text()
    assert "1.2345" not in lowered


def test_a_run_with_a_published_teacher_pretrains_none(tmp_path):
    draw = np.random.RandomState(0)
    split = lambda n: (draw.randint(0, 256, (n, *TEACHER_SHAPE), np.uint8), np.arange(n) % 3)
    (x_train, y_train), (x_test, y_test) = split(60), split(30)
    np.savez(tmp_path / "data.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    teacher = ["net=resnet18", f"widths={TEACHER_WIDTHS}", f"checkpoint={CHECKPOINT}"]
    args = [
        "--config",
        "arrays:smoke",
        f"--config.data.source=arrays:{tmp_path / 'data.npz'}",
        "--config.only=random",
        "--config.num_pairs=2",
    ]
    settings = [f"--config.teacher.{setting}" for setting in teacher]
    evaluation = ["--config.evaluation.protocols=('knn',)", "--config.evaluation.controls=('teacher',)"]
    assert main([*args, *settings, *evaluation, "--workdir", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["teacher"]["repr_width"] == TEACHER_WIDTHS[-1]
    assert [row["method"] for row in results["rows"]] == ["teacher", "random"]
    assert "repr_error" in results["rows"][1]
    assert not list((tmp_path / "run" / "checkpoints").glob("teacher-*"))
    # The same files elsewhere: the run goes on.
    (tmp_path / "moved").mkdir()
    (tmp_path / "data.npz").rename(tmp_path / "moved" / "data.npz")
    (tmp_path / "moved" / "t.ckpt").write_bytes(CHECKPOINT.read_bytes())
    moved = [
        f"--config.data.source=arrays:{tmp_path / 'moved' / 'data.npz'}",
        f"--config.teacher.checkpoint={tmp_path / 'moved' / 't.ckpt'}",
    ]
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert main([*args, *settings, *evaluation, *moved, "--workdir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_a_resnet18_saved_by_pytorch_gives_the_same_features(tmp_path):
    torch = pytest.importorskip("torch")
    from golden.make_goldens import NETS as TORCH_NETS

    torch.manual_seed(1)
    widths = (64, 128, 256, 512)
    module = TORCH_NETS["resnet18"](widths, (32, 32, 3))
    images = draw_images((32, 32, 3), 0)
    nchw = torch.from_numpy(images).permute(0, 3, 1, 2)
    module.features(nchw)
    torch.save({key: value for key, value in module.state_dict().items() if not key.startswith("fc.")}, tmp_path / "resnet18.pt")
    learner = make_learner("resnet18", (), (32, 32, 3), 0)
    variables = read_teacher(str(tmp_path / "resnet18.pt"), "resnet18", learner)
    with torch.no_grad():
        expected = module.eval().features(nchw).flatten(1).numpy()
    np.testing.assert_allclose(jax.jit(learner.features)(variables, jnp.asarray(images)), expected, rtol=1e-4, atol=1e-4)


def test_the_fingerprint_of_a_checkpoint_is_of_its_bytes_and_not_of_its_place(tmp_path):
    name = lambda file: checkpoint_fingerprint(replace(SPEC, checkpoint=str(file) if file else ""))
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(CHECKPOINT.read_bytes())
    assert name(moved) == name(CHECKPOINT) != name(GOLDEN / "torch" / "solo.ckpt")
    assert name(None) == ""
    with pytest.raises(InputError, match=r"config\.teacher\.checkpoint: no file '.*none\.pt'"):
        name(tmp_path / "none.pt")
