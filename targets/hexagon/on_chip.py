"""The copy stage: codes of the next blocks of tiles on their way to memory beside the vector units.

A task has room for the block that it multiplies and for those on their way, in a ring. It begins a
copy with `on_chip_copy` and waits with `on_chip_wait` (`on_chip.c`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.dequantize import QuantizedWeights
from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel
from morendo.codegen.cpu.kernels.row_block import last_tile
from morendo.ir.errors import CompileError

from .fetch_ahead import group_bytes, runs_of
from .isa import HvxISA

_UNITS = 6
"""Vector units at most, each of which has a task in the memory (`npu.toml`)."""


@dataclass(frozen=True)
class StagedTiles:
    """The ring of a task.

    Attributes:
        kernel: whose tiles are copied.
        ahead: blocks on their way.
        weights: the ring, as tiles of weights: slot 0's, slot 1's, ...
        tiles: of a block.
        first: the task's first tile.
        count: its blocks.
    """

    kernel: QuantizedKernel
    ahead: int
    weights: QuantizedWeights
    tiles: int
    first: Expr
    count: Expr

    @classmethod
    def of(
        cls, kernel: QuantizedKernel, isa: HvxISA, tiles: int, first: Expr, count: Expr
    ) -> StagedTiles:
        """Room for a task, and the first copies begun.

        Raises:
            CompileError: when the memory has no room for the blocks of all units.
        """
        groups, buffers = kernel.spec.groups, kernel.weights.buffers
        names = [name for name, _ in runs_of(kernel)]
        ahead, slots = isa.pipeline.copy, isa.pipeline.copy + 1
        tile_bytes = groups * sum(group_bytes(buffers[name]) for name in names)
        _require_room(kernel, isa.on_chip_bytes, _UNITS * slots * tiles * tile_bytes)
        ring = {}
        for name in names:
            ty = buffers[name].ty
            shape = (slots * tiles, groups, *map(int, ty.shape[2:]))
            ring[name] = T.alloc_buffer(shape, str(ty.dtype), layout=None)
        weights = replace(kernel.weights, buffers={**buffers, **ring})
        staged = cls(kernel, ahead, weights, tiles, first, count)
        for index in range(ahead):
            staged._begin(T.int32(index))
        return staged

    def block(self, index: Expr) -> tuple[QuantizedWeights, Sequence[Expr]]:
        """Where the codes of a block are, once they are; the copy of a later one is begun."""
        self._begin(T.bind(index + self.ahead))
        later = T.min(self.count - 1 - index, self.ahead)
        copies = self.tiles * len(runs_of(self.kernel))
        T.evaluate(T.call_extern("void", "on_chip_wait", later * copies))
        return self.weights, [T.bind(self._place(index) + i) for i in range(self.tiles)]

    def _place(self, index: Expr) -> Expr:
        """The first tile of a block's slot."""
        return T.floormod(index, self.ahead + 1) * self.tiles

    def _begin(self, index: Expr) -> None:
        """Begin to copy a block, if the task has one of that number."""
        kernel = self.kernel
        with T.If(index < self.count), T.Then():
            for i in range(self.tiles):
                tile = T.bind(last_tile(kernel, self.first + index * self.tiles + i, self.tiles))
                for name, read in runs_of(kernel):
                    source, target = kernel.weights.buffers[name], self.weights.buffers[name]
                    start = [0] * (len(target.ty.shape) - 1)
                    T.evaluate(
                        T.call_extern(
                            "void", "on_chip_copy",
                            T.address_of(target[(self._place(index) + i, *start)]),
                            T.address_of(source[(tile, *start)]),
                            read * group_bytes(source),
                        )
                    )  # fmt: skip


def _require_room(kernel: QuantizedKernel, room: int, nbytes: int) -> None:
    spec = kernel.spec
    if nbytes > room:
        raise CompileError(
            f"blocks of tiles do not fit the memory beside the vector units (got {nbytes >> 10} "
            f"KiB for {_UNITS} units, need at most {room >> 10})",
            where=f"a matrix of {spec.out_features} x {spec.in_features}, {spec.format.name}",
            hint="leave the stage copy out, or make it shallower",
        )
