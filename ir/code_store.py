"""Codes that were made before packing, kept in files: one matrix at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np

from .errors import CompileError
from .formats import WeightFormat
from .outliers import Outliers
from .reference import Quantized


class CodeStore:
    """Quantized matrices by weight name and format; what the folder holds already counts.

    Args:
        folder: an existing directory of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, name: str, fmt: WeightFormat) -> Path:
        return self.folder / f"{quote(name, safe='')}@{fmt.name}.npz"

    def put(
        self,
        name: str,
        fmt: WeightFormat,
        codes: Quantized,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a matrix, whole or not at all, and what was measured of it.

        Raises:
            CompileError: when the disk is full.
        """
        path = self._path(name, fmt)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    *codes.dense,
                    *vars(codes.outliers or Outliers.none()).values(),
                    figures=json.dumps(dict(figures or {})),
                )
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CompileError(
                f"quantized weights cannot be kept ({error.strerror})",
                where=str(self.folder),
                hint="free disk space there",
            ) from error

    def get(self, name: str, fmt: WeightFormat) -> Quantized | None:
        """What was kept; None when the matrix has no codes in this format."""
        path = self._path(name, fmt)
        if not path.exists():
            return None
        with np.load(path) as arrays:
            parts = [arrays[name] for name in sorted(arrays.files) if name != "figures"]
        codes, scale, zero, row_scale, *sparse = parts
        outliers = Outliers(*sparse) if len(sparse[0]) else None
        return Quantized(codes, scale, zero, row_scale, outliers)

    def figures(self, name: str, fmt: WeightFormat) -> dict[str, float] | None:
        """What was measured of a matrix; None when it has no codes in this format."""
        path = self._path(name, fmt)
        if not path.exists():
            return None
        with np.load(path) as arrays:
            return json.loads(str(arrays["figures"]))

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.npz"))
