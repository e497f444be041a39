"""Asking the second-level cache for the weights of the next tiles while these are multiplied.

One `l2fetch` names a box of lines; a tile's run of a plane is one. The processor fetches it beside
its other work, and drops what it cannot have (Hexagon V67 Programmer's Reference Manual, l2fetch).
"""

from __future__ import annotations

from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel

_LINE = 128


def fetch_tiles(kernel: QuantizedKernel, first: Expr, tiles: int) -> None:
    """Ask for the codes of `tiles` tiles from `first` on, as far as the level reads them."""
    buffers, groups = kernel.weights.buffers, T.int32(kernel.spec.groups)
    if kernel.level is None:
        runs = [(buffers["codes"], groups)]
    else:
        planes = [buffers[name] for name in kernel.spec.format.plane_names]
        runs = [(buffers["base"], groups), *zip(planes, kernel.level, strict=True)]
    for i in range(tiles):
        tile = T.bind(T.min(first + i, kernel.spec.tiles - 1))
        for buffer, read in runs:
            _fetch(buffer, tile, read)


def _fetch(buffer: Any, tile: Expr, groups: Expr) -> None:
    """The first groups of a tile's run."""
    of_group = 1
    for extent in buffer.ty.shape[2:]:
        of_group *= int(extent)
    lines = T.cast(groups * (of_group // _LINE), "int64")
    # Lines in the lowest 16 bits, then the bytes of each, then from one to the next.
    box = lines | T.int64(_LINE << 16 | _LINE << 32)
    index = (tile, *(0 for _ in buffer.ty.shape[1:]))
    T.evaluate(
        T.call_llvm_intrin("void", "llvm.hexagon.Y5.l2fetch", T.address_of(buffer[index]), box)
    )
