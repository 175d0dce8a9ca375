"""Other people's distilled sets, in the files that their programs write."""

import os

import numpy as np
import pytest
from torch_writer import save_torch

from ssdd_jax import read_pairs
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.published import is_published, read_published, refuse_published
from ssdd_jax.settings.published import STATISTICS, SetFacts

SAID = dict(normalization="cifar10", views="none", zca="none")
DRAW = np.random.RandomState(0)
IMAGES = DRAW.normal(size=(6, 3, 8, 8)).astype(np.float32)
LABELS = np.arange(6) % 3
LOGITS = DRAW.normal(size=(6, 3)).astype(np.float32)
LAST = (0, 2, 3, 1)


def dc(folder, *entries):
    """Write what DC, DSA, DM and IDM write; accuracies are NumPy's numbers there."""
    accuracy = b"cnumpy.core.multiarray\nscalar\n(U\x01xtR"
    return save_torch(folder / "res_DC_CIFAR10_ConvNet_2ipc.pt", {"data": list(entries), "accs_all_exps": {"ConvNet": [accuracy]}})


def mtt(folder, images=IMAGES, labels=LABELS, ending="best", **others):
    save_torch(folder / f"labels_{ending}.pt", labels)
    for name, value in others.items():
        save_torch(folder / f"{name}_{ending}.pt", value)
    return save_torch(folder / f"images_{ending}.pt", images)


def npz(file, **arrays):
    np.savez(file, **arrays)
    return file


def test_experiments_of_dc_are_sets_of_their_own(tmp_path):
    file = dc(tmp_path, [IMAGES, LABELS], [2 * IMAGES, LABELS[::-1].copy()])
    pairs = read_pairs(file, **SAID, experiment=1, num_classes=4)
    np.testing.assert_array_equal(pairs.images, 2 * IMAGES.transpose(LAST))
    np.testing.assert_array_equal(pairs.targets, np.eye(4)[LABELS[::-1]])
    assert pairs.target_kind == "labels"
    found = pairs.manifest
    assert (found["num_images"], found["num_views"], found["stored_scalars"]) == (6, 1, 6 * (8 * 8 * 3 + 1))
    assert found["normalization"] == {"mean": list(STATISTICS["cifar10"][0]), "std": list(STATISTICS["cifar10"][1])}
    with pytest.raises(InputError, match="has 2 experiments; give experiment, 0 to 1"):
        read_pairs(tmp_path, **SAID, num_classes=4)
    with pytest.raises(InputError, match=r"experiment is 2, .* has 2; give 0 to 1"):
        read_pairs(tmp_path, **SAID, num_classes=4, experiment=2)


def doubled(images, axis):
    """Return images of twice the length along an axis, bilinearly with half-pixel centres, the border repeated."""
    images = np.moveaxis(images, axis, 0)
    before, after = np.concatenate([images[:1], images[:-1]]), np.concatenate([images[1:], images[-1:]])
    rows = np.stack([0.25 * before + 0.75 * images, 0.75 * images + 0.25 * after], 1)
    return np.moveaxis(rows.reshape(-1, *images.shape[1:]), 0, axis)


def test_the_mosaics_of_idm_are_read_as_their_quadrants_with_labels_repeated(tmp_path):
    file = dc(tmp_path, [IMAGES, LABELS])
    pairs = read_pairs(file, **SAID | {"views": "mosaic"}, num_classes=3)
    # Top left, bottom left, top right, bottom right.
    corners = [(slice(4), slice(4)), (slice(4, 8), slice(4)), (slice(4), slice(4, 8)), (slice(4, 8), slice(4, 8))]
    expected = np.concatenate([doubled(doubled(IMAGES[:, :, rows, columns], 2), 3) for rows, columns in corners])
    np.testing.assert_allclose(pairs.images, expected.transpose(LAST), atol=1e-5)
    np.testing.assert_array_equal(pairs.targets, np.eye(3)[np.tile(LABELS, 4)])
    # What is stored is the mosaic.
    assert (pairs.manifest["num_images"], pairs.manifest["num_views"], pairs.manifest["stored_scalars"]) == (6, 4, 6 * 193)
    odd = dc(tmp_path, [IMAGES[:, :, :7], LABELS])
    with pytest.raises(InputError, match=r"images of \(7, 8\), expected even sides"):
        read_pairs(odd, **SAID | {"views": "mosaic"}, num_classes=3)


