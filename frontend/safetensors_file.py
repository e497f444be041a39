"""Weights in .safetensors files, memory-mapped and read one at a time.

The format (huggingface.co/docs/safetensors): 8 bytes of header length, a JSON header with dtype,
shape and byte range of each tensor, then the data. Read here without the safetensors package,
which has no numpy form of bfloat16 and whose errors do not name the tensor.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morendo.ir.errors import InputError

from .weights import TensorSource

# safetensors dtype -> (numpy type of the stored bytes, name)
_DTYPES = {
    "F64": ("<f8", "float64"),
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"),
    "I32": ("<i4", "int32"),
    "I16": ("<i2", "int16"),
    "I8": ("i1", "int8"),
    "U8": ("u1", "uint8"),
    "BOOL": ("?", "bool"),
}
_AGAIN = "the file is truncated or damaged: download it again"


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte offset in the file


class SafetensorsSource(TensorSource):
    """Tensors of one or more shards.

    Raises:
        InputError: when a header or a byte range does not fit its file.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.entries: dict[str, _Entry] = {}
        for path in paths:
            self.entries.update(_read_header(path))

    def names(self) -> list[str]:
        return list(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> str:
        stored = self.entries[name].dtype
        return _DTYPES[stored][1] if stored in _DTYPES else stored

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.dtype not in _DTYPES:
            raise InputError(
                f"tensor {name} is stored as {entry.dtype}, which is not supported",
                where=str(entry.path),
                hint="use a checkpoint in float32, float16 or bfloat16",
            )
        kind = np.dtype(_DTYPES[entry.dtype][0])
        stored = np.memmap(entry.path, kind, mode="r", offset=entry.start, shape=entry.shape)
        if entry.dtype == "BF16":  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32) if kind.kind == "f" else np.array(stored)


def _read_header(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError("the safetensors header is cut off", where=str(path), hint=_AGAIN)
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError):
            header = None
    if not isinstance(header, dict):
        raise InputError("the safetensors header is not JSON", where=str(path), hint=_AGAIN)
    header.pop("__metadata__", None)
    return {name: _entry(path, size, 8 + length, name, info) for name, info in header.items()}


def _entry(path: Path, size: int, base: int, name: str, info: object) -> _Entry:
    try:
        dtype, shape = str(info["dtype"]), tuple(int(d) for d in info["shape"])  # type: ignore[index]
        begin, end = (int(o) for o in info["data_offsets"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"the safetensors header is damaged at tensor {name}", where=str(path), hint=_AGAIN
        ) from None
    if not 0 <= begin <= end or base + end > size:
        raise InputError(
            f"tensor {name} ends behind the file (got {size} bytes, need {base + end})",
            where=str(path),
            hint=_AGAIN,
        )
    if dtype in _DTYPES:
        need = math.prod(shape) * np.dtype(_DTYPES[dtype][0]).itemsize
        if end - begin != need:
            raise InputError(
                f"tensor {name} has {end - begin} bytes, need {need}", where=str(path), hint=_AGAIN
            )
    return _Entry(path, dtype, shape, base + begin)
