"""The time of an answer on a described machine.

A matrix is read from memory while what was read before is multiplied, if two pieces for every
vector unit fit the memory beside them, and takes as long as the slower of both; else one after the
other. Kernels follow one another. All others run on one vector unit, attention on all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from morendo.ir.formats import ceil_div

from .device import ATTENTION, HALF, MANY, DeviceDescription
from .work import LinearWork, StepWork

CHUNK_POSITIONS = 64
"""Positions that attention computes together, those that are not there among them."""


@dataclass(frozen=True)
class Answer:
    """What is asked.

    Attributes:
        prompt: its tokens.
        tokens: of the answer; the first is the prefill's.
        chunk: most tokens of one call of the prefill.
    """

    prompt: int
    tokens: int
    chunk: int


@dataclass(frozen=True)
class Prediction:
    """How long it takes.

    Attributes:
        prefill, decode: seconds.
        steps: of decoding.
        packets: of the decode steps.
        nbytes: that they read.
        memory_bound: the part of decoding that waits for memory.
    """

    prefill: float
    decode: float
    steps: int
    packets: float
    nbytes: float
    memory_bound: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.prefill + self.decode

    @property
    def tokens_per_second(self) -> float:
        """Of decoding; 0 without."""
        return self.steps / self.decode if self.decode else 0.0


@dataclass
class _Sums:
    seconds: float = 0.0
    waiting: float = 0.0
    packets: float = 0.0
    nbytes: float = 0.0


def predict(
    device: DeviceDescription, work: Callable[[int], StepWork], answer: Answer
) -> Prediction:
    """The time of an answer.

    Args:
        work: of a token of the answer by its number; that of number 0 is the prompt's.
    """
    prefill, decode, done = _Sums(), _Sums(), 0
    while done < answer.prompt:
        tokens = min(answer.chunk, answer.prompt - done)
        _add_call(device, work(0), tokens, done + tokens / 2, prefill)
        done += tokens
    for token in range(1, answer.tokens):
        _add_call(device, work(token), 1, answer.prompt + token, decode)
    waiting = decode.waiting / decode.seconds if decode.seconds else 0.0
    steps = max(answer.tokens - 1, 0)
    return Prediction(
        prefill.seconds, decode.seconds, steps, decode.packets, decode.nbytes, waiting
    )


def _add_call(
    device: DeviceDescription, work: StepWork, tokens: int, position: float, sums: _Sums
) -> None:
    """Add a call of some tokens, with so many positions in the cache on average."""
    sums.seconds += device.call_microseconds / 1e6
    for linear in work.linears:
        _add_linear(device, linear, tokens, sums)
    others = tokens * work.elements / device.elements_per_packet
    cached = position * work.cached_bytes
    whole = ceil_div(round(position), CHUNK_POSITIONS) * CHUNK_POSITIONS
    attention = tokens * whole * work.attended / device.products_of(ATTENTION)
    read = cached / (device.bandwidth * 1e9)
    computed = device.seconds(attention, device.vector_units)
    sums.seconds += device.seconds(others) + max(read, computed)
    sums.waiting += read if read > computed else 0.0
    sums.packets += others + attention
    sums.nbytes += cached


def _add_linear(device: DeviceDescription, linear: LinearWork, tokens: int, sums: _Sums) -> None:
    packets = sum(
        tokens * count / device.products_of(MANY if tokens > 1 and kind != HALF else kind)
        for kind, count in linear.weights.items()
    )
    computed = device.seconds(packets, device.vector_units)
    read = linear.nbytes / (device.bandwidth * 1e9)
    together = 2 * device.vector_units * linear.piece_bytes <= device.on_chip_bytes
    sums.seconds += max(read, computed) if together else read + computed
    sums.waiting += read if read > computed or not together else 0.0
    sums.packets += packets
    sums.nbytes += linear.nbytes
