"""Asking the second-level cache for the weights of the next tiles while these are multiplied.

One `l2fetch` names a box of lines; a tile's run of a plane is one. The processor fetches it beside
its other work, and drops what it cannot have (Hexagon V67 Programmer's Reference Manual, l2fetch).
"""

from __future__ import annotations

import math
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel

_LINE = 128


def fetch_tiles(kernel: QuantizedKernel, first: Expr, tiles: int) -> None:
    """Ask for the codes of `tiles` tiles from `first` on, as far as the level reads them."""
    for i in range(tiles):
        tile = T.bind(T.min(first + i, kernel.spec.tiles - 1))
        for name, read in runs_of(kernel):
            _fetch(kernel.weights.buffers[name], tile, read)


def runs_of(kernel: QuantizedKernel) -> list[tuple[str, Expr]]:
    """The buffers that have codes, and how many groups of a tile's run the level reads."""
    groups = T.int32(kernel.spec.groups)
    if kernel.level is None:
        return [("codes", groups)]
    planes = zip(kernel.spec.format.plane_names, kernel.level, strict=True)
    return [("base", groups), *planes]


def group_bytes(buffer: Any) -> int:
    """Bytes of a group of a tile in a buffer of codes."""
    return math.prod(map(int, buffer.ty.shape[2:]))


def _fetch(buffer: Any, tile: Expr, groups: Expr) -> None:
    """The first groups of a tile's run."""
    lines = T.cast(groups * (group_bytes(buffer) // _LINE), "int64")
    # Lines in the lowest 16 bits, then the bytes of each, then from one to the next.
    box = lines | T.int64(_LINE << 16 | _LINE << 32)
    index = (tile, *(0 for _ in buffer.ty.shape[1:]))
    T.evaluate(
        T.call_llvm_intrin("void", "llvm.hexagon.Y5.l2fetch", T.address_of(buffer[index]), box)
    )
