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

from ssdd_jax.errors import InputError
from ssdd_jax.io.torch_files import read_state_dict
from ssdd_jax.main import main
from ssdd_jax.nets import make_learner
from ssdd_jax.settings.fields import PRECISIONS
from ssdd_jax.settings.spec import RunSpec, TeacherSpec
from ssdd_jax.stages.networks import teacher_learner
from ssdd_jax.stages.teacher import read_teacher, teacher_digest

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


def test_the_digest_of_a_published_teacher_stays_what_it_was():
    class Data:
        digest = "data"

    assert teacher_digest(RunSpec(teacher=replace(SPEC, checkpoint=str(CHECKPOINT))), Data) == "f482ce2d2f16"


def test_a_published_teacher_has_another_name_at_another_precision():
    class Data:
        digest = "data"

    name = lambda precision: teacher_digest(RunSpec(teacher=replace(SPEC, checkpoint=str(CHECKPOINT), precision=precision)), Data)
    assert len({name(precision) for precision in PRECISIONS}) == len(PRECISIONS)


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


def test_the_digest_of_a_published_teacher_is_of_its_bytes_and_not_of_its_place(tmp_path):
    from ssdd_jax.settings.spec import DataSpec
    from ssdd_jax.stages.dataset import load_data
    from ssdd_jax.stages.teacher import teacher_digest

    data = load_data(DataSpec(), "test")
    name = lambda file: teacher_digest(replace(RunSpec(), teacher=replace(SPEC, checkpoint=str(file))), data)
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(CHECKPOINT.read_bytes())
    assert name(moved) == name(CHECKPOINT) != name(GOLDEN / "torch" / "solo.ckpt")
