"""Temporary files of a compilation, in TMPDIR; one that is full is said in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from morendo.ir.errors import CompileError


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that goes when the block ends.

    Raises:
        CompileError: when it cannot be made.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="morendo-"))
    except OSError as error:
        raise _error(error, os.environ.get("TMPDIR", "/tmp")) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_scratch(path: Path, content: bytes) -> None:
    """Write a file of such a folder.

    Raises:
        CompileError: when the disk is full.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise _error(error, str(path.parent)) from error


def _error(error: OSError, folder: str) -> CompileError:
    return CompileError(
        f"temporary files cannot be written ({error.strerror})",
        where=folder,
        hint="free some space there, or set TMPDIR to a folder that has it",
    )
