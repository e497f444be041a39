"""Small vocabulary for kernels written with TVM's IRBuilder: vectors, registers, loads, stores."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of a vector of `lanes` elements."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def ramp(first: Expr | int, lanes: int) -> Expr | int:
    """The indices first, first+1, ...; one lane is a scalar."""
    return T.ramp(first, 1, lanes) if lanes > 1 else first


def load(buffer, index: Sequence, lanes: int) -> Expr:
    """`lanes` consecutive elements of a buffer, starting at `index`."""
    *outer, last = index
    return buffer[(*outer, ramp(last, lanes))]


def store(buffer, index: Sequence, value: Expr, lanes: int) -> None:
    """Write `lanes` consecutive elements of a buffer."""
    *outer, last = index
    T.buffer_store(buffer, value, [*outer, ramp(last, lanes)])


def load_words(buffer, index: Sequence, lanes: int) -> Expr:
    """4*lanes bytes of a byte buffer as uint32 x lanes."""
    return T.reinterpret(vector_type("uint32", lanes), load(buffer, index, 4 * lanes))


def lane_mask(first: Expr | int, end: int, lanes: int) -> Expr:
    """Which of the elements first, first+1, ... are below `end`."""
    return T.ramp(first, 1, lanes) < T.broadcast(T.int32(end), lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """The scalar in every lane."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def splat_float(value: float, lanes: int) -> Expr:
    """A float32 constant in every lane."""
    return splat(T.float32(value), lanes)


def lanes_of(values: Expr, first: int, count: int) -> Expr:
    """`count` lanes of a vector from `first` on."""
    return tirx.Shuffle([values], list(range(first, first + count)))


def shift_left(words: Expr, left: int, lanes: int) -> Expr:
    """Shift words by a constant, to the right where it is negative; bits cross bytes."""
    if left == 0:
        return words
    count = splat(T.uint32(abs(left)), lanes)
    return words << count if left > 0 else words >> count


def settled(values: Expr, lanes: int) -> Expr:
    """Bytes as they are, which LLVM computes before it uses them: it would move the masks of later
    instructions into the expression, and no longer see a selection of bits there.
    """
    floats = vector_type("float32", lanes // 4)
    fence = f"llvm.arithmetic.fence.v{lanes // 4}f32"
    fenced = T.call_llvm_pure_intrin(floats, fence, T.reinterpret(floats, values))
    return T.reinterpret(str(values.ty), fenced)


def prefetch(buffer, index: Sequence) -> None:
    """Ask for the cache line at `index`, which may lie past the end of the buffer."""
    read, keep_in_all_levels, data_cache = T.int32(0), T.int32(3), T.int32(1)
    address = T.address_of(buffer[tuple(index)])
    T.evaluate(
        T.call_llvm_intrin("void", "llvm.prefetch", address, read, keep_in_all_levels, data_cache)
    )


class Registers:
    """Mutable vectors that LLVM keeps in machine registers.

    Each is a stack slot of its own, addressed by constants only.
    """

    def __init__(self, count: int, dtype: str, lanes: int) -> None:
        self.lanes = lanes
        self._slots = [T.alloc_buffer((lanes,), dtype, layout=None) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, index: int) -> Expr:
        return load(self._slots[index], (0,), self.lanes)

    def __setitem__(self, index: int, value: Expr) -> None:
        store(self._slots[index], (0,), value, self.lanes)
