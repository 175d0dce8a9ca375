"""PyTorch checkpoints, read without PyTorch and without running anything that they contain.

A .pt file is a zip of one pickle and the raw bytes of every storage. A pickle can call whatever it names, so here nothing that it names is
looked up: tensors and containers, listed below, are made by our own functions, and an inert `StandIn` takes the place of everything else,
such as a checkpoint's hyper-parameters. A hostile file can still waste time or memory, but it cannot run code.
"""

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssdd_jax.errors import DataError, printable
from ssdd_jax.io.safetensors_files import is_safetensors, parse_safetensors, widen_bfloat16
from ssdd_jax.io.stand_in import StandIn, stand_in

_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_CONVERT = "load it and save it again with PyTorch 1.6 or newer: torch.save(torch.load(FILE), NEW)"
# What is given instead of weights: the first bytes, what such a file is, what to do.
_OTHERS = (
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gzip -d"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file that it stands for with git lfs pull"),
    (b"{", "a JSON file", "give the file of weights that it describes"),
    (b"<", "a web page", "download the file that it links to"),
    (b"\x89HDF", "an HDF5 file", "give the file of PyTorch's weights"),
    (b"\x93NUMPY", "a NumPy array", "give the file of PyTorch's weights"),
    (b"\x80", "a plain pickle", "load it where it was made and save it with torch.save"),
)
# Errors that zipfile, pickle and NumPy raise on bytes that were not meant for them.
_DAMAGE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _OrderedDict(OrderedDict):
    """A state dict. Its attributes (`_metadata`) are dropped: one named `items` would take the method's place."""

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(room: list[int], storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray | StandIn:
    """Copy a view of a storage, as `torch._utils._rebuild_tensor_v2` would make it; `room[0]` bytes may still be copied."""
    if isinstance(storage, StandIn):
        return storage
    if len(rest) > 2 and rest[2]:
        raise DataError("holds a conjugate or negated view, expected plain tensors; save its .resolve_conj().resolve_neg()")
    if not isinstance(storage, np.ndarray) or type(size) is not tuple or type(stride) is not tuple:
        raise TypeError
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise DataError(f"has a tensor of offset, size, stride {numbers}, expected non-negative integers; it is damaged, copy it again")
    empty = 0 in size
    end = offset if empty else offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if end > len(storage):
        raise DataError(f"has a tensor that ends at element {end} of a storage of {len(storage)}; it is damaged, copy it again")
    itemsize = storage.itemsize
    # Strides of 0 and storages that many tensors share make a small file large.
    room[0] -= math.prod(size) * itemsize
    if room[0] < 0:
        raise DataError("has tensors far larger than the file; save a .clone() of every expanded tensor")
    if empty:
        return np.empty(size, storage.dtype)
    view = np.ndarray(size, storage.dtype, storage, offset * itemsize, tuple(step * itemsize for step in stride))
    return view.copy(order="C")


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, members: "_Members"):
        super().__init__(io.BytesIO(content))
        self.members = members
        self.storages: dict[tuple[str, str], np.ndarray] = {}
        room = [8 * members.size + 2**26]
        # A pickle can set attributes of what it names, so functions are made anew for every file. They must not refer to the
        # unpickler, whose memo refers to them: the cycle would keep every array until the next garbage collection.
        self.allowed = {
            ("collections", "OrderedDict"): _OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(room, *args),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            **{("torch", kind): kind for kind in _DTYPES},
        }

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        self.allowed[module, name] = stand_in(f"{module}.{name}")
        return self.allowed[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray | StandIn:
        tag, kind, key, _, length = pid
        if isinstance(kind, type) and issubclass(kind, StandIn):
            # A storage of complex, quantised or untyped numbers.
            return kind()
        if tag != "storage" or type(kind) is not str or type(key) is not str:
            raise TypeError
        if (key, kind) not in self.storages:
            storage = np.frombuffer(self.members.read(f"data/{key}"), _DTYPES[kind])
            self.storages[key, kind] = widen_bfloat16(storage) if kind == "BFloat16Storage" else storage
        storage = self.storages[key, kind]
        if type(length) is not int or length != len(storage):
            raise DataError(f"has {len(storage)} elements in data/{key}, expected {length}; it is damaged, copy it again")
        return storage


class _Members:
    """The members of the zip file, without the folder that they all lie in."""

    def __init__(self, file: BinaryIO):
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(512)
        if _LEGACY_MAGIC in head[:32]:
            raise DataError(f"is in PyTorch's legacy format, expected the zip format; {_CONVERT}")
        if head[257:262] == b"ustar":
            raise DataError(f"is a tar archive; unpack it and give the file inside, or, if it is in PyTorch's legacy format, {_CONVERT}")
        if is_safetensors(head):
            raise DataError("is a safetensors file, expected what torch.save writes; read it with read_state_dict")
        for start, what, remedy in _OTHERS:
            if head.lstrip().startswith(start):
                raise DataError(f"is {what}, expected a PyTorch or safetensors file; {remedy}")
        try:
            self.archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise DataError(
                "is truncated or not a PyTorch or safetensors file, expected what torch.save writes; copy or download it again"
            ) from error
        infos = self.archive.infolist()
        roots = [info.filename.removesuffix("data.pkl") for info in infos if info.filename.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise DataError("is a zip file without data.pkl, expected what torch.save writes; give the .pt, .pth or .ckpt file")
        self.root = roots[0]
        if f"{self.root}constants.pkl" in self.archive.namelist():
            raise DataError("is a TorchScript program, expected tensors; save torch.jit.load(FILE).state_dict() with torch.save")
        # Some members lie about their size, or share their bytes.
        if sum(info.file_size for info in infos) > self.size:
            raise DataError("is damaged: its members are larger than the file; copy or download it again")
        if f"{self.root}byteorder" in self.archive.namelist() and (order := self.read("byteorder")) != b"little":
            raise DataError(f"has byte order {order[:20]!r}, expected b'little'; save it again on a little-endian machine")

    def read(self, name: str) -> bytes:
        """Return the content of a member, its checksum checked."""
        info = self.archive.getinfo(f"{self.root}{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"has {name} compressed, expected it stored uncompressed; save it again with torch.save")
        return self.archive.read(info)


def _load(file: BinaryIO) -> Any:
    members = _Members(file)
    content = members.read("data.pkl")
    for op, argument, _ in pickletools.genops(content):
        # Extension codes can bypass find_class, and a high memo index allocates that many entries.
        if op.name.startswith("EXT") or (op.name.endswith("PUT") and (argument or 0) > len(content)):
            asked = f"{op.name} {argument}"[:40]
            raise DataError(f"has the pickle opcode {asked}, expected what torch.save writes; nothing was run; do not trust this file")
    return _Unpickler(content, members).load()


def _load_weights(file: BinaryIO) -> Any:
    """Load a file of either format: which one, its first bytes say."""
    if is_safetensors(file.read(9)):
        file.seek(0)
        return parse_safetensors(file.read())
    return _load(file)


def _error(path: str | Path, problem: str) -> DataError:
    # The file chooses part of the text.
    return DataError(printable(f"{path} {problem:.600}"))


def _read(path: str | Path, load: Callable[[BinaryIO], Any]) -> Any:
    """Return what `load` makes of a file, its errors in one line."""
    try:
        with Path(path).open("rb") as file:
            return load(file)
    except DataError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}), expected a .pt, .pth, .ckpt or .safetensors file; check the path"
    except _DAMAGE as error:
        problem = f"is damaged ({type(error).__name__}); copy or download it again"
    raise _error(path, problem)


def read_torch(path: str | Path) -> Any:
    """Read a PyTorch file (.pt, .pth, .ckpt) without PyTorch, running nothing that it contains.

    Args:
        path: file that `torch.save` of PyTorch 1.6 or newer wrote.

    Returns:
        The saved object: tensors and parameters as contiguous NumPy arrays of their own dtype (bfloat16 as float32), containers
        as dict, list, tuple and OrderedDict, and an `ssdd_jax.io.stand_in.StandIn` for an object of any other class.

    Raises:
        DataError: the file is missing, truncated, damaged or in another format.

    Example:
        >>> images = read_torch("x_syn.pt")  # doctest: +SKIP
    """
    return _read(path, _load)


def read_state_dict(path: str | Path) -> dict[str, np.ndarray | StandIn]:
    """Read the named tensors of a PyTorch or safetensors file.

    Args:
        path: a safetensors file, or what `read_torch` reads: a state dict, a checkpoint that has one under 'state_dict' or 'model',
            or one that has several under names of its own, which then become the first part of the tensors' names.

    Returns:
        Name -> array, as from `read_torch`; a `StandIn` for an object of another class, such as a complex or 8-bit float tensor. Other
        entries, such as numbers, are left out.

    Raises:
        DataError: as for `read_torch`, or the file holds no named tensors.
    """
    found = _read(path, _load_weights)
    if isinstance(found, dict):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), dict)), found)
        parts = {key: part for key, part in found.items() if isinstance(key, str) and isinstance(part, dict)}
        nested = {f"{key}.{name}": value for key, part in parts.items() for name, value in part.items() if isinstance(name, str)}
        for entries in (found, nested):
            if any(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in entries.items()):
                return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, np.ndarray | StandIn)}
        holds = f"a dict of {[str(name)[:40] for name in list(found)[:8]]}"
        if others := [name for name, value in found.items() if isinstance(value, StandIn)]:
            holds += f", of which {str(others[0])[:40]!r} is {found[others[0]]}"
    else:
        holds = f"an array of shape {found.shape}" if isinstance(found, np.ndarray) else f"a {type(found).__name__}"
        holds = repr(found) if isinstance(found, StandIn) else holds
    raise _error(path, f"holds {holds}, expected named tensors; save model.state_dict() with torch.save")
