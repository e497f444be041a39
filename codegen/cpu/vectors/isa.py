"""What a kernel needs to know about a processor's vector unit.

A kernel asks for these operations and never for a processor. Codes travel as *words*: a vector of
`lanes` uint32, each lane holding four consecutive input channels (bytes) of one output row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.pipeline import DEFAULT_PIPELINE, Pipeline

from .matrix_block import MatrixBlock
from .vector import lanes_of, shift_left, splat, vector_type
from .vector_blocks import reduce_lanes, variable
from .vector_math import activation, fast_exp


class ShortSums(Protocol):
    """Sums of products of codes up to 15 in 16 bits, which eight words of codes fit."""

    def add(self, i: int, codes: Expr, x: Expr) -> None:
        """Add to sums i the products of words of codes and of activations, as `dot` has them."""
        ...

    def total(self, i: int) -> Expr:
        """Sums i as int32 x lanes."""
        ...


@dataclass(frozen=True)
class VectorISA(ABC):
    """One way to use a vector unit; a target supplies subclasses.

    Attributes:
        name: part of kernel names, such as the instruction set's name.
        lanes: 32-bit lanes of a vector; divides the rows of a tile.
        registers: vector registers that the instruction set has.
        block_tiles: tiles of a matrix that many tokens are multiplied with together.
        signed_offset: what `dot_signed` wants added to signed codes; the kernel subtracts
            `signed_offset * sum(x)` from the result.
        folds_zeros: whether a matrix product turns unsigned codes into signed ones when it
            unpacks them (when `dot_signed` costs no more than `dot`), or else subtracts
            `zero * sum(x)` from every sum.
        upper_in_place: whether `dot_small` takes bytes of up to 240, so that the upper of two codes
            in a byte need not be shifted down.
        adds_short: whether a matrix product adds up products of codes of up to 15 in 16 bits before
            it widens them (`short_sums`): then codes are unpacked as they are, without zeros.
        shifts_bytes: whether one instruction shifts every byte.
        planes_to_nibbles: whether a kernel of one token puts codes of 4 bits in planes together two
            in a byte first, where one instruction selects bits of two vectors.
        integer_scales: whether a kernel of one token widens the scales and zeros of all rows of a
            tile together and scales in int32, where that saves converting the scales.
        takes_lanes: whether the dot takes one lane of a vector of activations for all of its
            lanes, so that activations of several steps are loaded together.
        scales_by_lane: whether the multiply-add of floats takes one lane of a vector for all lanes.
        masked_stores: whether one instruction stores the lanes that a mask chooses.
        block_sums: vectors of sums of a register block of a product with integers, where another
            number than those that fit the registers was measured to be best.
        pipeline: of linears on packed codes, as deep as was measured to be best.
        side_by_side: groups of activations that are rounded together, where it pays to fold the
            lanes of several vectors and to divide several scalars at once (`fold_lanes`,
            `of_each`), and to make bytes of four vectors of words.
    """

    name: str
    lanes: int
    registers: int
    block_tiles: int
    signed_offset: int
    folds_zeros: bool
    upper_in_place: bool = False
    adds_short: bool = False
    shifts_bytes: bool = False
    planes_to_nibbles: bool = False
    integer_scales: bool = False
    takes_lanes: bool = False
    scales_by_lane: bool = False
    masked_stores: bool = True
    block_sums: int | None = None
    pipeline: Pipeline = DEFAULT_PIPELINE
    side_by_side: int = 1

    @abstractmethod
    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        """acc[l] + sum over the four bytes c of codes[l][c] * x[l][c], exact in int32.

        Args:
            acc: int32 x lanes.
            codes: words of unsigned codes 0..126.
            x: int32 x lanes, the same four int8 activations (-127..127) in every lane.
        """

    def dot_small(self, acc: Expr, codes: Sequence[Expr], x: Sequence[Expr]) -> Expr:
        """acc and the dots of up to eight words of codes 0..15, or 0..240 where `upper_in_place`,
        each with its activations.
        """
        for words, activations in zip(codes, x, strict=True):
            acc = T.bind(self.dot(acc, words, activations))
        return acc

    @abstractmethod
    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        """Like `dot` for signed codes -127..127 that are stored as `code + signed_offset`."""

    @property
    def block(self) -> MatrixBlock:
        """What one `multiply` does."""
        return MatrixBlock(self.lanes, 1, 4)

    def multiply(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        """The multiply instruction of a matrix product on signed codes, exact in int32.

        Args:
            acc: int32 x lanes, sums of rows and tokens as `block` has them.
            codes: bytes of rows and channels, with `signed_offset` added.
            x: bytes of tokens and channels; of one token, the same in all lanes.
        """
        return self.dot_signed(acc, codes, x)

    def short_sums(self, count: int) -> ShortSums:
        """Sums, 0 at first, of `count` vectors of rows, where `adds_short`."""
        raise NotImplementedError

    def extract(self, words: Expr, left: int, mask: int) -> Expr:
        """Move every byte's bits left (right if negative) and keep those of the 8-bit mask."""
        return shift_left(words, left, self.lanes) & splat(T.uint32(mask * 0x01010101), self.lanes)

    def extract_lower(self, words: Expr, left: int, mask: int) -> Expr:
        """What `extract` gives, for the planes below the base: by a shift and a mask, which other
        execution units do than a combined instruction has; the mask merges with the or after it.
        """
        return shift_left(words, left, self.lanes) & splat(T.uint32(mask * 0x01010101), self.lanes)

    def widen(self, values: Expr, count: int) -> list[Expr]:
        """`count` bytes as vectors of int32."""
        firsts = range(0, count, self.lanes)
        parts = [lanes_of(values, first, self.lanes) for first in firsts]
        return [T.cast(part, vector_type("int32", self.lanes)) for part in parts]

    def fold_lanes(
        self,
        vectors: Sequence[Expr],
        lanes: int,
        combine: Callable[[Expr, Expr], Expr],
        dtype: str = "float32",
    ) -> list[Expr]:
        """The lanes of each vector folded to a scalar in a variable."""
        return [reduce_lanes(vector, lanes, combine, dtype) for vector in vectors]

    def of_each(self, function: Callable[[Expr, int], Expr], scalars: Sequence[Expr]) -> list[Expr]:
        """A function of float32 x lanes of each of the scalars, in variables."""
        return [variable(function(scalar, 1), 1) for scalar in scalars]

    def exp(self, x: Expr, lanes: int) -> Expr:
        """The exponential of float32 x lanes, arguments clamped to [-87.33, 88.37]."""
        return fast_exp(x, lanes)

    def inverse_root(self, x: Expr) -> Expr:
        """1 / sqrt(x) of a float32."""
        return T.float32(1.0) / T.sqrt(x)

    def gated(self, name: str, gate: Expr, up: Expr, lanes: int) -> Expr:
        """activation(gate) * up of float32 x lanes, by the activation's name."""
        return activation(name, gate, lanes, self.exp) * up

    def scaled(self, count: Expr, a: Expr, b: Expr, lanes: int) -> Expr:
        """The product of int32 x lanes and two factors, float32 x lanes."""
        return T.cast(count, vector_type("float32", lanes)) * a * b

    def where_below(self, a: Expr, b: Expr, x: Expr, y: Expr, lanes: int) -> Expr:
        """The float32 x lanes x where a < b, of int32 x lanes, else y."""
        return tirx.Select(a < b, x, y)
