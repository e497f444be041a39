"""Codes of a calibration that did not come to its end, kept beside the artifact to be.

Rounding a large model takes long; when it is interrupted, or the disk is full at the end, the same
command goes on from the last finished layer.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from morendo.calibration_text import CalibrationText
from morendo.frontend import LoadedModel
from morendo.frontend.weights import WeightStore
from morendo.ir.code_store import CodeStore
from morendo.ir.errors import ArtifactError
from morendo.ir.reference import ROWS
from morendo.runtime.lock import locked

_KEY = "morendo-calibration.key"  # no folder of something else has such a file
_VERSION = 4  # of what is kept
_MATRICES = 8  # read for the key


def kept_folder(out: Path) -> Path:
    """Where the codes for the artifact `out` are kept."""
    return out.with_name(f"{out.name}.calibration")


@contextmanager
def kept_codes(out: Path, key: str, tell: Callable[[str], None]) -> Iterator[CodeStore]:
    """Codes of earlier tries with the same key; the folder goes when the block ends well.

    An error in the block leaves the folder if any matrix is in it.

    Args:
        out: the artifact to be.
        key: what the codes depend on; a folder with another key is made anew.
        tell: says what was found or is left.

    Raises:
        ArtifactError: when the folder cannot be written or is not of a calibration.
    """
    folder = kept_folder(out)
    mark = folder / _KEY
    with ExitStack() as stack:
        try:
            if folder.exists() and not (mark.exists() or _is_empty(folder)):
                raise ArtifactError(
                    "something else is where codes would be kept",
                    where=str(folder),
                    hint="remove it, or give another --out",
                )
            folder.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(locked(folder)):
                raise ArtifactError(
                    "another compile keeps its codes there",
                    where=str(folder),
                    hint="wait for its end, or give another --out",
                )
            if not mark.exists() or mark.read_text("utf-8") != key:
                if mark.exists():
                    tell(f"an earlier try of something else is thrown away ({folder})")
                _clear(folder)
                mark.write_text(key, "utf-8")
        except OSError as error:
            raise ArtifactError(
                f"codes cannot be kept there ({error.strerror})",
                where=str(folder),
                hint="give --out in a folder that can be written",
            ) from error
        yield from _given(CodeStore(folder), tell)


def _given(codes: CodeStore, tell: Callable[[str], None]) -> Iterator[CodeStore]:
    """Hand the codes out, then remove them or say that they stay."""
    folder = codes.folder
    if len(codes):
        tell(f"going on with {len(codes)} matrices of an earlier try, kept in {folder}")
    try:
        yield codes
    except BaseException:
        if len(codes):
            tell(f"{len(codes)} rounded matrices are kept in {folder}; the same command goes on")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _clear(folder: Path) -> None:
    """Remove all but the folder, which is locked, and its key, without which it is not ours."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _KEY:
            path.unlink()


def calibration_key(loaded: LoadedModel, recipe: str, text: CalibrationText) -> str:
    """What codes depend on: weights, passes, text and the processor's arithmetic, as a digest.

    Of large models not all is read: every shape, every vector (norms, biases) and some matrices.

    Args:
        recipe: the passes with all their options, defaults too.
    """
    import torch  # takes seconds: not before it is needed

    from morendo.passes.streaming.fast_ops import fastest_dtype

    arithmetic = f"{torch.__version__} {fastest_dtype()}"  # orders of channels depend on it
    digest = hashlib.sha256(f"{_VERSION} {arithmetic} {recipe}".encode())
    for windows in (text.rounding, text.tuning):
        digest.update(np.ascontiguousarray(windows).tobytes())
    store = loaded.weights
    names = sorted(store.names())
    matrices = [name for name in names if len(store.shape(name)) > 1]
    read = set(names) - set(matrices) | set(matrices[:: max(len(matrices) // _MATRICES, 1)])
    for name in names:
        digest.update(f"{name}{store.shape(name)}".encode())
        if name in read:
            for values in _pieces(store, name):
                digest.update(np.ascontiguousarray(values).data.cast("B"))
    return digest.hexdigest()


def _pieces(store: WeightStore, name: str) -> Iterator[np.ndarray]:
    """A weight's data, a few thousand rows at a time."""
    shape = store.shape(name)
    if len(shape) < 2:
        yield store.get(name)
    for start in range(0, shape[0] if len(shape) > 1 else 0, ROWS):
        yield store.rows(name, slice(start, start + ROWS))
