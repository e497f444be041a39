"""The dequantization pipeline of kernels for many tokens: fetch, dequantize, multiply.

A turn is a group of channels. Its packed codes and its activations come to shared memory (fetch),
codes become operands of the matrix unit in registers (dequantize), and are multiplied. How many
turns a stage may be ahead is its depth, so that a kernel with copies in the background and one that
waits for each differ in two numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvm.tirx.script.builder import ir as T

from morendo.targets.cuda.blocks import barrier, call, when
from morendo.targets.cuda.intrinsics import COMMIT_COPIES, wait_copies


@dataclass(frozen=True)
class Pipeline:
    """Of how many turns the result of a stage is kept.

    Attributes:
        fetch: parts of shared memory, a power of two; 1: all threads wait for the copies of a turn.
        dequantize: sets of registers; 2: codes of the next turn are unpacked while this one is
            multiplied, for which copies have to be two turns ahead (fetch 4).
    """

    fetch: int = 4
    dequantize: int = 2

    def __str__(self) -> str:
        return " -> ".join(f"{name} {depth}" for name, depth in self.attribute.items())

    @property
    def attribute(self) -> dict[str, int]:
        """What a kernel carries of it."""
        return {"fetch": self.fetch, "dequantize": self.dequantize, "multiply": 1}

    @property
    def in_background(self) -> bool:
        """Whether copies are asynchronous."""
        return self.fetch > 1

    @property
    def ahead(self) -> int:
        """Turns that dequantization is ahead of multiplication."""
        return self.dequantize - 1 if self.fetch > 2 else 0

    def shallower(self) -> Pipeline:
        """The next one that takes less shared memory."""
        return replace(self, fetch=self.fetch // 2)


ASYNCHRONOUS = Pipeline()
SYNCHRONOUS = Pipeline(fetch=1, dequantize=1)
"""For comparison."""


class Stages(Protocol):
    """What a kernel does in a turn; `slot` is the part of shared memory."""

    def fetch(self, turn: Any, slot: Any) -> None: ...

    def dequantize(self, turn: Any, slot: Any) -> None:
        """Fill the registers of the next turn."""
        ...

    def advance(self) -> None:
        """Make the registers of the next turn those of this one."""
        ...

    def multiply(self, turn: Any, slot: Any) -> None: ...

    @property
    def multiplies_later(self) -> bool:
        """Whether products go on by themselves until `settle`."""
        ...

    def settle(self) -> None:
        """Wait for the products."""
        ...

    def show(self) -> None:
        """Let the matrix units see what this thread has brought to shared memory."""
        ...


def run_stages(pipeline: Pipeline, turns: int, stages: Stages) -> None:
    """Build the loop over all turns; all threads of the block come here."""
    if not pipeline.in_background:
        _run_waiting(turns, stages)
        return
    slots, ahead = pipeline.fetch, pipeline.ahead
    for turn in range(slots - 1):
        if turn < turns:
            stages.fetch(T.int32(turn), T.int32(turn))
        _commit()
    if ahead:
        _wait(slots - 2, stages)
        stages.dequantize(T.int32(0), T.int32(0))
        stages.advance()
    with T.serial(0, turns) as turn:
        _wait(slots - 2 - ahead, stages)
        # The barrier in there also says that all have multiplied the turn before: its slot is free.
        coming = T.bind(turn + (slots - 1))
        with when(coming < turns):
            stages.fetch(coming, T.bind(coming & (slots - 1)))
        _commit()
        slot = T.bind(turn & (slots - 1))
        if ahead:
            _multiply_and_unpack(stages, turn, slot, turns, slots)
        else:
            stages.dequantize(turn, slot)
            stages.advance()
            stages.multiply(turn, slot)
        stages.settle()
        if ahead:
            stages.advance()


def _multiply_and_unpack(stages: Stages, turn: Any, slot: Any, turns: int, slots: int) -> None:
    """Multiply this turn and unpack the next one: what goes on by itself begins first."""
    if stages.multiplies_later:
        stages.multiply(turn, slot)
    following = T.bind(turn + 1)
    with when(following < turns):
        stages.dequantize(following, T.bind(following & (slots - 1)))
    if not stages.multiplies_later:
        stages.multiply(turn, slot)


def _run_waiting(turns: int, stages: Stages) -> None:
    slot = T.int32(0)
    with T.serial(0, turns) as turn:
        barrier()  # all have multiplied the turn before
        stages.fetch(turn, slot)
        stages.show()
        barrier()
        stages.dequantize(turn, slot)
        stages.advance()
        stages.multiply(turn, slot)
        stages.settle()


def _commit() -> None:
    call(COMMIT_COPIES)


def _wait(pending: int, stages: Stages) -> None:
    """Wait for all copies but those of the last turns, this thread's and the others'."""
    call(wait_copies(pending))
    stages.show()
    barrier()
