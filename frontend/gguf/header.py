"""The header of one .gguf file: its metadata and where its tensors lie.

gguf's own reader makes a numpy object of every string of the vocabulary, which takes seconds, and
believes whatever a damaged file says; its tables of value and tensor types are used here.
"""

from __future__ import annotations

import functools
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from morendo.ir.errors import InputError

_VERSIONS = (2, 3)
_DAMAGED = "the file is truncated or damaged: download it again"
_NUMBERS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_LARGEST_RANK = 4  # of a tensor in ggml


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file.

    Attributes:
        name: such as "blk.0.attn_q.weight".
        shape: dimensions, the innermost last.
        kind: how its values are stored.
        path: the file.
        start: of its data in the file, in bytes.
        nbytes: size of its data.
    """

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    path: Path
    start: int
    nbytes: int

    def read(self) -> np.ndarray:
        """The values as float32."""
        return self.rows(slice(None)).reshape(self.shape)

    def rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows along the innermost dimension as float32; the others are not touched."""
        count = prod(self.shape[:-1])
        shape = count, self.nbytes // count
        stored: np.ndarray = np.memmap(self.path, np.uint8, "r", self.start, shape=shape)[rows]
        if self.kind == GGMLQuantizationType.F32:
            stored = stored.view(np.float32)
        elif self.kind == GGMLQuantizationType.F16:
            stored = stored.view(np.float16)
        return gguf.dequantize(stored, self.kind)


@dataclass(frozen=True)
class Header:
    """What a file says before its data.

    Attributes:
        path: the file.
        metadata: key -> number, text, bool, or list of these.
        tensors: in the order of the file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> Header:
    """Read a file's metadata and tensor table.

    Raises:
        InputError: for another kind of file, a truncated or damaged one, and tensor types that
            gguf cannot turn into floats.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != b"GGUF":
            raise InputError(
                "not a GGUF file (it does not start with the letters GGUF)",
                where=str(path),
                hint="give a .gguf file or a Hugging Face model directory",
            )
        version = int.from_bytes(start[4:], "little")
        if len(start) == 8 and version not in _VERSIONS:
            raise InputError(
                f"unsupported GGUF version (got {version}, need "
                f"{' or '.join(map(str, _VERSIONS))})",
                where=str(path),
                hint="convert the model again with a current llama.cpp, for little-endian machines",
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)


class _Cursor:
    """A place in the header; reading behind the end of the file is an error."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path = path
        self.data = data
        self.position = position

    def bad(self, said: str) -> InputError:
        return InputError(
            f"the GGUF header cannot be read ({said})", where=str(self.path), hint=_DAMAGED
        )

    def numbers(self, format: str, count: int) -> tuple[Any, ...]:
        """`count` numbers of one kind, little-endian."""
        start, size = self.position, struct.calcsize(f"<{format}") * count
        if size > len(self.data) - start:
            raise self.bad("it ends too early")
        self.position = start + size
        return struct.unpack_from(f"<{count}{format}", self.data, start)

    def number(self, format: str) -> Any:
        return self.numbers(format, 1)[0]

    def text(self) -> str:
        size = self.number("Q")
        start = self.position
        if size > len(self.data) - start:
            raise self.bad("it ends too early")
        self.position = start + size
        try:
            return self.data[start : start + size].decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad(f"a text at byte {start} is not UTF-8") from None

    def name(self) -> str:
        """Of a key or tensor; messages show it."""
        start, found = self.position, self.text()
        if not found.isprintable():
            raise self.bad(f"the name at byte {start} has control characters")
        return found

    def value(self) -> Any:
        kind = self.number("I")
        if kind != GGUFValueType.ARRAY:
            return self._values(kind, 1)[0]
        kind, count = self.number("I"), self.number("Q")
        return self._values(kind, count)

    def _values(self, kind: int, count: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            if count > len(self.data) // 8:  # each has its length in 8 bytes
                raise self.bad("it ends too early")
            return [self.text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.bad(f"a value of unknown type {kind} before byte {self.position}")
        found = list(self.numbers(_NUMBERS[GGUFValueType(kind)], count))
        return [_shortest(v) for v in found] if kind == GGUFValueType.FLOAT32 else found


def _shortest(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05, which 32 bits store as 9.9999997e-06."""
    return float(str(np.float32(value)))


def _parse(path: Path, data: mmap.mmap) -> Header:
    cursor = _Cursor(path, data, 8)
    tensor_count, key_count = cursor.numbers("Q", 2)
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.name()
        if key in metadata:
            raise cursor.bad(f"the key {key} is there twice")
        metadata[key] = cursor.value()
    entries = [_tensor_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise cursor.bad(f"general.alignment is {alignment!r}, need a power of two")
    base = -(-cursor.position // alignment) * alignment
    tensors = tuple(
        TensorInfo(name, shape, kind, path, base + offset, _byte_count(cursor, name, shape, kind))
        for name, shape, kind, offset in entries
    )
    _check_places(path, len(data), tensors)
    return Header(path, metadata, tensors)


def _tensor_entry(
    cursor: _Cursor,
) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    """(name, shape, kind, offset from the first tensor's data)."""
    name = cursor.name()
    rank = cursor.number("I")
    if not 1 <= rank <= _LARGEST_RANK:
        raise cursor.bad(f"tensor {name} has {rank} dimensions, need 1 to {_LARGEST_RANK}")
    shape = tuple(reversed(cursor.numbers("Q", rank)))  # ggml's innermost dimension comes first
    if not all(shape):
        raise cursor.bad(f"tensor {name} is empty")
    number, offset = cursor.number("I"), cursor.number("Q")
    names = {member.value: member.name for member in GGMLQuantizationType}
    if number not in names or not _is_readable(GGMLQuantizationType(number)):
        readable = [kind.name for kind in GGMLQuantizationType if _is_readable(kind)]
        raise InputError(
            f"tensor type {number} ({names.get(number, 'of unknown kind')}) is not supported "
            f"(tensor {name})",
            where=str(cursor.path),
            hint=f"supported: {', '.join(readable)}",
        )
    return name, shape, GGMLQuantizationType(number), offset


@functools.cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    """Whether gguf turns this kind into floats; it has no table that says so."""
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        return True
    try:
        with np.errstate(all="ignore"):
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (KeyError, NotImplementedError):
        return False
    return True


def _byte_count(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType
) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise cursor.bad(
            f"tensor {name} has rows of {shape[-1]} values, need a multiple of {block} for "
            f"{kind.name}"
        )
    return prod(shape) // block * size


def _check_places(path: Path, size: int, tensors: tuple[TensorInfo, ...]) -> None:
    """Names differ, and each tensor's data lie within the file and behind the one before."""
    if len({t.name for t in tensors}) < len(tensors):
        seen: set[str] = set()
        twice = next(t.name for t in tensors if t.name in seen or seen.add(t.name))
        raise InputError(f"tensor {twice} is there twice", where=str(path), hint=_DAMAGED)
    end, before = 0, ""
    for info in sorted(tensors, key=lambda t: t.start):
        if info.start < end:
            raise InputError(
                f"tensors {before} and {info.name} overlap", where=str(path), hint=_DAMAGED
            )
        end, before = info.start + info.nbytes, info.name
        if end > size:
            raise InputError(
                f"tensor {info.name} ends behind the file (got {size} bytes, need {end})",
                where=str(path),
                hint=_DAMAGED,
            )
