"""Sets that the user names: what their rows depend on, and how they are brought to the data. Nothing is trained."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from torch_writer import save_torch

from ssdd_jax.cli import parse
from ssdd_jax.errors import InputError
from ssdd_jax.main import main
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config
from ssdd_jax.settings.published import SetFacts
from ssdd_jax.stages import pipeline
from ssdd_jax.stages.sets import StoredSet, named_sets, with_teacher
from ssdd_jax.stages.verify import verify

DRAW = np.random.RandomState(0)
PIXELS = DRAW.uniform(size=(6, 8, 8, 1)).astype(np.float32)
MEAN, STD = np.array([0.3]), np.array([0.4])
FACTS = SetFacts("pixels", "labels", "none", "none")
ARGS = ["--config", "digits:smoke", "--workdir", "x", "--task=evaluate"]


def data_of(mean=MEAN, std=STD, num_classes=3):
    return SimpleNamespace(image_shape=(8, 8, 1), mean=mean, std=std, num_classes=num_classes)


def write(folder, mean, std, **manifest):
    """Write the same pixels, normalised with these statistics."""
    folder.mkdir()
    np.save(folder / "images.npy", ((PIXELS - mean) / std).astype(np.float32))
    np.save(folder / "targets.npy", np.eye(6, dtype=np.float32))
    about = {"kind": "pairs", "normalization": {"mean": list(mean), "std": list(std)}, **manifest}
    (folder / "manifest.json").write_text(json.dumps(about))
    return StoredSet(folder)


def published(file, num=1):
    return save_torch(file, {"data": [[(i + PIXELS).transpose(0, 3, 1, 2), np.arange(6) % 3] for i in range(num)]})


def test_images_of_other_statistics_are_brought_to_those_of_the_data(tmp_path):
    other, same = write(tmp_path / "other", [0.5], [0.2]), write(tmp_path / "same", MEAN, STD)
    pairs = other.pairs(data_of())
    np.testing.assert_allclose(pairs.images, (PIXELS - MEAN) / STD, atol=1e-5)
    assert pairs.images.dtype == np.float32
    assert pairs.manifest["normalization"] == {"mean": [0.3], "std": [0.4]}
    # Those of the data stay as they are, bit for bit, also where the last digits of a mean differ.
    stored = np.load(tmp_path / "same" / "images.npy")
    for mean in (MEAN, MEAN * (1 + 1e-7)):
        np.testing.assert_array_equal(same.pairs(data_of(mean)).images, stored)
    assert [stored.is_converted(data_of()) for stored in (other, same)] == [True, False]
    with pytest.raises(InputError, match=r"has images of \(8, 8, 1\), the data \(8, 8, 3\)"):
        other.pairs(SimpleNamespace(image_shape=(8, 8, 3), mean=np.zeros(3), std=np.ones(3), num_classes=3))


def test_a_teacher_sees_what_the_student_sees(tmp_path):
    stored = write(tmp_path / "labels", [0.5], [0.2], target_kind="labels")
    context = SimpleNamespace(represent=lambda images: 2 * images.reshape(len(images), -1), teacher_digest="t", width=64, data=data_of())
    again = with_teacher(context, {"labels": {0: stored}})["labels-teacher"][0]
    pairs = again.pairs(data_of())
    np.testing.assert_allclose(pairs.images, (PIXELS - MEAN) / STD, atol=1e-5)
    np.testing.assert_array_equal(pairs.targets, 2 * pairs.images.reshape(6, -1))
    assert again.is_converted(data_of())
    assert again.identity == [*stored.identity, "represented by", "t"]


def test_every_experiment_of_a_published_file_is_a_row(tmp_path):
    spec = to_spec(default_config())
    file = published(tmp_path / "res_dm.pt", 2)
    sets = named_sets([file], spec, FACTS)
    assert list(sets) == ["res_dm-0", "res_dm-1"]
    first, second = (sets[name][spec.seeds[0]] for name in sets)
    np.testing.assert_allclose(second.pairs(data_of()).images, (1 + PIXELS - MEAN) / STD, atol=1e-5)
    np.testing.assert_array_equal(first.pairs(data_of()).targets, np.eye(3)[np.arange(6) % 3])
    found = first.describe()
    assert (found["num_images"], found["num_views"], found["stored_scalars"], found["target_kind"]) == (6, 1, 6 * 65, "labels")
    assert found["views"] == ["identity"]
    with pytest.raises(InputError, match="has labels from 0 to 2, expected 0 to 1"):
        first.pairs(data_of(num_classes=2))
    # A row depends on the content of the file and on what is said about it.
    mosaic = named_sets([file], spec, SetFacts("pixels", None, "mosaic", "none"))["res_dm-0"][spec.seeds[0]]
    identities = [repr(one.identity) for one in (first, second, mosaic)]
    assert len(set(identities)) == 3
    assert mosaic.describe()["num_views"] == 4


def test_names_of_published_sets_do_not_collide(tmp_path):
    (tmp_path / "other").mkdir()
    files = [published(tmp_path / "full.pt"), published(tmp_path / "a.pt"), published(tmp_path / "other" / "a.pt")]
    spec = to_spec(default_config())
    assert list(named_sets(files, spec, FACTS)) == [str(files[0]), "a", str(files[2])]
    assert list(named_sets([tmp_path / "other"], spec, FACTS)) == ["other"]
    with pytest.raises(InputError, match="is given twice"):
        named_sets([files[0], files[0]], spec, FACTS)
    folder = write(tmp_path / "plain", MEAN, STD).folder
    with pytest.raises(InputError, match=r"--set_normalization is for published files, every --set has a manifest.json"):
        named_sets([folder], spec, FACTS)
    assert list(named_sets([folder, files[1]], spec, FACTS)) == ["plain", "a"]


def test_flags_say_what_a_published_file_does_not(tmp_path):
    flags = ["--set=a.pt", "--set_normalization=.5,.5/.2,.2", "--set_targets=logits", "--set_views=none", "--set_zca=file:///z.npz"]
    assert parse([*ARGS, *flags]).facts == SetFacts(((0.5, 0.5), (0.2, 0.2)), "logits", "none", "/z.npz")
    assert parse([*ARGS, "--set=a.pt", "--set_zca=none"]).facts == SetFacts(zca="none")
    assert parse(ARGS).facts.given == ()
    for args, message in [
        ([*ARGS, "--set=a.pt", "--set_views=all"], "--set_views is 'all', expected none or mosaic"),
        ([*ARGS, "--set=a.pt", "--set_zca=s3://b/z.npz"], "--set_zca is 's3://b/z.npz', expected a path on this machine"),
        ([*ARGS, "--set_views=none"], "--set_views is for --task=evaluate with --set, .*; drop it, or add --set"),
        (
            ["--workdir", "x", "--task=verify", "--set=a", "--set_zca=none"],
            "--set_zca is for --task=evaluate .*, the task is verify",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            parse(args)


def test_a_published_set_is_refused_in_one_line_before_anything_is_computed(tmp_path, capsys):
    file, workdir = published(tmp_path / "res.pt"), tmp_path / "run"
    args = ["--config", "digits:smoke", "--workdir", str(workdir), "--task=evaluate", f"--set={file}"]
    assert main([*args, "--set_normalization=pixels"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: {file} has no manifest.json that says how to read it; "
        "give --set_views (none or mosaic) and --set_zca (none, or an .npz file with mean and inverse)\n"
    )
    assert not (workdir / "results.json").exists()
    for task, refuse in (("verify", lambda: verify(workdir, [file])), ("export", lambda: pipeline.export(workdir, "npz", [tmp_path]))):
        with pytest.raises(InputError, match=f"is a published set, expected one with a .* for --task={task}; only evaluate reads it"):
            refuse()
