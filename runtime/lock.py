"""One process at a time in a folder; the lock goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Whether this process alone has the folder, until the block ends.

    Args:
        folder: an existing directory; the block may remove it.

    Raises:
        OSError: when it cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        mine = False
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever had it before may have removed it
            mine = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        yield mine
    finally:
        os.close(handle)
