"""Stored tensors of an ONNX file, read one at a time, from files beside it if they lie there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from morendo.frontend.model_files import refuse_pointer
from morendo.ir.errors import InputError

_AGAIN = "the file is truncated or damaged: download or export it again"
_HALF_BYTES = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
_QUARTER_BYTES = {TensorProto.INT2, TensorProto.UINT2}


@dataclass(frozen=True)
class _Extent:
    path: Path
    start: int  # byte offset in the file
    nbytes: int


class Initializers:
    """Tensors by name; those in external files are mapped when they are read.

    Args:
        tensors: as the file has them.
        path: the ONNX file; external files lie in its folder or below.

    Raises:
        InputError: for external data that is missing, too short or outside of the folder.
    """

    def __init__(self, tensors: Mapping[str, TensorProto], path: Path) -> None:
        self._tensors = dict(tensors)
        self._path = path
        self._sizes: dict[str, int] = {}
        for name, tensor in self._tensors.items():
            if tensor.data_type not in TensorProto.DataType.values():
                raise InputError(
                    f"tensor {name} has an unknown type ({tensor.data_type})", where=str(path)
                )
        self._extents = {
            name: self._extent(name, tensor)
            for name, tensor in self._tensors.items()
            if tensor.data_location == TensorProto.EXTERNAL
        }

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """All tensors, in the order of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions, without reading the data."""
        return tuple(self._tensors[name].dims)

    def dtype(self, name: str) -> str:
        """Element type in lower case: "float", "float16", "bfloat16", "int4", ..."""
        return TensorProto.DataType.Name(self._tensors[name].data_type).lower()

    def is_float(self, name: str) -> bool:
        """Whether it holds floats of 16, 32 or 64 bits."""
        return self.dtype(name) in ("float", "float16", "bfloat16", "double")

    def read(self, name: str) -> np.ndarray:
        """The data in its own type; 4-bit integers one to an element."""
        tensor, extent = self._tensors[name], self._extents.get(name)
        if extent is not None:
            data = np.memmap(extent.path, np.uint8, "r", extent.start, (extent.nbytes,))
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if tensor.data_type not in _HALF_BYTES | _QUARTER_BYTES:
                return np.asarray(data).view(kind).reshape(tensor.dims)
            raw = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=data.tobytes())
            return numpy_helper.to_array(raw)
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"tensor {name} cannot be read ({error})", where=str(self._path), hint=_AGAIN
            ) from None

    def _extent(self, name: str, tensor: TensorProto) -> _Extent:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        folder = self._path.parent.resolve()
        file = folder / facts.get("location", "")
        # Links are followed only inside, where a hub's cache keeps its files apart from the folder.
        if not file.is_relative_to(folder) or ".." in file.parts or file == folder:
            raise InputError(
                f"tensor {name} lies outside of the model's folder ({facts.get('location')!r})",
                where=str(self._path),
                hint="external data has to be beside the .onnx file",
            )
        need = self._nbytes(tensor)
        try:
            start, nbytes = int(facts.get("offset", 0)), int(facts.get("length", need))
            size = self._size(file)
        except ValueError:
            start, nbytes, size = -1, 0, 0
        except OSError:
            raise InputError(
                f"the file of external data is missing (of tensor {name})",
                where=str(file),
                hint="download or export the whole model",
            ) from None
        if start < 0 or nbytes != need:
            raise InputError(
                f"tensor {name} has {nbytes} bytes of external data, need {need}",
                where=str(self._path),
                hint=_AGAIN,
            )
        if start + nbytes > size:
            raise InputError(
                f"tensor {name} ends behind the file (got {size} bytes, need {start + nbytes})",
                where=str(file),
                hint=_AGAIN,
            )
        return _Extent(file, start, nbytes)

    def _size(self, file: Path) -> int:
        if str(file) not in self._sizes:
            self._sizes[str(file)] = file.stat().st_size
            refuse_pointer(file)
        return self._sizes[str(file)]

    def _nbytes(self, tensor: TensorProto) -> int:
        count = math.prod(tensor.dims)
        if tensor.data_type in _HALF_BYTES:
            return -(-count // 2)
        if tensor.data_type in _QUARTER_BYTES:
            return -(-count // 4)
        return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
