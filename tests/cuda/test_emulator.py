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
HALVES = """
extern "C" __global__ void {name}(int* x_ptr, int* out_ptr) {{
  __shared__ alignas(16) int part[64];
  int i = threadIdx.x;
  unsigned one[4] = {{0x3C003C00u, 0x3C003C00u, 0x3C003C00u, 0x3C003C00u}};
  float sums[4] = {{0, 0, 0, 0}};
  {body}
  out_ptr[i] = (int)(sums[0] + sums[1] + sums[2] + sums[3]);
}}
"""
SHOW = "mr_wait_copies_0(); mr_show_to_warpgroups(); __syncthreads(); "
PRODUCT = "mr_multiply_rows_8(sums, one, part, 128);"
PRODUCTS = {
    "right_product": f"{COPY} {SHOW} mr_begin_products(); {PRODUCT} mr_commit_products(); "
    "mr_wait_products();",
    "product_on_the_way": f"{COPY} {SHOW} mr_begin_products(); {PRODUCT} mr_commit_products(); "
    "sums[0] += 0; out_ptr[i] = (int)sums[0]; mr_wait_products(); sums[1] = out_ptr[i];",
    "halves_written_before": f"{COPY} {SHOW} mr_begin_products(); {PRODUCT} mr_commit_products(); "
    "one[0] = 0; mr_wait_products();",
    "not_shown": f"{COPY} mr_wait_copies_0(); __syncthreads(); mr_begin_products(); {PRODUCT} "
    "mr_commit_products(); mr_wait_products();",
    "no_fence": f"{COPY} {SHOW} {PRODUCT} mr_commit_products(); mr_wait_products();",
    "not_committed": f"{COPY} {SHOW} mr_begin_products(); {PRODUCT} mr_wait_products();",
    "product_not_waited_for": f"{COPY} {SHOW} mr_begin_products(); {PRODUCT} mr_commit_products();",
    "misaligned_product": f"{COPY} {SHOW} mr_begin_products(); "
    "mr_multiply_rows_8(sums, one, part + 1, 128); mr_commit_products(); mr_wait_products();",
}
LAST = {
    "never_waits": "asynchronous copies nobody waited for",
    "overrun_of_shared": "signal 11",
    "overrun_of_input": "signal 11",
    "overrun_of_output": "signal 11",
    "misaligned": "misaligned asynchronous copy",
    "not_shown": "a product reads what is not shown to warpgroups",
    "no_fence": "a product without a fence of its registers",
    "not_committed": "products that were not committed",
    "product_not_waited_for": "products nobody waited for",
    "misaligned_product": "a misaligned product",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = [KERNEL.format(name=name, body=body) for name, body in BODIES.items()]
    sources += [HALVES.format(name=name, body=body) for name, body in PRODUCTS.items()]
    out: Path = tmp_path_factory.mktemp("planted") / "kernels.so"
    return ctypes.CDLL(str(emulate(sources, out)))


def results(kernels: ctypes.CDLL, name: str) -> list[np.ndarray]:
    """What a kernel gives, for each order of threads and copies that arrive late or at once."""
    found, threads = [], 128 if name in PRODUCTS else THREADS
    given = np.full(64, 0x3C003C00) if name in PRODUCTS else np.arange(64)  # halves of 1
    for order, late in ORDERS:
        x, out = Guarded(given.astype(np.int32)), Guarded(np.zeros(threads, np.int32))
        cells = [ctypes.c_void_p(one.address) for one in (x, out)]
        pointers = (ctypes.c_void_p * 2)(*[ctypes.addressof(cell) for cell in cells])
        grid, block = (ctypes.c_uint * 3)(1, 1, 1), (ctypes.c_uint * 3)(threads, 1, 1)
        launch, sizes = getattr(kernels, f"{name}_launch"), (grid, block)
        in_fork(name, functools.partial(launch, *sizes, 0, pointers, order, late))
        found.append(out.array.copy())
    return found


def test_a_right_kernel_is_right(kernels: ctypes.CDLL) -> None:
    for got in results(kernels, "right"):
        np.testing.assert_array_equal(got, 63)
    for got in results(kernels, "right_product"):
        np.testing.assert_array_equal(got, 4 * 16)


@pytest.mark.parametrize("name", LAST)
def test_defects_that_stop_a_kernel(kernels: ctypes.CDLL, name: str) -> None:
    with pytest.raises(AssertionError, match=LAST[name]):
        results(kernels, name)


@pytest.mark.parametrize("name", ["no_barrier", "no_wait", "too_little_wait", "uninitialised"])
def test_defects_that_give_wrong_numbers(kernels: ctypes.CDLL, name: str) -> None:
    """Poison is read, in one order of threads or with late copies at least."""
    assert any((got != 63).any() for got in results(kernels, name))


@pytest.mark.parametrize("name", ["product_on_the_way", "halves_written_before"])
def test_products_that_were_not_made_yet(kernels: ctypes.CDLL, name: str) -> None:
    assert any((got != 4 * 16).any() for got in results(kernels, name))
