"""Safetensors files: a JSON header and raw bytes."""

import numpy as np
import safetensors

from ssdd_jax.errors import DataError
from ssdd_jax.io.stand_in import StandIn, stand_in

_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so is meant as a safetensors file: the header's length in eight bytes, below 2^32, and a brace."""
    return head[4:9] == b"\0\0\0\0{"


def widen_bfloat16(raw: np.ndarray) -> np.ndarray:
    """Return bfloat16 numbers, given as uint16, as float32: a bfloat16 is the upper half of a float32."""
    return (raw.astype("<u4") << 16).view("<f4")


def parse_safetensors(content: bytes) -> dict[str, np.ndarray | StandIn]:
    """Return the tensors in the content of a safetensors file, bfloat16 as float32; one of another dtype as a stand-in.

    Raises:
        DataError: the content is truncated or damaged.
    """
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise DataError(f"is a damaged safetensors file ({error!s:.200}); copy or download it again") from error
    # The library gives them in any order.
    entries = sorted(entries, key=lambda entry: entry[0])
    return {name: _tensor(entry["shape"], entry["dtype"], entry["data"]) for name, entry in entries}


def _tensor(shape: list[int], dtype: str, data: bytes) -> np.ndarray | StandIn:
    if dtype not in _DTYPES:
        return stand_in(f"dtype {dtype}")()
    array = np.ndarray(shape, _DTYPES[dtype], data)
    return widen_bfloat16(array) if dtype == "BF16" else array.copy()
