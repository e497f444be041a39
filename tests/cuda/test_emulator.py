"""The emulator finds planted defects: each kernel is right but for one thing."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.emulated import ORDERS, Guarded, emulate, in_fork, needs_compiler

pytestmark = needs_compiler
THREADS = 64

KERNEL = """
extern "C" __global__ void {name}(int* x_ptr, int* out_ptr) {{
  __shared__ alignas(64) int part[64];
  int i = threadIdx.x;
  {body}
}}
"""
COPY = "if (i < 16) mr_copy_words_later(part + 4 * i, x_ptr + 4 * i); mr_commit_copies();"
SUM = "out_ptr[i] = part[i] + part[63 - i];"
BODIES = {
    "right": f"{COPY} mr_wait_copies_0(); __syncthreads(); {SUM}",
    "no_barrier": f"{COPY} mr_wait_copies_0(); {SUM}",
    "no_wait": f"{COPY} __syncthreads(); {SUM} mr_wait_copies_0();",
    "too_little_wait": f"{COPY} mr_wait_copies_1(); __syncthreads(); {SUM} mr_wait_copies_0();",
    "never_waits": f"{COPY} __syncthreads(); out_ptr[i] = 0;",
    "uninitialised": f"if (i < 63) part[i] = x_ptr[i]; __syncthreads(); {SUM}",
    "overrun_of_shared": f"part[i + 1] = x_ptr[i]; __syncthreads(); {SUM}",
    "overrun_of_input": f"part[i] = x_ptr[i + 1]; __syncthreads(); {SUM}",
    "overrun_of_output": "part[i] = x_ptr[i]; __syncthreads(); out_ptr[i + 1] = part[i];",
    "misaligned": "mr_copy_words_later(part, x_ptr + 1); mr_commit_copies(); mr_wait_copies_0();",
}
LAST = {
    "never_waits": "asynchronous copies nobody waited for",
    "overrun_of_shared": "signal 11",
    "overrun_of_input": "signal 11",
    "overrun_of_output": "signal 11",
    "misaligned": "misaligned asynchronous copy",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = [KERNEL.format(name=name, body=body) for name, body in BODIES.items()]
    out: Path = tmp_path_factory.mktemp("planted") / "kernels.so"
    return ctypes.CDLL(str(emulate(sources, out)))


def results(kernels: ctypes.CDLL, name: str) -> list[np.ndarray]:
    """What a kernel gives, for each order of threads and copies that arrive late or at once."""
    found = []
    for order, late in ORDERS:
        x, out = Guarded(np.arange(THREADS, dtype=np.int32)), Guarded(np.zeros(THREADS, np.int32))
        cells = [ctypes.c_void_p(one.address) for one in (x, out)]
        pointers = (ctypes.c_void_p * 2)(*[ctypes.addressof(cell) for cell in cells])
        grid, block = (ctypes.c_uint * 3)(1, 1, 1), (ctypes.c_uint * 3)(THREADS, 1, 1)
        launch, sizes = getattr(kernels, f"{name}_launch"), (grid, block)
        in_fork(name, functools.partial(launch, *sizes, 0, pointers, order, late))
        found.append(out.array.copy())
    return found


def test_a_right_kernel_is_right(kernels: ctypes.CDLL) -> None:
    for got in results(kernels, "right"):
        np.testing.assert_array_equal(got, 63)


@pytest.mark.parametrize("name", [name for name in BODIES if name in LAST])
def test_defects_that_stop_a_kernel(kernels: ctypes.CDLL, name: str) -> None:
    with pytest.raises(AssertionError, match=LAST[name]):
        results(kernels, name)


@pytest.mark.parametrize("name", ["no_barrier", "no_wait", "too_little_wait", "uninitialised"])
def test_defects_that_give_wrong_numbers(kernels: ctypes.CDLL, name: str) -> None:
    """Poison is read, in one order of threads or with late copies at least."""
    assert any((got != 63).any() for got in results(kernels, name))
