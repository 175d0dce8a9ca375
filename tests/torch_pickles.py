"""PyTorch's zip format, written without PyTorch: the opcodes of its pickles, and the archive around them."""

import pickle
import zipfile

import numpy as np


def write(path, content, members=(), compression=zipfile.ZIP_STORED, root="archive"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": content, "byteorder": b"little", **dict(members)}.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def plain(value):
    """Return the opcodes of a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def named(module, name):
    """Return the opcodes of a global: GLOBAL, or STACK_GLOBAL for names that this cannot hold."""
    if name.isidentifier():
        return f"c{module}\n{name}\n".encode()
    return plain(module) + plain(name) + b"\x93"


def tensor(size, stride, offset=0, kind="FloatStorage", length=6, key="0", rest=()):
    """Return the opcodes of a tensor."""
    storage = b"(" + plain("storage") + named("torch", kind) + plain(key) + plain("cpu") + plain(length) + b"tQ"
    arguments = storage + b"".join(plain(value) for value in (offset, size, stride, False, None, *rest))
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def write_lists(path, value):
    """Write nested lists of float32 arrays as torch.save writes lists of tensors."""
    members = {}

    def opcodes(value):
        if isinstance(value, np.ndarray):
            key, strides = str(len(members)), tuple(step // 4 for step in np.ascontiguousarray(value).strides)
            members[f"data/{key}"] = value.astype("<f4").tobytes()
            return tensor(value.shape, strides, length=value.size, key=key)
        return b"](" + b"".join(map(opcodes, value)) + b"e" if isinstance(value, list) else plain(value)

    return write(path, b"\x80\x02" + opcodes(value) + b".", members)
