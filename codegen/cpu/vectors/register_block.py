"""Which part of a matrix product a kernel holds in registers at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .isa import VectorISA

_FEW_TOKENS, _MANY_TOKENS = 4, 16


@dataclass(frozen=True)
class RegisterBlock:
    """Sums that are in registers together: some tokens times some rows of every tile.

    Attributes:
        tokens: tokens of the block.
        halves: vectors of rows that it takes of a tile; they divide those that a tile has.
    """

    tokens: int
    halves: int


def register_block(
    isa: VectorISA, halves: int, tiles: int, max_tokens: int, registers_a_sum: int
) -> RegisterBlock:
    """The block of the fewest loads whose sums stay in registers beside what they are added from.

    Operands are loaded once for all sums of their row or token, so a block is as square as the
    instruction set's registers allow: four tokens by as many rows as fit, then more tokens.

    Args:
        halves: vectors of a tile's rows.
        tiles: tiles that are multiplied together.
        max_tokens: the block has no more.
        registers_a_sum: 2 where a sum of floats has one of integers beside it, else 1.
    """

    def fits(tokens: int, halves: int) -> bool:
        sums, operands = tokens * tiles * halves, tiles * halves + 1
        if registers_a_sum > 1 and isa.block_sums:
            return sums <= isa.block_sums
        return registers_a_sum * sums + operands <= isa.registers

    divisors = [part for part in range(halves, 0, -1) if halves % part == 0]
    least = isa.block.tokens
    sizes = [(max(tokens, least), part) for tokens in (_FEW_TOKENS, 2) for part in divisors]
    tokens, part = next((size for size in sizes if fits(*size)), (least, 1))
    while tokens < _MANY_TOKENS and fits(2 * tokens, part):
        tokens *= 2
    return RegisterBlock(min(tokens, max_tokens), part)
