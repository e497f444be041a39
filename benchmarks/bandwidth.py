"""Memory bandwidth of this machine, measured on the spot by reading a buffer larger than caches."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("bandwidth.c")
BUFFER_BYTES = 1 << 28


class Bandwidth:
    """Compiles the reader once; call it with a number of threads."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="morendo-bench-")
        library = Path(self._folder.name) / "bandwidth.so"
        command = [sys.executable, "-m", "ziglang", "cc", "-O3", "-march=native", "-shared"]
        subprocess.run([*command, "-fPIC", str(SOURCE), "-o", str(library)], check=True)
        self._read = ctypes.CDLL(str(library)).read_bandwidth
        self._read.restype = ctypes.c_double
        self._words = np.ones(BUFFER_BYTES // 4, np.uint32)

    def __call__(self, threads: int) -> float:
        """Bytes per second of one pass with `threads` threads."""
        size = ctypes.c_size_t(self._words.size)
        return self._read(ctypes.c_void_p(self._words.ctypes.data), size, threads)