def test_mtt_keeps_labels_next_to_its_images(tmp_path):
    mtt(tmp_path)
    # A folder with one set is that set.
    pairs = read_pairs(tmp_path, **SAID, num_classes=3)
    np.testing.assert_array_equal(pairs.images, IMAGES.transpose(LAST))
    np.testing.assert_array_equal(pairs.targets, np.eye(3)[LABELS])
    assert set(pairs.manifest["files"]) == {"images_best.pt", "labels_best.pt"}
    assert "learning_rate" not in pairs.manifest
    # The images before their whitening, which it also writes, have the same labels.
    pixels = save_torch(tmp_path / "images_zca_best.pt", IMAGES / 10)
    pairs = read_pairs(pixels, **SAID | {"normalization": "pixels"}, num_classes=3)
    assert pairs.manifest["normalization"] == {"mean": [0.0] * 3, "std": [1.0] * 3}
    with pytest.raises(InputError, match=r"several files .*images_best.pt, images_zca_best.pt.*give it as --set="):
        read_pairs(tmp_path, **SAID, num_classes=3)
    (tmp_path / "labels_best.pt").unlink()
    with pytest.raises(InputError, match=r"no labels_best.pt next to .*images_best.pt"):
        read_pairs(tmp_path / "images_best.pt", **SAID, num_classes=3)


def whitening(size):
    """Return a mean, a whitening and its inverse."""
    matrix = np.eye(size) + 0.1 * DRAW.normal(size=(size, size)) / np.sqrt(size)
    return DRAW.normal(size=size), matrix, np.linalg.inv(matrix)


def test_datm_has_logits_a_rate_and_whitened_images(tmp_path):
    mean, matrix, inverse = whitening(192)
    white = ((IMAGES.reshape(6, -1) - mean) @ matrix).reshape(IMAGES.shape).astype(np.float32)
    file = mtt(tmp_path, white, LOGITS, lr=np.array(0.03, np.float32))
    zca = npz(tmp_path / "zca.npz", mean=mean[None], inverse=inverse)
    pairs = read_pairs(file, **SAID | {"zca": zca, "normalization": "pixels"}, targets="logits")
    np.testing.assert_allclose(pairs.images, IMAGES.transpose(LAST), atol=1e-4)
    np.testing.assert_array_equal(pairs.targets, LOGITS)
    assert pairs.target_kind == "logits"
    assert pairs.manifest["learning_rate"] == pytest.approx(0.03)
    assert pairs.manifest["stored_scalars"] == 6 * (192 + 3)
    save_torch(tmp_path / "lr_best.pt", np.full(2, 0.1))
    with pytest.raises(DataError, match=r"lr_best.pt is not one finite number"):
        read_pairs(file, **SAID, targets="logits")


def test_kip_and_frepo_write_arrays_with_the_channels_last(tmp_path):
    images, targets = IMAGES.transpose(LAST), np.eye(3, dtype=np.float32)[LABELS] - 1 / 3
    kip = npz(tmp_path / "kip.npz", images=images, labels=targets)
    pairs = read_pairs(kip, **SAID, targets="labels")
    np.testing.assert_array_equal(pairs.images, images)
    np.testing.assert_array_equal(pairs.targets, targets.astype(np.float32))
    assert (pairs.target_kind, pairs.manifest["stored_scalars"]) == ("labels", 6 * 195)
    mean, matrix, inverse = whitening(192)
    white = ((images.reshape(6, -1) - mean) @ matrix).reshape(images.shape)
    frepo = npz(tmp_path / "step000500.npz", image=white, label=targets)
    zca = npz(tmp_path / "its_own.npz", zca_mean=mean, rev_whitening_transform=inverse, whitening_transform=matrix)
    statistics = ".49,.48,.45/.25,.24,.26"
    pairs = read_pairs(frepo, normalization=statistics, targets="labels", views="none", zca=zca)
    np.testing.assert_allclose(pairs.images, images, atol=1e-4)
    assert pairs.manifest["normalization"] == {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}


