"""Files as torch.save writes them, without PyTorch: dicts, lists and tensors."""

import pickle
import zipfile

import numpy as np

KINDS = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage", "int32": "IntStorage", "uint8": "ByteStorage"}


def save_torch(path, value):
    """Write a value to a file and return its path; an object of bytes stands for opcodes of its own."""
    storages = []
    content = b"\x80\x02" + _opcodes(value, storages) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", b"little")
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage.tobytes())
    return path


def _opcodes(value, storages):
    put = lambda part: _opcodes(part, storages)
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(put(key) + put(part) for key, part in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(put, value)) + b"e"
    if not isinstance(value, np.ndarray):
        return pickle.dumps(value, 2)[2:-1]
    storages.append(np.array(value, order="C"))
    kind, strides = KINDS[str(value.dtype)], tuple(step // value.itemsize for step in storages[-1].strides)
    storage = b"(" + put("storage") + f"ctorch\n{kind}\n".encode() + put(str(len(storages) - 1)) + put("cpu") + put(value.size) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + put(0) + put(value.shape) + put(strides) + put(False) + b"NtR"
