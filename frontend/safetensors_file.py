"""Weights in .safetensors files, read one at a time.

The safetensors library checks the header: ranges that overlap, leave holes or do not fit their
shape, and a file that is longer or shorter than its tensors. It reads here, and does not map: what
was mapped stays in memory, and compiling should need memory for one matrix.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from morendo.ir.errors import InputError

from .weights import Rows, TensorSource, merge_shards

# safetensors dtype -> torch's name; of the others none is a weight that is not quantized
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_AGAIN = "the file is truncated or damaged: download it again"


class SafetensorsSource(TensorSource):
    """Tensors of one or more shards.

    Raises:
        InputError: when a header does not fit its file, or two shards hold the same tensor.
    """

    def __init__(self, paths: list[Path]) -> None:
        opened = [(path, _open(path)) for path in paths]
        self._files = merge_shards(
            (path, {name: (path, file) for name in file.keys()})  # noqa: SIM118, no dict
            for path, file in opened
        )
        self._starts: dict[Path, dict[str, int]] = {}

    def names(self) -> list[str]:
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._files[name][1].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        stored: str = self._files[name][1].get_slice(name).get_dtype()
        return _DTYPES.get(stored, stored)

    def read(self, name: str) -> np.ndarray:
        path, file = self._files[name]
        self._check_kind(name)
        try:
            tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:  # the file was changed after it was opened
            raise _unreadable(name, path, str(error)) from error
        return _floats(tensor)

    def rows(self, name: str, rows: Rows) -> np.ndarray:
        """As of a source; by our own reads, for those of the library take in the whole tensor."""
        path, _ = self._files[name]
        self._check_kind(name)
        count, *rest = self.shape(name)
        kind: torch.dtype = getattr(torch, self.dtype(name))
        nbytes = math.prod(rest) * kind.itemsize
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(count)
            runs = [(start, max(stop - start, 0))]
        else:
            runs = [(row, 1) for row in rows.tolist()]
        found = torch.empty(sum(length for _, length in runs), *rest, dtype=kind)
        data, at = memoryview(found.view(torch.uint8).numpy().reshape(-1)), 0
        with path.open("rb", buffering=0) as file:
            for start, length in runs:
                file.seek(self._start(path, name) + start * nbytes)
                if file.readinto(data[at : at + length * nbytes]) != length * nbytes:
                    raise _unreadable(name, path, "the file ends before it")
                at += length * nbytes
        return _floats(found)

    def _start(self, path: Path, name: str) -> int:
        """The offset of a tensor's data in its file, whose header the library has checked."""
        if path not in self._starts:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            offsets = {each: entry["data_offsets"][0] for each, entry in entries.items()}
            self._starts[path] = {each: 8 + length + offset for each, offset in offsets.items()}
        return self._starts[path][name]

    def _check_kind(self, name: str) -> None:
        kind = self.dtype(name)
        if kind not in _DTYPES.values():
            raise InputError(
                f"tensor {name} is stored as {kind}, which is not supported",
                where=str(self._files[name][0]),
                hint="use a checkpoint in float32, float16 or bfloat16",
            )


def _floats(tensor: torch.Tensor) -> np.ndarray:
    """Floats as float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _unreadable(name: str, path: Path, why: str) -> InputError:
    return InputError(f"tensor {name} cannot be read ({why})", where=str(path), hint=_AGAIN)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt", backend="pread")
    except (SafetensorError, OSError) as error:
        said = str(error).removeprefix("Error while deserializing header: ")
        raise InputError(
            f"the safetensors header is not valid ({said[:120]})", where=str(path), hint=_AGAIN
        ) from error
