"""What compiling makes again and again, kept for the next time: machine code, tables of tokenizers.

An entry's name is a digest of all that its bytes depend on, so entries never grow stale; the
longest unused ones make room. Several processes may share the folder: a file appears under its name
when it is complete, and one that vanished or was damaged is made anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LIMIT_BYTES = 512_000_000
_DIGEST_BYTES = 32


def user_cache() -> Path:
    """What may be made anew at any time: $XDG_CACHE_HOME/morendo, by default under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "morendo"


def cache_folder() -> Path:
    """Where this file's entries lie."""
    return user_cache() / "build"


def cache_key(*parts: str | bytes) -> str:
    """The name of what is made from these parts, all of them and in this order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class BuildCache:
    """Files of bytes by name; whatever goes wrong with the folder costs time and nothing else.

    Args:
        folder: made when something is first kept.
        limit_bytes: of all files together.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.limit_bytes = folder or cache_folder(), limit_bytes

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The bytes kept under `key`, or else what `make` gives, which is kept then."""
        found = self.load(key)
        if found is None:
            found = make()
            self.store(key, found)
        return found

    def load(self, key: str) -> bytes | None:
        """The bytes kept under `key`; None when there are none, or not all of them."""
        path = self.folder / key
        try:
            data = path.read_bytes()
            os.utime(path)  # used now, to be dropped last
        except OSError:
            return None
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        return body if hashlib.sha256(body).digest() == digest else None

    def store(self, key: str, data: bytes) -> None:
        """Keep `data` under `key` if there is room."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data + hashlib.sha256(data).digest())
                Path(name).replace(self.folder / key)
            finally:
                Path(name).unlink(missing_ok=True)

    def _make_room(self, nbytes: int) -> None:
        files = [(path, path.stat()) for path in self.folder.iterdir() if path.is_file()]
        excess = sum(facts.st_size for _, facts in files) + nbytes - self.limit_bytes
        for path, facts in sorted(files, key=lambda item: item[1].st_mtime):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= facts.st_size
