import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from ssdd_jax.errors import InputError
from ssdd_jax.io.stand_in import StandIn
from ssdd_jax.io.torch_files import read_state_dict, read_torch

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"
ARRAYS = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in ("float32", "float64", "float16", "int64", "int8", "uint16", "bool")}
ARRAYS |= {"empty": np.empty((0, 3), np.float32), "zero_dim": np.array(2.5, np.float32)}


def write(path, header, data=b""):
    """Write a file with any header, given as JSON or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


def refused(path, read=read_state_dict):
    """Return the error's text, which is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(str(path))
    return text


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_what_the_library_wrote_is_read_bit_for_bit_whatever_its_name(tmp_path, name):
    safetensors.numpy.save_file(ARRAYS, tmp_path / name, metadata={"format": "pt"})
    found = read_state_dict(tmp_path / name)
    assert list(found) == sorted(ARRAYS)
    for key, array in ARRAYS.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].flags.writeable
        assert found[key].tobytes() == array.tobytes()


def test_bfloat16_that_pytorch_wrote_is_float32():
    found, expected = read_state_dict(GOLDEN / "bfloat16.safetensors"), dict(np.load(GOLDEN / "bfloat16.npz"))
    assert {name: array.tobytes() for name, array in found.items()} == {name: array.tobytes() for name, array in expected.items()}
    assert {str(array.dtype) for array in found.values()} == {"float32", "int64"}


def test_bfloat16_is_float32_and_an_8_bit_float_a_stand_in(tmp_path):
    exact = np.float32([0.0, -0.0, np.inf, 1.5, -(2.0**127), 2.0**-130])
    raw = exact.view("<u2")[1::2]
    header = {
        "half": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "tiny": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [12, 16]},
    }
    found = read_state_dict(write(tmp_path / "x.safetensors", header, raw.tobytes() + bytes(4)))
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["half"], exact.reshape(2, 3))
    assert isinstance(found["tiny"], StandIn)
    assert str(found["tiny"]) == "an object of dtype F8_E4M3"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b'{"w": {"dtype": "F3', b""),
        (b"{\xff}", b""),
        (b"{}}", b""),
        (b"{\n\x1b[2J", b""),
        ({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        (entry("F99"), bytes(8)),
        (entry("\x1b[2J" * 200), bytes(8)),
        (entry(shape=(3,)), bytes(8)),
        (entry(shape=(-2,)), bytes(8)),
        (entry(shape=(2**62, 2**62)), bytes(8)),
        (entry(offsets=(0, 9)), bytes(8)),
        (entry(offsets=(4, 12)), bytes(12)),
        (entry(offsets=(8, 0)), bytes(8)),
        (entry(offsets=(-8, 0)), bytes(8)),
        (entry(), bytes(7)),
        (entry(), bytes(9)),
    ],
    ids=str,
)
def test_a_damaged_header_and_offsets_that_do_not_fit_are_refused(tmp_path, header, data):
    assert " is a damaged safetensors file (" in refused(write(tmp_path / "x.safetensors", header, data))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    for length in (9, 2**31, 2**32 - 1):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        assert " is a damaged safetensors file (" in refused(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    assert " is truncated or not a PyTorch or safetensors file" in refused(tmp_path / "x.safetensors")


def test_a_file_without_tensors_says_so_and_read_torch_says_what_reads_it(tmp_path):
    assert "holds a dict of [], expected named tensors" in refused(write(tmp_path / "x.safetensors", {"__metadata__": {"format": "pt"}}))
    safetensors.numpy.save_file(ARRAYS, tmp_path / "x.safetensors")
    assert "is a safetensors file, expected what torch.save writes; read it with read_state_dict" in refused(
        tmp_path / "x.safetensors", read_torch
    )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "x.safetensors"


@settings(max_examples=100)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(scratch, cut):
    content = safetensors.numpy.save(ARRAYS)
    scratch.write_bytes(content[: int(cut * len(content))])
    refused(scratch)


@settings(max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_raises_nothing_else(scratch, place, flip):
    changed = bytearray(safetensors.numpy.save(ARRAYS))
    changed[int(place * len(changed))] ^= flip
    scratch.write_bytes(changed)
    try:
        read_state_dict(scratch)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017