def test_pixels_in_eight_bits_are_normalised(tmp_path):
    pixels = DRAW.randint(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    pairs = read_pairs(npz(tmp_path / "kip.npz", images=pixels, labels=LOGITS), **SAID, targets="labels")
    mean, std = STATISTICS["cifar10"]
    np.testing.assert_allclose(pairs.images, (pixels / 255 - mean) / std, atol=1e-5)


def test_what_is_not_said_is_asked_for_and_integers_need_no_kind(tmp_path):
    hard, soft = dc(tmp_path, [IMAGES, LABELS]), npz(tmp_path / "kip.npz", images=IMAGES.transpose(LAST), labels=LOGITS)
    asked = r"give --set_normalization \(mnist, .*\) and --set_views \(none or mosaic\) and --set_zca \(none, or an .npz"
    with pytest.raises(InputError, match=asked) as caught:
        read_pairs(hard, num_classes=3)
    assert "set_targets" not in str(caught.value)
    with pytest.raises(InputError, match=r"give --set_targets \(labels or logits\)$"):
        read_pairs(soft, **SAID)
    with pytest.raises(InputError, match="does not say how many classes there are; give num_classes"):
        read_pairs(hard, **SAID)
    with pytest.raises(InputError, match=r"--set_targets is 'logits', the labels of .* are integers"):
        read_pairs(hard, **SAID, targets="logits", num_classes=3)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"normalization": "cifar"}, "--set_normalization is 'cifar', expected mnist, .*did you mean 'cifar10'"),
        ({"normalization": ".5,.5/.2"}, "as many means as stds"),
        ({"normalization": ".5/0"}, "the stds positive"),
        ({"normalization": {"mean": [0.5]}}, "--set_normalization is "),
        ({"targets": "label"}, "--set_targets is 'label', expected labels or logits; did you mean 'labels'"),
        ({"views": "mosaics"}, "--set_views is 'mosaics', expected none or mosaic; did you mean 'mosaic'"),
        ({"zca": ""}, "--set_zca is '', expected none, or an .npz file"),
    ],
)
def test_what_is_said_wrongly_is_refused(facts, message):
    with pytest.raises(InputError, match=message):
        SetFacts(**facts)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    images = IMAGES.transpose(LAST)
    kip = npz(tmp_path / "kip.npz", images=images, labels=LOGITS)
    small, swapped = npz(tmp_path / "small.npz", mean=np.zeros(3), inverse=np.eye(3)), npz(tmp_path / "swapped.npz", mu=np.zeros(192))
    cases = [
        (dc(tmp_path, [IMAGES, LABELS + 8]), {}, "has labels from 8 to 10, expected 0 to 2; evaluate it on its own dataset"),
        (kip, {"num_classes": 10}, "has labels of 3 numbers, expected 10, one per class"),
        (kip, {"normalization": "mnist"}, "--set_normalization has 1 channels, .* has images of 3"),
        (kip, {"zca": "nowhere.npz"}, "--set_zca: no file nowhere.npz"),
        (kip, {"zca": small}, r"has a mean of 3 numbers and an inverse of shape \(3, 3\), .* has images of 192"),
        (kip, {"zca": swapped}, "has mu, expected mean and inverse or zca_mean and rev_whitening_transform"),
        (npz(tmp_path / "a.npz", x=images), {}, "has x, expected images and labels or image and label"),
        (npz(tmp_path / "b.npz", images=images[0], labels=LOGITS), {}, r"images of shape \(8, 8, 3\) and float32 labels \(6, 3\)"),
        (npz(tmp_path / "c.npz", images=images, labels=LABELS / 2), {}, r"float64 labels \(6,\), expected four axes, and one integer"),
        (npz(tmp_path / "d.npz", images=images, labels=np.full((6, 3), np.nan)), {}, "targets in .* expected finite"),
        (npz(tmp_path / "e.npz", images=np.array([[None]]), labels=LOGITS), {}, r"cannot read .*e.npz .ValueError."),
        (save_torch(tmp_path / "f.pt", IMAGES), {}, r"holds a tensor of shape \(6, 3, 8, 8\), expected 'data'"),
        (save_torch(tmp_path / "g.pt", {"weight": IMAGES}), {}, r"holds a dict of \['weight'\], expected 'data'"),
        (save_torch(tmp_path / "h.pt", {"data": []}), {}, "holds no experiments, expected 'data'"),
        (save_torch(tmp_path / "i.pt", {"data": [[IMAGES]]}), {}, "holds a ndarray, expected 'data'"),
    ]
    for file, changed, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            read_pairs(file, **SAID | {"targets": "labels", "num_classes": 3} | changed)
        assert str(caught.value).isprintable()
    (tmp_path / "j.npz").write_bytes(kip.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cannot read .*j.npz"):
        read_pairs(tmp_path / "j.npz", **SAID)
    # As IDM keeps its best set so far.
    (tmp_path / "acc_0.5.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match=r"is a plain pickle, .*save it with torch.save"):
        read_pairs(tmp_path / "acc_0.5.pkl", **SAID)


def test_a_hostile_file_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    command = f"cposix\nsystem\n(U{chr(len(f'touch {marker}'))}touch {marker}tR".encode("latin1")
    for content in (command, {"data": [command]}, {"data": [[IMAGES, command]]}, {"data": [[command, LABELS]]}):
        with pytest.raises(DataError, match=r"an object of posix.system"):
            read_pairs(save_torch(tmp_path / "res.pt", content), **SAID, num_classes=3)
    # Next to a set it is not looked at.
    file = save_torch(tmp_path / "res.pt", {"data": [[IMAGES, LABELS]], "accs_all_exps": command})
    assert len(read_pairs(file, **SAID, num_classes=3).images) == 6
    assert not marker.exists()
    assert os.path.exists(file)


def test_what_the_set_depends_on_is_in_its_manifest(tmp_path):
    mean, _, inverse = whitening(192)
    zca = npz(tmp_path / "zca", mean=mean, inverse=inverse)
    (tmp_path / "zca.npz").rename(zca)
    said = SAID | {"targets": "labels", "zca": str(zca)}
    images, labels = IMAGES.transpose(LAST), LOGITS
    file = npz(tmp_path / "kip.npz", images=images, labels=labels)

    def identity(**changed):
        manifest = read_published(file, SetFacts(**said | changed))[0].manifest
        return repr([manifest[key] for key in ("files", "normalization", "layout", "target_kind")])

    first = identity()
    assert first == identity()
    others = [identity(normalization="pixels"), identity(targets="logits"), identity(views="mosaic"), identity(zca="none")]
    npz(file, images=images + 1, labels=labels)
    others.append(identity())
    npz(file, images=images, labels=labels)
    assert identity() == first
    with zca.open("wb") as stream:
        np.savez(stream, mean=mean + 1, inverse=inverse)
    others.append(identity())
    assert len({first, *others}) == 7
    file = dc(tmp_path, [IMAGES, LABELS], [IMAGES, LABELS])
    one, two = read_published(file, SetFacts(**SAID))
    assert one.manifest["files"] != two.manifest["files"]


def test_published_sets_are_told_from_folders_with_a_manifest(tmp_path):
    assert not is_published(tmp_path)
    assert not is_published(tmp_path / "nowhere.pt")
    save_torch(tmp_path / "x_syn.pt", IMAGES)
    save_torch(tmp_path / "y_syn.pt", LOGITS)
    # Representations, of which no file says whose they are: these need a manifest.
    assert not is_published(tmp_path)
    file = mtt(tmp_path)
    assert is_published(tmp_path)
    for task in ("verify", "export"):
        with pytest.raises(InputError, match=f"images_best.pt is a published set, expected one with .* for --task={task}"):
            refuse_published([tmp_path / "nowhere", file], task)
    (tmp_path / "manifest.json").write_text('{"kind": "pairs"}')
    assert not is_published(tmp_path)
    with pytest.raises(InputError, match=r"manifest.json says how to read the set there; give its folder alone, without normalization"):
        read_pairs(tmp_path, normalization="cifar10")
