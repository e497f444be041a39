"""Codes that were made before packing, kept in files: one matrix at a time is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import CompileError
from .formats import WeightFormat
from .outliers import Outliers
from .reference import Quantized


class CodeStore:
    """Quantized matrices by weight name and format.

    Args:
        folder: an existing directory of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[tuple[str, str], Path] = {}

    def put(self, name: str, fmt: WeightFormat, codes: Quantized) -> None:
        """Keep a matrix.

        Raises:
            CompileError: when the disk is full.
        """
        path = self._files.setdefault((name, fmt.name), self.folder / f"{len(self._files):05d}.npz")
        try:
            np.savez(path, *codes.dense, *vars(codes.outliers or Outliers.none()).values())
        except OSError as error:
            raise CompileError(
                f"quantized weights cannot be kept ({error.strerror})",
                where=str(self.folder),
                hint="free disk space there, or set TMPDIR",
            ) from error

    def get(self, name: str, fmt: WeightFormat) -> Quantized | None:
        """What was kept; None when the matrix has no codes in this format."""
        path = self._files.get((name, fmt.name))
        if path is None:
            return None
        with np.load(path) as arrays:
            codes, scale, zero, row_scale, *sparse = (arrays[name] for name in arrays.files)
        outliers = Outliers(*sparse) if len(sparse[0]) else None
        return Quantized(codes, scale, zero, row_scale, outliers)

    def __len__(self) -> int:
        return len(self._files)
