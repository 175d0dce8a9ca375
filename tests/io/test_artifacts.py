import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssdd_jax import DistilledSet, Factors, Layout, Networks, Plain, expand, load_distilled, num_stored_scalars, save_distilled
from ssdd_jax.core.quantise import quantise, stored_numbers
from ssdd_jax.errors import DataError, InputError
from ssdd_jax.io.artifacts import TENSORS
from ssdd_jax.io.manifest import MANIFEST, SUMS, read_manifest


def compact_set(key):
    draw = iter(jax.random.split(key, 20))
    normal = lambda *shape: jax.random.normal(next(draw), shape)
    layout = Layout((8, 8, 1), (4, 4, 1), ("identity", "rot90", "hflip"), ("stored", "network", "shared"))
    networks = Networks(w1=normal(1, 3, 2), b1=normal(1, 2), w2=normal(1, 2, 3), b2=normal(1, 3))
    return DistilledSet(
        Factors(normal(16), normal(5, 16), normal(7, 5)), Factors(normal(6), normal(3, 6), normal(1, 7, 3)), networks, layout
    )


def plain_set(key):
    images, reprs = Plain(jax.random.normal(key, (4, 8, 8, 3))), Plain(jax.random.normal(key, (1, 4, 6)))
    return DistilledSet(images, reprs, None, Layout((8, 8, 3), (8, 8, 3)))


@pytest.mark.parametrize("make", [compact_set, plain_set])
def test_a_set_comes_back_bit_for_bit(tmp_path, key, make):
    distilled = make(key)
    save_distilled(tmp_path / "set", distilled, method="ours", seed=3)
    loaded = load_distilled(tmp_path / "set")
    assert jax.tree.structure(loaded) == jax.tree.structure(distilled)
    for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(distilled), strict=True):
        np.testing.assert_array_equal(new, old)
    for new, old in zip(expand(loaded), expand(distilled), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("make", [compact_set, plain_set])
def test_fewer_bits_come_back_as_they_were_rounded_and_take_as_many_bytes(tmp_path, key, make, bits):
    distilled = make(key)
    manifest = read_manifest(save_distilled(tmp_path / "set", distilled, bits=bits))
    loaded = load_distilled(tmp_path / "set")
    assert jax.tree.structure(loaded) == jax.tree.structure(distilled)
    for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(quantise(distilled, bits)), strict=True):
        np.testing.assert_array_equal(new, old)
    arrays = safetensors.numpy.load_file(tmp_path / "set" / TENSORS)
    stored = sum(array.nbytes for array in arrays.values())
    # An odd number of 4 bits leaves half a byte, in each of the arrays.
    assert 0 <= stored - 4 * manifest["stored_scalars"] + 4 < 4 + len(arrays)
    assert manifest["stored_scalars"] == stored_numbers(distilled, bits) < num_stored_scalars(distilled)


def test_the_manifest_counts_what_the_file_stores(tmp_path, key):
    distilled = compact_set(key)
    manifest = read_manifest(save_distilled(tmp_path, distilled, normalization={"mean": [0.5], "std": [0.2]}))
    stored = sum(int(np.prod(entry["shape"])) for entry in manifest["arrays"].values())
    assert manifest["stored_scalars"] == stored == num_stored_scalars(distilled)
    assert (tmp_path / TENSORS).stat().st_size >= 4 * stored
    assert manifest["layout"]["views"] == ["identity", "rot90", "hflip"]
    assert manifest["normalization"] == {"mean": [0.5], "std": [0.2]}


def test_any_flipped_byte_is_noticed(tmp_path, key):
    save_distilled(tmp_path, plain_set(key))
    file = tmp_path / TENSORS
    content = bytearray(file.read_bytes())
    for position in np.linspace(0, len(content) - 1, 25).astype(int):
        content[position] ^= 1
        file.write_bytes(content)
        with pytest.raises(InputError, match="is damaged: its sha256 is not the manifest's"):
            load_distilled(tmp_path)
        content[position] ^= 1
    file.write_bytes(content)
    load_distilled(tmp_path)


def test_arrays_without_a_store_are_refused_with_what_to_do(tmp_path, key):
    distilled = plain_set(key)
    with pytest.raises(ValueError, match=r"images is a ArrayImpl, expected a store such as Plain\(images\)"):
        save_distilled(tmp_path / "set", DistilledSet(distilled.images.rows, distilled.reprs, None, distilled.layout))
    assert not (tmp_path / "set").exists()


def test_nan_is_never_written(tmp_path, key):
    distilled = plain_set(key)
    bad = DistilledSet(Plain(distilled.images.rows.at[0, 0, 0, 0].set(jnp.nan)), distilled.reprs, None, distilled.layout)
    with pytest.raises(ValueError, match="images holds NaN or infinity, nothing was written"):
        save_distilled(tmp_path / "set", bad)
    assert not (tmp_path / "set").exists()


def test_a_failed_save_leaves_no_manifest_that_vouches_for_other_arrays(tmp_path, key, monkeypatch):
    save_distilled(tmp_path, plain_set(key))

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssdd_jax.io.manifest.write_bytes", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_distilled(tmp_path, plain_set(jax.random.fold_in(key, 1)))
    assert read_manifest(tmp_path) is None


def test_errors_say_where_a_set_is_and_what_is_missing(tmp_path, key):
    with pytest.raises(InputError, match=r"no distilled set at .*expected manifest\.json"):
        load_distilled(tmp_path)
    save_distilled(tmp_path / "ours" / "seed_0", plain_set(key))
    with pytest.raises(InputError, match=r"did you mean .*ours/seed_0\?"):
        load_distilled(tmp_path)
    (tmp_path / "ours" / "seed_0" / TENSORS).unlink()
    with pytest.raises(InputError, match="is missing although"):
        load_distilled(tmp_path / "ours" / "seed_0")
    manifest = tmp_path / "ours" / "seed_0" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with pytest.raises(DataError, match=r"manifest\.json is damaged: its sha256 is not that in SHA256SUMS"):
        load_distilled(tmp_path / "ours" / "seed_0")
    (tmp_path / "ours" / "seed_0" / SUMS).unlink()
    with pytest.raises(InputError, match="format 99, expected 1"):
        load_distilled(tmp_path / "ours" / "seed_0")
