"""Matrices in the types of llama.cpp, rounded by its own code.

    pip install --no-deps --target DIR xllamacpp==2026.10.11549      and PYTHONPATH=.:DIR

The wheel carries llama.cpp as a library, of which one function is called.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants


def rounded(matrix: np.ndarray, name: str) -> np.ndarray:
    """What a type makes of a matrix, float32 [N, K]; K is a multiple of the type's block."""
    kind = GGMLQuantizationType[name]
    weights, nbytes = GGML_QUANT_SIZES[kind]
    rows, columns = matrix.shape
    source = np.ascontiguousarray(matrix, np.float32)
    stored = np.zeros((rows, columns // weights * nbytes), np.uint8)
    start, nrows, per_row = (ctypes.c_int64(each) for each in (0, rows, columns))
    written = _library().ggml_quantize_chunk(
        ctypes.c_int(int(kind)), source.ctypes.data_as(ctypes.c_void_p),
        stored.ctypes.data_as(ctypes.c_void_p), start, nrows, per_row, None,
    )  # fmt: skip
    assert written == stored.nbytes, (name, written, stored.nbytes)
    return quants.dequantize(stored, kind)


def bits_of(name: str) -> float:
    """Bits of a weight in a type, with its scales."""
    weights, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return 8 * nbytes / weights


@cache
def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise SystemExit("types of llama.cpp need its code: pip install --no-deps xllamacpp")
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library
