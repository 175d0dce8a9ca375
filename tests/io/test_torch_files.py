import argparse
import copyreg
import datetime
import enum
import functools
import gc
import gzip
import io
import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import weakref
import zipfile
from collections import Counter, defaultdict, deque
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_pickles import named, plain, tensor, write

from ssdd_jax.errors import InputError
from ssdd_jax.io.stand_in import StandIn
from ssdd_jax.io.torch_files import read_state_dict, read_torch

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"
NAMES = [("plain.pt", "plain.npz"), ("solo.ckpt", "solo.npz"), ("lightning.ckpt", "lightning.npz")]


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        new = found[name]
        assert (new.dtype, new.shape) == (array.dtype, array.shape), name
        assert new.flags.c_contiguous
        assert new.flags.writeable
        assert new.tobytes() == array.tobytes(), name


def refused(path, read=read_torch):
    """Return the error's text, which is one line that names the file."""
    with pytest.raises(InputError) as caught:
        read(path)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(str(path))
    return text


STORAGE = {"data/0": np.arange(6, dtype="<f4").tobytes()}


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_what_pytorch_wrote_is_read_bit_for_bit(name, expected):
    assert_same(read_state_dict(GOLDEN / name), dict(np.load(GOLDEN / expected)))


def test_every_dtype_is_its_own_and_bfloat16_is_float32():
    found = read_state_dict(str(GOLDEN / "plain.pt"))
    kinds = ["float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    assert [str(found[kind].dtype) for kind in kinds] == kinds
    assert found["bfloat16"].dtype == np.float32
    np.testing.assert_array_equal(found["bfloat16_special"][:4], [0, -0.0, np.inf, -np.inf])
    assert found["net.1.num_batches_tracked"].shape == ()


def test_a_nested_checkpoint_keeps_its_plain_values():
    found = read_torch(GOLDEN / "solo.ckpt")
    assert found["epoch"] == 3
    assert found["loops"] == {"done": True, "best": None, "lr": [0.1, 0.01]}
    momentum = found["optimizer_states"][0]["state"][0]["momentum_buffer"]
    assert momentum.shape == (4, 3, 3, 3)


def test_the_hyper_parameters_of_a_lightning_checkpoint_are_stand_ins():
    found = read_torch(GOLDEN / "lightning.ckpt")
    assert found["epoch"] == 3
    parameters = found["hyper_parameters"]
    assert [parameters[key].name for key in ("args", "head")] == ["argparse.Namespace", "torch.nn.modules.linear.Linear"]
    assert parameters["schedule"].name == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert all(isinstance(value, StandIn) for value in parameters["numpy"])


def test_a_bare_tensor_a_size_and_another_pickle_protocol():
    images = np.load(GOLDEN / "bare.npz")["images"]
    np.testing.assert_array_equal(read_torch(GOLDEN / "bare.pt"), images)
    found = read_torch(GOLDEN / "protocol4.pt")
    np.testing.assert_array_equal(found["images"], images)
    assert found["size"] == images.shape
    assert type(found["size"]) is tuple


def test_a_state_dict_under_model(tmp_path):
    content = b"\x80\x02}(" + plain("model") + b"}" + plain("w") + tensor((2, 3), (3, 1)) + b"s" + plain("epoch") + b"K\x01u."
    found = read_state_dict(write(tmp_path / "x.pth", content, STORAGE))
    assert_same(found, {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ({"epoch": 3, "lr": 0.1}, r"a dict of ['epoch', 'lr']"),
        ([1, 2], "a list"),
        (None, "a NoneType"),
        ({"state_dict": {}}, "a dict of []"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(tmp_path, value, holds):
    text = refused(write(tmp_path / "x.pt", pickle.dumps(value, 2)), read_state_dict)
    assert holds in text
    assert "expected named tensors" in text


def test_a_bare_tensor_is_no_state_dict():
    assert "holds an array of shape (2, 3, 2, 2), expected named tensors" in refused(GOLDEN / "bare.pt", read_state_dict)


OTHERS = {
    "compressed with gzip": gzip.compress(b"x" * 100),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a web page": b"\n<!DOCTYPE html><html>Sign in</html>",
    "a JSON file": b'{"metadata": {}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}',
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a NumPy array": b"\x93NUMPY\x01\x00" + bytes(100),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_often_given_instead_is_named(tmp_path, what):
    (tmp_path / "x.pth.tar").write_bytes(OTHERS[what])
    for read in (read_torch, read_state_dict):
        assert f" is {what}, expected a PyTorch or safetensors file; " in refused(tmp_path / "x.pth.tar", read)


def test_the_suffix_does_not_matter(tmp_path):
    for suffix in (".pth.tar", ".bin", ".safetensors"):
        shutil.copy(GOLDEN / "plain.pt", tmp_path / f"x{suffix}")
        assert_same(read_state_dict(tmp_path / f"x{suffix}"), dict(np.load(GOLDEN / "plain.npz")))


def test_other_formats_are_named(tmp_path):
    assert "legacy format" in refused(GOLDEN / "legacy.pt")
    assert "PyTorch 1.6 or newer" in refused(GOLDEN / "legacy.pt")
    assert "TorchScript" in refused(GOLDEN / "script.pt")
    assert "without data.pkl" in refused(GOLDEN / "plain.npz")
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "none.pt")
    assert "cannot be read (Is a directory)" in refused(tmp_path)
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        archive.add(GOLDEN / "bare.pt", "storages")
    assert "is a tar archive; unpack it and give the file inside, or, if it is in PyTorch's legacy format" in refused(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "folder.pth.tar", "w") as archive:
        archive.write(GOLDEN / "bare.pt", "weights/bare.pt")
    assert "without data.pkl, expected what torch.save writes; give the .pt" in refused(tmp_path / "folder.pth.tar")
    for content in (b"", b"PK", b"PK\x03\x04", b"hello", bytes(1000)):
        (tmp_path / "x.pt").write_bytes(content)
        assert "truncated or not a PyTorch or safetensors file" in refused(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"\x80\x02}q\x00.")
    assert "is a plain pickle, expected a PyTorch or safetensors file; load it where it was made" in refused(tmp_path / "x.pt")


HOSTILE = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("subprocess", "Popen"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("torch", "device"),
    ("torch.storage", "UntypedStorage"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.__init__.__globals__"),
    ("collections", "OrderedDict.__reduce__"),
    ("collections.OrderedDict", ""),
    ("copyreg", "_extension_registry"),
    ("functools", "partial"),
    ("os", "x" * 150),
    ("os", "system\nPOSIX\x1b[2J"),
]


def hostile_pickles(module, name, marker):
    """Call module.name(command) in every way that a pickle has."""
    command = plain(f"touch {marker}")
    asked = named(module, name)
    yield "REDUCE", b"\x80\x04" + asked + command + b"\x85R."
    yield "OBJ", b"\x80\x04(" + asked + command + b"o."
    yield "NEWOBJ", b"\x80\x04" + asked + command + b"\x85\x81."
    yield "NEWOBJ_EX", b"\x80\x04" + asked + command + b"\x85}\x92."
    yield "BUILD", b"\x80\x04" + named("collections", "OrderedDict") + b")R}" + plain("__setstate__") + asked + b"sb" + command + b"b."
    yield "persistent id", b"\x80\x04" + asked + b"Q."
    if asked.startswith(b"c"):
        yield "INST", b"\x80\x04(" + command + b"i" + asked[1:] + b"."


@pytest.mark.parametrize(("module", "name"), HOSTILE)
def test_nothing_but_tensors_and_containers_is_made(tmp_path, module, name):
    marker = tmp_path / "marker"
    for how, content in hostile_pickles(module, name, marker):
        path = write(tmp_path / f"{how}.pt", content)
        if how == "persistent id":
            assert "is damaged" in refused(path)
        elif how == "BUILD":
            assert read_torch(path) == {}
        else:
            found = read_torch(path)
            assert isinstance(found, StandIn), how
            assert found.name == f"{module}.{name}"
            asked = "".join(c if c.isprintable() else "?" for c in found.name)
            assert f" holds an object of {asked}, expected named tensors" in refused(path, read_state_dict)
    assert not marker.exists()


class Touch:
    def __init__(self, call, *arguments):
        self.call = call, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_a_command_runs_nothing(tmp_path, protocol):
    for number, make in enumerate(
        [
            lambda marker: Touch(os.system, f"touch {marker}"),
            lambda marker: Touch(eval, f"__import__('os').mkdir({str(marker)!r})"),
            lambda marker: Touch(subprocess.check_call, ["touch", str(marker)]),
            lambda marker: Touch(Path.touch, marker),
        ]
    ):
        marker = tmp_path / f"marker{number}"
        content = pickle.dumps({"state_dict": {"w": 1}, "hyper_parameters": make(marker)}, protocol)
        # That the pickle is armed: plain pickle does run it.
        pickle.loads(content)
        assert marker.exists()
        marker.rename(tmp_path / f"gone{number}")
        found = read_torch(write(tmp_path / "x.pt", content))
        assert found["state_dict"] == {"w": 1}
        assert isinstance(found["hyper_parameters"], StandIn)
        assert not marker.exists()


class Colour(enum.Enum):
    RED = 1


def made_on_the_fly():
    """Return objects of a module that is gone when they are read: with state, slots, items, elements and arguments."""
    module = types.ModuleType("of_another_project")
    code = """
import collections
class Config(dict): pass
class Tags(list): pass
class Names(set): pass
class Slots:
    __slots__ = ("a",)
class WithState:
    def __getstate__(self): return ("any", {"state": 1})
    def __setstate__(self, state): raise RuntimeError
Point = collections.namedtuple("Point", "x y", module=__name__)
"""
    exec(code, module.__dict__)
    slots = module.Slots()
    slots.a = slots
    config = module.Config(a=1)
    config["self"] = config.itself = config
    return module, [config, module.Tags([1, [2]]), module.Names({3}), slots, module.WithState(), module.Point(1, 2), module.Config]


def hyper_parameters():
    """Return objects as Lightning saves them."""
    random = np.random.RandomState(0)
    return {
        "namespace": argparse.Namespace(lr=0.1, out=Path("/x"), net=argparse.Namespace(widths=[1, 2])),
        "scalars": [np.float64(3), np.int32(1), np.bool_(True), np.dtype("f4")],
        "arrays": np.arange(3),
        "random": [random, random.get_state()],
        "enum": {Colour.RED: Colour.RED},
        "others": [{1, 2}, frozenset([3]), 1 + 2j, slice(1), range(3), bytearray(b"x"), b"y", datetime.datetime.now(), Decimal(1)],
        "functions": [functools.partial(math.copysign, 1), os.path.join, Path.exists, dict.fromkeys],
        "containers": [defaultdict(list, {"a": [1]}), deque([1]), Counter("aab"), types.SimpleNamespace(a=1)],
    }


# Where a pickle's opcodes begin: after the protocol's number and, from 4 on, the length of its frame.
@pytest.mark.parametrize(("protocol", "start"), [(0, 0), (1, 0), (2, 2), (3, 2), (4, 11), (5, 11)])
def test_hyper_parameters_of_any_class_are_passed_over(tmp_path, protocol, start):
    module, objects = made_on_the_fly()
    sys.modules[module.__name__] = module
    try:
        # Before protocol 2 there are neither slots nor a dict that holds itself.
        values = hyper_parameters() | {"foreign": objects if protocol > 1 else objects[1:3]}
        parameters = pickle.dumps(values, protocol)[start:-1]
    finally:
        del sys.modules[module.__name__]
    # First the parameters, whose memo must begin at 0, so their own name is not memoized.
    content = b"\x80\x04}(X\x10\x00\x00\x00hyper_parameters" + parameters + plain("epoch") + b"K\x07"
    content += plain("state_dict") + b"}" + plain("w") + tensor((6,), (1,)) + b"su."
    path = write(tmp_path / "x.ckpt", content, STORAGE)
    found = read_torch(path)
    assert found["epoch"] == 7
    assert list(found["hyper_parameters"]) == list(values)
    assert found["hyper_parameters"]["namespace"].name == ("argparse.Namespace" if protocol > 1 else "copy_reg._reconstructor")
    assert module.__name__ not in sys.modules
    assert_same(read_state_dict(path), {"w": np.arange(6, dtype=np.float32)})


def test_a_stand_in_keeps_no_state_and_its_class_takes_none(tmp_path):
    state = b"}(" + plain("name") + plain("other") + plain("secret") + b"Nu"
    for made in (b"", b")R", b")\x81"):
        found = read_torch(write(tmp_path / "x.pt", b"\x80\x02" + named("argparse", "Namespace") + made + state + b"b."))
        assert found.name == "argparse.Namespace"
        assert not hasattr(found, "secret")
    assert StandIn.name == ""


def test_a_checkpoint_with_several_state_dicts_has_them_all(tmp_path):
    one = lambda name: plain(name) + b"}" + plain("w") + tensor((6,), (1,)) + b"s"
    content = b"\x80\x02}(" + plain("epoch") + b"K\x01" + one("student") + one("teacher") + b"u."
    found = read_state_dict(write(tmp_path / "x.pt", content, STORAGE))
    assert_same(found, {name: np.arange(6, dtype=np.float32) for name in ("student.w", "teacher.w")})


def test_tensors_of_other_kinds_are_stand_ins_named_after_them(tmp_path):
    parts = b"".join(plain(kind) + tensor((6,), (1,), kind=f"{kind}Storage") for kind in ("Float", "ComplexFloat", "QInt8"))
    v3 = plain("v3") + tensor((6,), (1,), kind="UntypedStorage").replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    held = plain("held") + named("torch._utils", "_rebuild_parameter") + b"(" + tensor((6,), (1,), kind="ComplexFloatStorage") + b"\x89NtR"
    found = read_state_dict(write(tmp_path / "x.pt", b"\x80\x02}(" + parts + v3 + held + b"u.", STORAGE))
    assert found.pop("Float").shape == (6,)
    kinds = {"ComplexFloat": "torch.ComplexFloatStorage", "QInt8": "torch.QInt8Storage", "v3": "torch._utils._rebuild_tensor_v3"}
    assert {name: value.name for name, value in found.items()} == kinds | {"held": "torch.ComplexFloatStorage"}
    text = refused(write(tmp_path / "x.pt", b"\x80\x02}" + v3 + b"s.", STORAGE), read_state_dict)
    assert "holds a dict of ['v3'], of which 'v3' is an object of torch._utils._rebuild_tensor_v3, expected named tensors" in text


def test_extension_codes_are_refused_even_when_they_are_cached(tmp_path):
    copyreg.add_extension("posix", "system", 0x77)
    marker = tmp_path / "marker"
    try:
        content = pickle.dumps(Touch(os.system, f"touch {marker}"), 2)
        pickle.loads(content)
        marker.unlink()
        assert "opcode EXT1 119" in refused(write(tmp_path / "x.pt", content))
    finally:
        copyreg.remove_extension("posix", "system", 0x77)
    assert not marker.exists()


@pytest.mark.parametrize(("content", "opcode"), [(b"Nr\xff\xff\xff\x7f.", "LONG_BINPUT 2147483647"), (b"Np99999999\n.", "PUT 99999999")])
def test_a_memo_far_larger_than_the_pickle_is_not_allocated(tmp_path, content, opcode):
    assert f"has the pickle opcode {opcode}, expected" in refused(write(tmp_path / "x.pt", content))


def test_what_may_be_named_cannot_be_changed(tmp_path):
    names = [("collections", "OrderedDict"), ("torch", "Size"), ("torch", "FloatStorage")]
    names += [("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")]
    key = plain("__defaults__")
    for module, name in names:
        for state in (b"}" + key + b"K\x01s", b"}}" + key + b"Ns\x86", b"N}" + key + b")s\x86"):
            path = write(tmp_path / "x.pt", b"\x80\x02" + named(module, name) + state + b"b0N.")
            assert read_or_refused(path, read_torch) is None
    assert not hasattr(type(read_torch(GOLDEN / "plain.pt")), "__defaults__")
    assert_same(read_state_dict(GOLDEN / "plain.pt"), dict(np.load(GOLDEN / "plain.npz")))


def test_attributes_of_a_state_dict_do_not_take_the_place_of_its_methods(tmp_path):
    attributes = b"}(" + plain("items") + named("torch", "Size") + plain("get") + named("torch", "Size") + b"u"
    content = b"\x80\x02" + named("collections", "OrderedDict") + b")R" + plain("w") + tensor((6,), (1,)) + b"s" + attributes + b"b."
    assert_same(read_state_dict(write(tmp_path / "x.pt", content, STORAGE)), {"w": np.arange(6, dtype=np.float32)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\xffN.",
        b"N0.",
        b"h\x05.",
        b"]]a]R.",
        b"X\xff\xff\xff\x7fabc.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"Px\n.",
        b"(X\x07\x00\x00\x00storageNNNK\x01tQ.",
        b"X\x05\x00\x00\x00stateQ.",
        b"\x97.",
        b"I" + b"9" * 5000 + b"\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.",
        b"ctorch._utils\n_rebuild_parameter\n)R.",
        b"ctorch\nSize\nK\x01\x85R.",
        b"ctorch\nFloatStorage\n)R.",
        b"ccollections\nOrderedDict\nK\x01\x85R.",
        b"}]Ns.",
    ],
)
def test_pickles_that_make_no_sense_are_refused(tmp_path, content):
    refused(write(tmp_path / "x.pt", content))


def test_views_are_read(tmp_path):
    data = np.arange(6, dtype="<f4")
    for size, stride, offset in [((6,), (1,), 0), ((3, 2), (1, 3), 0), ((2,), (3,), 2), ((), (), 5), ((0, 9), (9, 1), 6), ((1,), (99,), 5)]:
        found = read_torch(write(tmp_path / "x.pt", b"\x80\x02" + tensor(size, stride, offset) + b".", STORAGE))
        expected = np.lib.stride_tricks.as_strided(data[offset:], size, [4 * step for step in stride])
        np.testing.assert_array_equal(found, expected)
        assert found.shape == size


@pytest.mark.parametrize(
    "view",
    [
        dict(size=(7,), stride=(1,)),
        dict(size=(6,), stride=(1,), offset=1),
        dict(size=(2,), stride=(6,)),
        dict(size=(2,), stride=(2**62,)),
        dict(size=(2**62, 2), stride=(0, 1)),
        dict(size=(10**9,), stride=(0,)),
        dict(size=(10**9, 10**9, 10**9), stride=(0, 0, 0)),
        dict(size=(0, 10**30), stride=(1, 1)),
        dict(size=(1,), stride=(10**30,)),
        dict(size=(1,) * 100, stride=(1,) * 100),
        dict(size=(0,), stride=(1,), offset=7),
        dict(size=(6,), stride=(-1,), offset=5),
        dict(size=(-6,), stride=(1,)),
        dict(size=(2,), stride=(1,), offset=-1),
        dict(size=(), stride=(), offset=6),
        dict(size=(6,), stride=(1, 1)),
        dict(size=(6.0,), stride=(1,)),
        dict(size=(True,), stride=(1,)),
        dict(size=[6], stride=(1,)),
        dict(size=(6,), stride=None),
        dict(size=(6,), stride=(1,), offset=None),
        dict(size=(6,), stride=(1,), length=5),
        dict(size=(6,), stride=(1,), length=-1),
        dict(size=(6,), stride=(1,), length=6.0),
        dict(size=(3,), stride=(1,), length=3, kind="LongStorage"),
        dict(size=(6,), stride=(1,), kind="DoubleStorage"),
        dict(size=(6,), stride=(1,), key="1"),
        dict(size=(6,), stride=(1,), key="../byteorder"),
        dict(size=(6,), stride=(1,), key=0),
        dict(size=(6,), stride=(1,), rest=({"neg": True},)),
    ],
    ids=str,
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, view):
    if view.get("kind") == "LongStorage":
        assert read_torch(write(tmp_path / "x.pt", b"\x80\x02" + tensor(**view) + b".", STORAGE)).shape == (3,)
        view = view | {"length": 4}
    refused(write(tmp_path / "x.pt", b"\x80\x02" + tensor(**view) + b".", STORAGE))


def test_members_are_checked(tmp_path):
    good, path = b"\x80\x02" + tensor((6,), (1,)) + b".", tmp_path / "x.pt"
    assert read_torch(write(path, good, STORAGE)).shape == (6,)
    assert "compressed" in refused(write(path, good, STORAGE, zipfile.ZIP_DEFLATED))
    bomb = write(path, good, {"data/0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    assert "larger than the file" in refused(bomb)
    assert "byte order b'big'" in refused(write(path, good, STORAGE | {"byteorder": b"big"}))
    assert "TorchScript" in refused(write(path, good, STORAGE | {"constants.pkl": b""}))
    assert "is damaged" in refused(write(path, good))
    assert "has 5 elements in data/0, expected 6" in refused(write(path, good, {"data/0": bytes(20)}))
    assert "is damaged" in refused(write(path, good, {"data/0": bytes(23)}))
    assert "without data.pkl" in refused(write(path, good, STORAGE, root="a/b"))
    with zipfile.ZipFile(write(path, good, STORAGE), "a") as archive:
        archive.writestr("other/data.pkl", good)
    assert "without data.pkl" in refused(path)


def test_one_flipped_bit_in_the_data_is_damage(tmp_path):
    content = bytearray((GOLDEN / "bare.pt").read_bytes())
    content[content.index(np.load(GOLDEN / "bare.npz")["images"].tobytes()) + 7] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    assert "is damaged (BadZipFile); copy or download it again" in refused(tmp_path / "x.pt")


def read_or_refused(path, read=read_state_dict):
    try:
        return read(path)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017
        return None


@pytest.fixture(scope="module")
def goldens():
    return [((GOLDEN / name).read_bytes(), dict(np.load(GOLDEN / expected))) for name, expected in NAMES]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("torch") / "x.pt"


@settings(max_examples=150)
@given(which=st.integers(0, len(NAMES) - 1), cut=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(goldens, scratch, which, cut):
    content, _ = goldens[which]
    scratch.write_bytes(content[: int(cut * len(content))])
    assert "truncated or not a PyTorch or safetensors file" in refused(scratch)


@settings(max_examples=400)
@given(which=st.integers(0, len(NAMES) - 1), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_without_effect(goldens, scratch, which, place, flip):
    content, expected = goldens[which]
    changed = bytearray(content)
    changed[int(place * len(content))] ^= flip
    scratch.write_bytes(changed)
    found = read_or_refused(scratch)
    if found is not None:
        assert_same(found, expected)


@settings(max_examples=300)
@given(which=st.integers(0, len(NAMES) - 1), place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_pickle_with_a_changed_byte_and_a_valid_checksum_raises_nothing_else(goldens, scratch, which, place, value):
    with zipfile.ZipFile(io.BytesIO(goldens[which][0])) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    content = bytearray(members["data.pkl"])
    content[int(place * len(content))] = value
    read_or_refused(write(scratch, bytes(content), members | {"data.pkl": bytes(content)}))


def test_reading_leaves_no_arrays_behind(tmp_path):
    gc.disable()
    try:
        found = read_torch(GOLDEN / "bare.pt")
        gone = weakref.ref(found)
        del found
        assert gone() is None
    finally:
        gc.enable()


def test_pytorch_is_not_imported():
    code = "import sys, ssdd_jax.io.torch_files as t; t.read_state_dict(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(GOLDEN / "plain.pt")], check=True, cwd=GOLDEN.parents[2])


def test_a_new_network_saved_by_pytorch_is_read_bit_for_bit(tmp_path):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.LSTM(4, 5), torch.nn.Linear(5, 2).bfloat16())
    expected = {name: (w.float() if w.dtype == torch.bfloat16 else w).numpy() for name, w in net.state_dict().items()}
    path = tmp_path / "x.pt"
    torch.save(net.state_dict(), path)
    assert_same(read_state_dict(path), expected)
    torch.save({"state_dict": dict(net.named_parameters()), "epoch": 1}, path)
    assert_same(read_state_dict(path), {name: expected[name] for name, _ in net.named_parameters()})
    torch.save(net, path)
    assert "holds an object of torch.nn.modules.container.Sequential" in refused(path, read_state_dict)
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.tag = "kept with the parameter"
    torch.save({"state_dict": {"w": parameter}, "hyper_parameters": {"net": net, "device": torch.device("cpu"), "dtype": torch.half}}, path)
    assert_same(read_state_dict(path), {"w": np.ones(3, np.float32)})
