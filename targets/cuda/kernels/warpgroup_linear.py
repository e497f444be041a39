"""Quantized linear kernels with halves for many tokens, on GPUs whose warpgroups multiply (9.0).

Four warps multiply 64 rows with all tokens of a block in one instruction, in the background. Codes
are unpacked to registers as for one warp's products, activations are read from shared memory, where
they lie eight channels after eight: one read serves four warps, and unpacking goes on meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.targets.cuda.blocks import Kernel, call
from morendo.targets.cuda.device_code import RESIDENT_BLOCKS
from morendo.targets.cuda.intrinsics import (
    BEGIN_PRODUCTS,
    COMMIT_PRODUCTS,
    SHOW_TO_WARPGROUPS,
    WAIT_PRODUCTS,
    multiply_rows,
    settle_sums,
)

from .half_tensor_linear import ALWAYS_AHEAD, HALF_BYTES, HalfBlock
from .pipeline import Pipeline
from .problem import Problem
from .tensor_linear import run_blocks
from .tensor_shape import COPY, PER_WARP, Shape

_PART = COPY // HALF_BYTES  # channels that are read together
_GAP = 8  # words behind a part, so that the parts of two tokens are written to all banks


def run_warpgroup_blocks(k: Kernel, spec: LinearSpec, pipeline: Pipeline) -> None:
    """Build the work of `spec` in the kernel under construction; channels of activations lie where
    `place_of_channel` says.
    """
    T.func_attr({RESIDENT_BLOCKS: 2})
    shape = WarpgroupShape.of(spec, pipeline, ALWAYS_AHEAD, HALF_BYTES)
    run_blocks(WarpgroupBlock, Problem.declare(k, spec, halves=True, reordered=True), shape)


@dataclass(frozen=True)
class WarpgroupShape(Shape):
    """Activations lie by parts of eight channels: in each 16 bytes of every token."""

    MOST_TOKENS: ClassVar[int] = 128

    @property
    def activation_words(self) -> tuple[int, int]:
        return self.spec.format.group_size // _PART, self.tokens * (COPY // 4) + _GAP


@dataclass(frozen=True)
class WarpgroupBlock(HalfBlock):
    """The work of a block: `x` is uint32 [slot, part, words of all tokens]."""

    @property
    def multiplies_later(self) -> bool:
        return True

    def _part_of_token(self, slot: Any, token: Any, part: Any) -> Any:
        return self.x[slot, part, token * (COPY // 4)]

    def show(self) -> None:
        call(SHOW_TO_WARPGROUPS)

    def multiply(self, turn: Any, slot: Any) -> None:
        apart = T.int32(4 * self.shape.activation_words[1])
        self._settle_sums()
        call(BEGIN_PRODUCTS)
        for p in range(PER_WARP):
            for block in range(self.blocks):
                for h in range(2):
                    sums = T.address_of(self.sums[self.place(p, 0, 0)])
                    halves = T.address_of(self.codes[self._register(p, block, h)])
                    part = T.address_of(self.x[slot, 2 * (2 * block + h), 0])
                    call(multiply_rows(self.shape.tokens), sums, halves, part, apart)
        call(COMMIT_PRODUCTS)

    def settle(self) -> None:
        call(WAIT_PRODUCTS)
        self._settle_sums()

    def _settle_sums(self) -> None:
        for p in range(PER_WARP):
            call(settle_sums(self.shape.tokens), T.address_of(self.sums[self.place(p, 0, 0)]))
