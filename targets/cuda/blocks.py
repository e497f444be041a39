"""Building blocks of kernels: parameters, launches, loops over a block's threads, reductions.

Kernels are TIR written with TVM's IR builder. Launch sizes are constants, those of the most tokens:
a block whose token is not there ends at once. What changes from call to call (the number of tokens,
the position, the level) is read from memory, so that a launch can be recorded and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from .intrinsics import WHOLE

WARP = 32
BATCH = 16
"""Loads that a thread asks for before it waits for the first, see `batched`."""
_ALL_LANES = 0xFFFFFFFF
_X, _Y = "blockIdx.x", "blockIdx.y"


@dataclass(frozen=True)
class State:
    """A parameter that holds one int32 in memory."""

    buffer: Any

    def read(self) -> Any:
        """The number, in a variable; inside of a launch."""
        return T.bind(self.buffer[0])


class Kernel:
    """A PrimFunc under construction; `function` is set when the `kernel` context ends."""

    function: tirx.PrimFunc

    def buffer(self, name: str, shape: Sequence[Any], dtype: str = "float32") -> Any:
        """Declare the next parameter: a dense row-major buffer; an extent may be a `count`."""
        return T.arg(name, T.buffer(tuple(shape), dtype, layout=None))

    def state(self, name: str) -> State:
        """Declare the next parameter: an int32 in memory."""
        return State(self.buffer(name, (1,), "int32"))

    def count(self, name: str, variable: Any) -> Any:
        """Declare the next parameter: an int32 that buffers have as an extent."""
        return T.arg(name, variable)


@contextmanager
def kernel(name: str) -> Iterator[Kernel]:
    """Build a PrimFunc called `name` from the statements of the with block."""
    built = Kernel()
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            yield built
        built.function = builder.get()


@contextmanager
def launch(blocks: Sequence[int], threads: int) -> Iterator[tuple[Any, ...]]:
    """Run what is built inside on a grid; gives the block's indices (x, y), then the thread."""
    with ExitStack() as stack:
        names = (_X, _Y)[: len(blocks)]
        sizes = zip((*names, "threadIdx.x"), (*blocks, threads), strict=True)
        yield tuple(stack.enter_context(T.launch_thread(name, size)) for name, size in sizes)


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Build what is inside for threads where the condition holds."""
    with T.If(condition), T.Then():
        yield


def strided(thread: Any, threads: int, count: int, body: Callable[[Any], None]) -> None:
    """Call `body(i)` for all i below `count`, each on one thread of the block."""
    with T.serial(0, -(-count // threads)) as step:
        index = T.bind(step * threads + thread)
        if count % threads:
            with when(index < count):
                body(index)
        else:
            body(index)


def batched(count: int, body: Callable[[Any], None]) -> None:
    """Call `body(i)` for all i below `count` in order, many of them without a jump between: so the
    compiler asks memory for all that they load before it waits.
    """
    size = next(size for size in range(min(count, BATCH), 0, -1) if count % size == 0)
    with T.serial(0, count // size) as outer:
        for i in range(size):
            body(T.bind(outer * size + i))


def local(count: int, value: Any, dtype: str = "float32") -> Any:
    """Registers of a thread, each set to a value."""
    buffer = T.alloc_buffer((count,), dtype, scope="local", layout=None)
    for i in range(count):
        T.buffer_store(buffer, value, [i])
    return buffer


def variable(value: Any) -> Any:
    """A value read once, here: what is stored afterwards does not change it."""
    return local(1, value, str(value.ty.dtype))[0]


def shared(shape: Sequence[int], dtype: str = "float32") -> Any:
    """Memory of the block, all of it even where only addresses in it are taken."""
    buffer = T.alloc_buffer(tuple(shape), dtype, scope="shared", layout=None)
    call(WHOLE, buffer.data)
    return buffer


def barrier() -> None:
    """Wait until all threads of the block are here."""
    T.evaluate(T.tvm_storage_sync("shared"))


def add(a: Any, b: Any) -> Any:
    """Sum, for reductions."""
    return a + b


def across(value: Any, steps: Sequence[int], combine: Callable[[Any, Any], Any]) -> Any:
    """Fold a value over lanes of a warp whose numbers differ in the bits `steps`; all get it."""
    dtype = str(value.ty.dtype)
    total = local(1, value, dtype)
    for step in steps:
        other = T.tvm_warp_shuffle_xor(T.uint32(_ALL_LANES), total[0], step, WARP, WARP)
        T.buffer_store(total, combine(total[0], other), [0])
    return T.bind(total[0])


def from_lane(value: Any, lane: Any) -> Any:
    """The value that another lane of the warp has; all lanes come here, with the same `lane`."""
    return T.tvm_warp_shuffle(T.uint32(_ALL_LANES), value, lane, WARP, WARP)


def across_warp(value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Fold a value over a warp; all lanes get it."""
    return across(value, (16, 8, 4, 2, 1), combine)


def across_block(
    value: Any, thread: Any, threads: int, combine: Callable[[Any, Any], Any] = add
) -> Any:
    """Fold a value over the block; all threads get it. All of them have to come here."""
    folded = across_warp(value, combine)
    parts = shared((threads // WARP,), str(folded.ty.dtype))
    barrier()  # in a loop the parts of the round before are read until here
    with when(thread % WARP == 0):
        T.buffer_store(parts, folded, [thread // WARP])
    barrier()
    total = local(1, parts[0], str(folded.ty.dtype))
    for warp in range(1, threads // WARP):
        T.buffer_store(total, combine(total[0], parts[warp]), [0])
    return T.bind(total[0])


def call(name: str, *arguments: Any) -> None:
    """Call a device function that gives nothing."""
    T.evaluate(T.call_extern("void", name, *arguments))


def function(name: str, *arguments: Any) -> Any:
    """A float32 function of CUDA's library that is exact to a few units in the last place.

    TVM's own names for them mean the fast ones, which are wrong for large arguments.
    """
    return T.call_pure_extern("float32", name, *arguments)


def activation(name: str, x: Any) -> Any:
    """`x` through an activation of `ir/reference_ops.py`; x is a variable."""
    if name == "silu":
        return x / (T.float32(1.0) + function("expf", -x))
    if name == "gelu":
        bent = function("erff", x * T.float32(0.7071067811865476))
        return T.float32(0.5) * x * (T.float32(1.0) + bent)
    if name == "gelu_tanh":
        angle = T.float32(0.7978845608028654) * (x + T.float32(0.044715) * x * x * x)
        return T.float32(0.5) * x * (T.float32(1.0) + function("tanhf", angle))
    return T.max(x, T.float32(0.0))
