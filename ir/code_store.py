"""Codes that were made before packing, kept in files: one matrix at a time is in memory."""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote
from zipfile import BadZipFile

import numpy as np

from .errors import CompileError
from .formats import WeightFormat
from .outliers import Outliers
from .reference import Quantized

_STAGED, _COMPLETE = "staged", "complete"  # folders of what replaces codes


class CodeStore:
    """Quantized matrices by weight name and format; what the folder holds already counts.

    Args:
        folder: an existing directory of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[Path] = set()
        self._recover()

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
        arrays = *codes.dense, *vars(codes.outliers or Outliers.none()).values()
        notes = json.dumps(dict(figures or {}))
        path = self._path(name, fmt)
        self._write(path, lambda file: np.savez(file, *arrays, figures=notes))
        self._seen.add(path)

    def get(self, name: str, fmt: WeightFormat) -> Quantized | None:
        """What was kept; None when the matrix has no codes in this format."""
        path = self._path(name, fmt)
        if not self._has(path):
            return None
        with self._read(path), np.load(path) as arrays:
            parts = [arrays[f"arr_{i}"] for i in range(len(arrays.files) - 1)]  # and figures
        *dense, row, channel, value = parts
        outliers = Outliers(row, channel, value) if len(row) else None
        return Quantized.of_dense(dense, outliers)

    def figures(self, name: str, fmt: WeightFormat) -> dict[str, float] | None:
        """What was measured of a matrix; None when it has no codes in this format."""
        path = self._path(name, fmt)
        if not self._has(path):
            return None
        with self._read(path), np.load(path) as arrays:
            return json.loads(str(arrays["figures"]))

    def _has(self, path: Path) -> bool:
        """Whether a file is there; what was there once must be."""
        if path.exists():
            self._seen.add(path)
        elif path in self._seen:
            raise CompileError(
                "quantized weights that were kept are gone",
                where=str(path),
                hint="nothing else may write there; the same command makes them again",
            )
        return path in self._seen

    def put_vector(self, name: str, values: np.ndarray) -> None:
        """Keep a float32 vector that belongs to the codes.

        Raises:
            CompileError: when the disk is full.
        """
        self._write(self._vector(name), lambda file: np.save(file, values))

    def vector(self, name: str) -> np.ndarray | None:
        """What was kept; None when there is none."""
        path = self._vector(name)
        if not path.exists():
            return None
        with self._read(path):
            return np.load(path)

    def _vector(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}.npy"

    @contextmanager
    def _read(self, path: Path) -> Iterator[None]:
        """Say of a damaged file what it is."""
        try:
            yield
        except (BadZipFile, zlib.error, ValueError, KeyError, EOFError) as error:
            raise CompileError(
                f"quantized weights that were kept are damaged ({error})",
                where=str(path),
                hint="delete its folder, and the same command makes all of it again",
            ) from error

    def _write(self, path: Path, save: Callable[[IO[bytes]], None]) -> None:
        """A whole file or none."""
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                save(file)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._full(error) from error

    @contextmanager
    def replacing(self) -> Iterator[CodeStore]:
        """A store whose matrices and vectors come here when the block ends well, all or none."""
        staging = self.folder / _STAGED
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
        except OSError as error:
            raise self._full(error) from error
        try:
            yield CodeStore(staging)
            staging.rename(self.folder / _COMPLETE)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._recover()

    def _recover(self) -> None:
        """Move what is complete, perhaps what an interruption left half moved."""
        complete = self.folder / _COMPLETE
        if complete.exists():
            for path in complete.iterdir():
                path.replace(self.folder / path.name)
            complete.rmdir()

    def _full(self, error: OSError) -> CompileError:
        return CompileError(
            f"quantized weights cannot be kept ({error.strerror})",
            where=str(self.folder),
            hint="free disk space there"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "nothing else may write there",
        )

    def keys(self) -> set[tuple[str, WeightFormat]]:
        """Weight name and format of every matrix."""
        stems = [path.stem.rpartition("@") for path in self.folder.glob("*.npz")]
        return {(unquote(name), WeightFormat.parse(fmt)) for name, _, fmt in stems}

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.npz"))
