"""Runs an artifact whose weights are other bytes, in memory with nothing mapped around it: whoever
reads or writes outside of it ends with a signal.

    python run_guarded.py ARTIFACT
"""

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np

from morendo.runtime import interpreter

GUARD_BYTES = 4 << 20  # farther than any 16-bit index reaches
PAGE, PROT_NONE = mmap.PAGESIZE, 0
_kept: list[mmap.mmap] = []  # they are unmapped when the process ends


def guarded(count: int) -> np.ndarray:
    """Zeros that end where memory ends, up to the alignment of 64 bytes, and begin likewise."""
    inside = -(-count // PAGE) * PAGE
    memory = mmap.mmap(-1, GUARD_BYTES + inside + GUARD_BYTES)
    _kept.append(memory)
    array = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for start in (0, GUARD_BYTES + inside):
        address = ctypes.c_void_p(array.ctypes.data + start)
        assert not libc.mprotect(address, ctypes.c_size_t(GUARD_BYTES), PROT_NONE)
    first = GUARD_BYTES + (inside - count) // 64 * 64
    return array[first : first + count]


def read_weights(path: Path, count: int) -> np.ndarray:
    memory = guarded(count)
    memory[:] = np.fromfile(path, np.uint8)
    return memory


def main(artifact: Path) -> None:
    interpreter._aligned_bytes = guarded
    interpreter._read_weights = read_weights
    executor = interpreter.PythonExecutor(artifact, threads=2)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, executor.vocabulary, min(40, executor.context - 1))
    weights = executor._spaces["weights"]
    for pattern in ("stored", "ones", "random", "damaged"):
        if pattern == "ones":
            weights[:] = 0xFF
        elif pattern == "random":
            weights[:] = rng.integers(0, 256, len(weights), np.uint8)
        elif pattern == "damaged":
            weights[:] = np.fromfile(artifact / "weights.bin", np.uint8)
            at = rng.integers(0, len(weights), len(weights) // 50)
            weights[at] = rng.integers(0, 256, len(at), np.uint8)
        for level in range(executor.plan.levels):
            executor.set_level(level)
            executor.set_position(0)
            executor.score(ids)
            executor.decode(int(ids[0]))
        print(pattern, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
