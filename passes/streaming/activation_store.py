"""Live values of every calibration window between two stages, in memory or on disk."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from morendo.ir.errors import CompileError

Values = list[np.ndarray]


class ActivationStore:
    """One list of arrays for each window; saving again replaces it.

    Args:
        folder: an existing directory for what does not fit.
        limit_bytes: of arrays kept in memory.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._memory: dict[int, Values] = {}
        self._files: dict[int, Path] = {}
        self._nbytes = 0

    def save(self, window: int, values: Values) -> None:
        """Keep a window's values.

        Raises:
            CompileError: when the disk is full.
        """
        self._nbytes -= _nbytes(self._memory.pop(window, []))
        if self._nbytes + _nbytes(values) <= self.limit_bytes:
            self._memory[window] = values
            self._nbytes += _nbytes(values)
            return
        path = self._files.setdefault(window, self.folder / f"window{window:05d}.npz")
        try:
            np.savez(path, *values)
        except OSError as error:
            raise CompileError(
                f"activations cannot be kept ({error.strerror})",
                where=str(self.folder),
                hint="free disk space there, set TMPDIR, or calibrate with less text",
            ) from error

    def load(self, window: int) -> Values:
        """The values saved last."""
        if window in self._memory:
            return self._memory[window]
        with np.load(self._files[window]) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]


def give_back_memory() -> None:
    """Return what is free to the system, where the C library can.

    glibc keeps freed blocks of up to 32 MB; between them lie small arrays that stay, and so a large
    model's calibration would grow with every layer.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _nbytes(values: Values) -> int:
    return sum(value.nbytes for value in values)
