"""The likeliest tokens, found where the logits are: what a host draws from instead of all of them.

A block sorts a part of the vocabulary and keeps the first, further launches put such lists
together until there is one. Each list ends with the weight of all that it was made of, so that a
host knows how much of the probability is not in it. Sorting is by a bitonic network (Batcher 1968).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.ir.plan import CANDIDATES
from morendo.targets.cuda.blocks import (
    Kernel,
    across_block,
    barrier,
    call,
    function,
    kernel,
    launch,
    shared,
    when,
)
from morendo.targets.cuda.intrinsics import ORDER_PAIR

from .likeliest import HIGH, LARGEST, key_of

WIDTH = CANDIDATES + 1
"""Numbers of a list: int64 keys, the likeliest first, then the bits of a float64 weight."""
_THREADS = 1024
_SORTED = 2 * _THREADS
_STAGES = _SORTED.bit_length() - 1
_JOINED = _SORTED // CANDIDATES
_NOBODY = -LARGEST * HIGH  # the key of no token, below all others
_SIGN = -LARGEST - 1  # the bit of an int32


def list_counts(vocabulary: int) -> list[int]:
    """How many lists each launch leaves."""
    counts = [-(-vocabulary // _SORTED)]
    while counts[-1] > 1:
        counts.append(-(-counts[-1] // _JOINED))
    return counts


def candidates_of_logits(isa: Any, *, vocabulary: int) -> tirx.PrimFunc:
    """A list of each part of the vocabulary.

    Parameters of the kernel: logits f32[1, V], found i64[L, WIDTH], sharpness i32[1], the bits of
    the float that logits are multiplied with for their weights; 0 where no lists are wanted.
    """
    lists = list_counts(vocabulary)[0]
    with kernel(kernel_name("candidates_of_logits", v=vocabulary)) as k:
        logits = k.buffer("logits", (1, vocabulary))

        def key(part: Any, slot: Any) -> Any:
            token = T.bind(part * _SORTED + slot)
            logit = T.bind(logits[0, T.min(token, T.int32(vocabulary - 1))])
            return tirx.Select(token < vocabulary, key_of(logit, token), T.int64(_NOBODY))

        def weigh(_: Any, thread: Any, sorted_: Any, weight: Callable[[Any], Any]) -> Any:
            return weight(sorted_[thread]) + weight(sorted_[thread + _THREADS])

        _find(k, lists, key, weigh)
    return k.function


def candidates_of_lists(isa: Any, *, lists: int) -> tirx.PrimFunc:
    """Lists put together, _JOINED at a time.

    Parameters of the kernel: lists i64[L, WIDTH], found i64[ceil(L / _JOINED), WIDTH], sharpness
    i32[1] as above.
    """
    with kernel(kernel_name("candidates_of_lists", l=lists)) as k:
        given = k.buffer("lists", (lists, WIDTH), "int64")

        def at(index: Any, slot: Any) -> Any:
            return given[T.min(index, T.int32(lists - 1)), slot]

        def key(part: Any, slot: Any) -> Any:
            index = T.bind(part * _JOINED + slot // CANDIDATES)
            found = T.bind(at(index, slot % CANDIDATES))
            return tirx.Select(index < lists, found, T.int64(_NOBODY))

        def weigh(part: Any, thread: Any, _: Any, weight: Callable[[Any], Any]) -> Any:
            index = T.bind(part * _JOINED + thread % _JOINED)
            own = weight(T.bind(at(index, 0))) * T.reinterpret("float64", at(index, CANDIDATES))
            wanted = tirx.all(thread < _JOINED, index < lists)
            return tirx.Select(wanted, own, T.float64(0.0))

        _find(k, -(-lists // _JOINED), key, weigh)
    return k.function


def _find(k: Kernel, lists: int, key: Callable[..., Any], weigh: Callable[..., Any]) -> None:
    """The parameters and the launch that leave a number of lists.

    Args:
        key: of a list's number and a place before sorting.
        weigh: what a thread adds to a list's weight; of the list's number, the thread, the sorted
            keys, and a function that gives a key's weight, 1 for the likeliest.
    """
    found = k.buffer("found", (lists, WIDTH), "int64")
    sharpness = k.state("sharpness")
    with launch([lists], _THREADS) as (part, thread):
        sharp = T.bind(T.reinterpret("float32", sharpness.read()))
        wanted = tirx.Select(sharp == T.float32(0.0), T.int32(0), T.int32(1))
        with T.serial(0, wanted):  # no condition: TVM puts no barriers into one
            keys = shared((_SORTED,), "int64")
            for slot in (thread, thread + _THREADS):
                T.buffer_store(keys, key(part, slot), [slot])
            barrier()
            _sort(keys, thread)
            largest = T.bind(_logit(keys[0]))

            def weight(each: Any) -> Any:
                own = function("expf", (_logit(each) - largest) * sharp)
                return T.cast(tirx.Select(each == T.int64(_NOBODY), T.float32(0.0), own), "float64")

            total = across_block(T.bind(weigh(part, thread, keys, weight)), thread, _THREADS)
            with when(thread < CANDIDATES):
                T.buffer_store(found, keys[thread], [part, thread])
            with when(thread == 0):
                T.buffer_store(found, T.reinterpret("int64", total), [part, CANDIDATES])


def _sort(keys: Any, thread: Any) -> None:
    """Sort keys in shared memory, the largest first: a thread exchanges one pair in each step."""
    for stage in range(_STAGES):
        for step in range(stage, -1, -1):
            distance = 1 << step
            low = T.bind((thread & -distance) * 2 + (thread & (distance - 1)))
            places = T.address_of(keys[low]), T.address_of(keys[low + distance])
            call(ORDER_PAIR, *places, ((low >> (stage + 1)) & 1) == 0)
            barrier()


def _logit(key: Any) -> Any:
    """The logit of a key, as `key_of` put it there."""
    rank = T.bind(T.cast(key >> T.int64(32), "int32"))
    bits = tirx.Select(rank < 0, -rank | T.int32(_SIGN), rank)
    return T.bind(T.reinterpret("float32", bits))
