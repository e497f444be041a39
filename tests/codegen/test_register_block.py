"""Blocks of a matrix product fit the registers of every vector unit."""

from __future__ import annotations

import pytest

from morendo.codegen.cpu.vectors.register_block import RegisterBlock, register_block
from morendo.targets.arm import isa as arm
from morendo.targets.x86 import isa as x86

ROW_TILE = 16
ALL = [*arm.ALL, *x86.ALL]


@pytest.mark.parametrize("isa", ALL, ids=lambda isa: isa.name)
@pytest.mark.parametrize("registers_a_sum", [1, 2])
@pytest.mark.parametrize("least_tiles", [1, 2])
def test_sums_and_operands_fit_the_registers(isa, registers_a_sum: int, least_tiles: int) -> None:
    tiles, halves = max(isa.block_tiles, least_tiles), ROW_TILE // isa.lanes
    block = register_block(isa, halves, tiles, 256, registers_a_sum)
    assert halves % block.halves == 0
    assert block.tokens % isa.block.tokens == 0
    rows = tiles * block.halves
    if registers_a_sum > 1 and isa.block_sums:
        assert block.tokens * rows == isa.block_sums
    else:
        assert registers_a_sum * block.tokens * rows + rows + 1 <= isa.registers


def test_blocks_are_as_square_as_fits() -> None:
    assert register_block(arm.NEON_DOT, 4, 1, 256, 2) == RegisterBlock(4, 2)
    assert register_block(arm.NEON_I8MM, 4, 2, 256, 2) == RegisterBlock(4, 1)
    assert register_block(x86.AVX512_VNNI, 1, 2, 256, 2) == RegisterBlock(4, 1)
    assert register_block(x86.AVX512, 1, 1, 256, 2) == RegisterBlock(8, 1)
    assert register_block(x86.AVX2, 2, 1, 256, 2) == RegisterBlock(4, 1)
    assert register_block(x86.AVX2, 2, 2, 256, 2) == RegisterBlock(2, 1)


def test_a_block_has_no_more_tokens_than_there_are() -> None:
    assert register_block(arm.NEON_DOT, 4, 1, 3, 2).tokens == 3
