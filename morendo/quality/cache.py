"""Logits of float models on disk, so that they are computed once and not for every artifact.

They are kept as float32, all of them. Half precision would put a floor of 5e-7 nats under every
divergence (7e-6 for logits that are not normalized), far above the error of float kernels, and the
likeliest k alone would hide the tail.
That is large (512 tokens of 49152 logits are 100 MB), so there is a limit; what is beyond it is
computed again each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.build_cache import user_cache
from morendo.frontend.gguf import part_paths

CACHE_LIMIT_BYTES = 4_000_000_000
_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def cache_directory() -> Path:
    """The folder of logits in the user's cache."""
    return user_cache() / "logits"


def model_key(path: Path, variant: str = "") -> str:
    """Names a model's files as they are now, and the libraries that compute with them.

    Files count by name, size and time of change: reading gigabytes for a checksum would take
    longer than what the cache saves.

    Args:
        variant: of several functions that the same files can be, such as "long" or "short" texts'.
    """
    if path.is_file():
        files = [part for part in part_paths(path) if part.is_file()]
    else:
        files = [f for p in _WEIGHT_FILES for f in path.glob(p)]
    facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(files)]
    libraries = [version(name) for name in ("torch", "transformers")]
    named = [str(path.resolve()), facts, libraries, *([variant] if variant else [])]
    return _digest(json.dumps(named).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class LogitsCache:
    """The logits of one model, a file for each window of a text.

    Args:
        folder: shared by all models.
        model: what `model_key` gives.
        limit_bytes: of the folder. Other models' windows make room, the longest unused first;
            this model's never do, or a text that does not fit would push out its own start.

    Attributes:
        problem: why windows could not be kept; "" when they could.
    """

    def __init__(self, folder: Path, model: str, limit_bytes: int = CACHE_LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.own = folder / model
        self.problem = ""

    def load(self, ids: NDArray[np.int32]) -> NDArray[np.float32] | None:
        """The logits [tokens - 1, vocabulary] of a window; None when they are not there."""
        path = self._path(ids)
        try:
            found = np.load(path, allow_pickle=False)
            os.utime(path)  # used now, to be dropped last
        except (OSError, ValueError, EOFError):  # damaged is as good as missing
            return None
        good = found.dtype == np.float32 and found.ndim == 2 and len(found) == len(ids) - 1
        return found if good else None

    def store(self, ids: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
        """Keep the logits of a window if there is room; never an error, see `problem`."""
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            if self._make_room(logits.nbytes):
                self._write(self._path(ids), logits)
            else:
                limit = f"{self.limit_bytes / 1e9:g} GB"
                self.problem = f"they take more than the cache's {limit}"
        except OSError as error:
            self.problem = f"{error.strerror or error} in {self.folder}"

    def _path(self, ids: NDArray[np.int32]) -> Path:
        return self.own / f"{_digest(np.ascontiguousarray(ids, np.int32).tobytes())}.npy"

    def _make_room(self, nbytes: int) -> bool:
        sizes = {path: path.stat().st_size for path in self._files()}
        own = sum(size for path, size in sizes.items() if path.parent == self.own)
        if own + nbytes > self.limit_bytes:
            return False
        excess = sum(sizes.values()) + nbytes - self.limit_bytes
        others = [path for path in sizes if path.parent != self.own]
        for path in sorted(others, key=lambda p: p.stat().st_mtime):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= sizes[path]
        return True

    def _files(self) -> Iterator[Path]:
        return (path for path in self.folder.glob("*/*") if path.is_file())

    def _write(self, path: Path, logits: NDArray[np.float32]) -> None:
        """To a temporary name first: a reader never sees half a file."""
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self.own)
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, np.asarray(logits, np.float32), allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
