"""Runs on arrays of a program, and teachers that were made elsewhere: they are the runs of the command line."""

import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from quick import VIEWS as QUICK_VIEWS

import ssdd_jax
from ssdd_jax.core.views import ROTATIONS, VIEWS
from ssdd_jax.errors import InputError
from ssdd_jax.main import main
from ssdd_jax.settings.spec import DataSpec
from ssdd_jax.stages.dataset import load_data
from ssdd_jax.stages.features import Features

DRAW = np.random.RandomState(0)
IMAGES, TEST = DRAW.randint(0, 256, (60, 8, 8, 1), np.uint8), DRAW.randint(0, 256, (30, 8, 8, 1), np.uint8)
LABELS, TEST_LABELS = np.arange(60) % 3, np.arange(30) % 3
WEIGHTS = DRAW.normal(size=(64, 5)).astype(np.float32)
MEAN, STD = np.float32(np.mean(IMAGES / 255.0)), np.float32(np.std(IMAGES / 255.0))
OURS = dict(base_size=8, image_bases=4, repr_bases=3, network_steps=5, steps=6)
SMALL = dict(num_pairs=8, pool={"size": 1, "max_age": 2}, student={"widths": (4,)}, outer={"batch_size": 16})


def represent(images):
    """A teacher that is a function of arrays of either kind."""
    return images.reshape(len(images), -1) @ WEIGHTS


def normalise(images):
    return (images / np.float32(255) - MEAN) / STD


def features():
    images = jnp.asarray(normalise(IMAGES))
    return {name: np.asarray(represent(VIEWS[name](images))) for name in ROTATIONS} | {"test": represent(normalise(TEST))}


@pytest.fixture
def files(tmp_path):
    """A dataset and its features, as --config.data.source and --config.teacher.features take them."""
    np.savez(tmp_path / "data.npz", x_train=IMAGES, y_train=LABELS, x_test=TEST, y_test=TEST_LABELS)
    np.savez(tmp_path / "features.npz", **features())
    return tmp_path


def flags(files, **others):
    settings = {
        "data.source": f"arrays:{files / 'data.npz'}",
        "data.validation": 0.0,
        "teacher.features": files / "features.npz",
        "only": "ours",
        "num_pairs": 8,
        "seeds": "(0,)",
        "pool.size": 1,
        "pool.max_age": 2,
        "student.widths": "(4,)",
        "outer.batch_size": 16,
        "evaluation.protocols": "knn",
        "evaluation.updates": 3,
        "evaluation.students": "{}",
        "evaluation.only": "",
        **{f"methods.ours.{name}": value for name, value in OURS.items()},
        "methods.ours.learning_rate": 0.01,
        "methods.ours.support_images": 0,
        **others,
    }
    return ["--config", "arrays:paper", *(f"--config.{name}={value}" for name, value in settings.items())]


def test_a_file_of_features_and_arrays_of_a_program_make_the_same_bytes(files, capsys):
    assert main([*flags(files), "--workdir", str(files / "run")]) == 0
    rows = {row["method"]: row for row in json.loads((files / "run" / "results.json").read_text())["rows"]}
    # There is no untrained network of a teacher that is features.
    assert set(rows) == {"none", "teacher", "ours"}
    assert "(teacher_init) is left out" in capsys.readouterr().out
    assert np.isfinite(rows["ours"]["repr_error"])
    seen = []

    def interrupt(step, metrics):
        seen.append((step, sorted(metrics)))
        if len(seen) == 3:
            raise KeyboardInterrupt

    given = dict(method="ours", **OURS, **SMALL, progress=False, workdir=files / "mine")
    ssdd_jax.distill(IMAGES, features(), callback=interrupt, **given)
    # The same call goes on from there, to the bytes of a run that was not interrupted.
    distilled = ssdd_jax.distill(IMAGES, features(), callback=interrupt, **given)
    written = [files / name / "distilled" / "ours" / "seed_0" / "distilled.safetensors" for name in ("run", "mine")]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert "loss" in seen[0][1]
    scores = ssdd_jax.evaluate(
        distilled,
        jnp.asarray(IMAGES),
        LABELS,
        eval_images=TEST,
        eval_labels=TEST_LABELS,
        teacher=features(),
        student={"widths": (4,)},
        protocols=("knn",),
        updates=3,
        progress=False,
    )
    assert {key: scores[key] for key in ("repr_error", "knn")} == {key: rows["ours"][key] for key in ("repr_error", "knn")}
    # Another file at the same place is another teacher.
    np.savez(files / "features.npz", **{name: -array for name, array in features().items()})
    assert main([*flags(files), "--task=distill", "--workdir", str(files / "run")]) == 2
    assert "fingerprint of the teacher's features" in capsys.readouterr().err


def test_functions_of_jax_and_of_numpy_are_teachers_alike_and_an_interrupt_returns_what_there_is(capsys):
    def on_host(images):
        assert type(images) is np.ndarray
        return represent(images)

    def interrupt(step, metrics):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = lambda teacher, **others: ssdd_jax.distill(IMAGES, teacher, **{**OURS, **SMALL, **others})
    full = run(represent, progress=False)
    stopped = run(on_host, steps=1000, callback=interrupt)
    assert "warning: ours: stopped after 3 steps" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    # Within the budget, with all views and with the networks that predict their targets, as it would be at the end.
    shapes = lambda distilled: [part.shape for part in ssdd_jax.expand(distilled)]
    assert stopped.layout == full.layout
    assert shapes(stopped) == shapes(full)
    with pytest.raises(ZeroDivisionError):
        run(represent, callback=lambda step, metrics: 1 / 0, progress=False)


def test_images_may_be_normalised_floats_and_their_bytes_differ_by_rounding():
    run = lambda images: ssdd_jax.expand(ssdd_jax.distill(images, represent, method="random", num_pairs=8, progress=False))
    for mine, theirs in zip(run(normalise(IMAGES)), run(IMAGES), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_pretrained_teacher_and_an_interrupted_one():
    settings = dict(widths=(4,), steps=3, batch_size=16, projector_width=8, warmup_steps=1, **QUICK_VIEWS, progress=False)
    teacher = ssdd_jax.pretrain_teacher(IMAGES, **settings)
    assert teacher.centre.shape == (4,)
    assert ssdd_jax.distill(IMAGES, teacher, method="random", num_pairs=8, progress=False).reprs.rows.shape[-1] == 4

    def interrupt(step, metrics):
        raise KeyboardInterrupt

    stopped = ssdd_jax.pretrain_teacher(IMAGES, **{**settings, "steps": 500}, callback=interrupt)
    assert stopped.digest.endswith("stopped after 1 steps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.transpose(0, 3, 1, 2).repeat(3, 1)}, r"images are \(60, 3, 8, 8\), expected channels last"),
        ({"images": IMAGES.astype(np.int64)}, r"images are int64 .*, expected uint8 pixels \(n, H, W, C\), or floats"),
        ({"images": IMAGES[0]}, r"expected uint8 pixels \(n, H, W, C\)"),
        ({"images": normalise(IMAGES), "teacher": None}, "augments pixels, but the images are float32"),
        ({"images": normalise(IMAGES), "outer": {"real_augment": "fresh"}}, "augments pixels"),
        ({"labels": np.eye(3)[LABELS]}, r"labels are float64 \(60, 3\), expected integers \(n,\)"),
        ({"labels": LABELS[:7]}, "7 for 60 images"),
        ({"teacher": features()["identity"]}, r"config\.methods\.ours asks for rot90, the teacher has identity; add rot90"),
        ({"teacher": {**features(), "rot180": features()["test"]}}, "rot180 of the teacher has 30 rows, expected 60"),
        ({"teacher": {"rot90": features()["identity"]}}, "the teacher has rot90, expected identity"),
        ({"teacher": IMAGES}, "identity of the teacher is uint8"),
        ({"teacher": features(), "outer": {"real_augment": "crops"}}, "no network that represents crops"),
        ({"teacher": lambda images: images}, r"the teacher returns \(1, 8, 8, 1\) .*, expected one row per image"),
        ({"teacher": lambda images: np.asarray(represent(images)), "outer": {"real_augment": "fresh"}}, "give a function of jax"),
        ({"teacher": "none.npz"}, r"config\.teacher\.features: no file 'none\.npz'"),
        ({"teacher": {"checkpoint": "a.pt", "features": "a.npy"}}, "a checkpoint and features"),
        ({"method": "our"}, "method is 'our', expected one of random, .*did you mean 'ours'"),
        ({"step": 3}, "the setting 'step' is unknown.*did you mean 'steps'"),
        ({"num_pairs": "ten"}, r"config\.num_pairs"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(arguments, message):
    given = {"images": IMAGES, "teacher": represent, "progress": False, **OURS, **SMALL, **arguments}
    with pytest.raises(InputError, match=message) as caught:
        ssdd_jax.distill(given.pop("images"), given.pop("teacher"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distilled": "all"}, "'all' is not a control, expected none, full, teacher"),
        ({"distilled": "full"}, "teacher is None, expected one that is there"),
        ({"teacher": {"steps": 3}}, r"teacher is \{'steps': 3\}, expected one that is there"),
        ({"teacher": features()["identity"]}, "evaluation on test asks for test, the teacher has identity; add test"),
        ({"eval_images": TEST[..., 0]}, r"eval_images are uint8 \(30, 8, 8\)"),
        ({"labels": None}, "eval_labels were given without eval_images or labels"),
        ({"images": normalise(IMAGES), "eval_images": normalise(TEST), "protocols": ("finetune",)}, "finetune augments pixels"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(arguments, message):
    given = dict(distilled="none", images=IMAGES, labels=LABELS, eval_images=TEST, eval_labels=TEST_LABELS, teacher=None, progress=False)
    with pytest.raises(InputError, match=message) as caught:
        ssdd_jax.evaluate(**{**given, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [{"validation": 0.2, "limit": 20}, {"split": "unlabelled", "validation": 0.0}, {"test": 0.3}])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_rows_of_features_are_those_of_the_images(tmp_path, spec, split):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": TEST, "y_test": TEST_LABELS, "x_unlabelled": IMAGES[::-1]}
    if "test" in spec:
        arrays = {"x_train": IMAGES, "y_train": LABELS}
    np.savez(tmp_path / "data.npz", **arrays)
    spec = {"validation": 0.1, **spec}
    if split == "validation" and not spec["validation"]:
        pytest.skip("nothing is held out")
    data = load_data(DataSpec(f"arrays:{tmp_path / 'data.npz'}", **spec), split)
    distilled = spec.get("split", "train")
    number = lambda name: arrays[f"x_{name}"].reshape(-1, 64).astype(np.float32)
    made = Features({"identity": number(distilled), "test": number("test") if "x_test" in arrays else number("train")}, distilled)
    for rows, images in ((data.train_rows, data.train_images), (data.eval_rows, data.eval_images)):
        np.testing.assert_array_equal(made.take(rows), images.reshape(-1, 64))


def test_names_are_listed():
    assert {"ours", "krr_st", "kip"} <= set(ssdd_jax.list_methods())
    assert "resnet18" in ssdd_jax.list_students()
