"""The kernels of an artifact as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.kernel_facts import KernelFacts
from morendo.terminal import table

_CALLS = ("kernel", "decode", "prefill", "tokens", "weights", "reads", "writes", "a position")
_CODE = ("size", "loop", "bytes", "instructions", "a byte", "bound by", "in the loop")
_NOTES = """\
A call of so many tokens at most. weights: bytes read of them at the most precise level; reads,
writes: of activations and results; a position: of keys and values, for each one in the cache.
"""
_CODE_NOTES = """\
size: instructions of the kernel, without those that check its arguments; loop: of its hot loop,
by class at the end of the line. bytes, instructions: for a weight, and of instructions a token;
a byte: instructions for a byte of weights.
{}"""


def print_kernels(kernels: Sequence[KernelFacts], bandwidth: float = 0.0, rate: float = 0.0) -> str:
    """Two tables: what calls move, and the machine code with what bounds it.

    Args:
        bandwidth, rate: of the machine, in 10^9 bytes and instructions a second; 0 when unknown.
    """
    lines = [table([_call_row(one) for one in kernels], _CALLS), "", _NOTES]
    codes = [one.code for one in kernels if one.code]
    columns = [{**one.code.own, **one.predicted} for one in kernels if one.code]
    own = list(dict.fromkeys(name for found in columns for name in found))
    names = [one.kernel for one in kernels if one.code]
    rows: list[tuple[str | int, ...]] = [
        (name, *(str(found.get(column, "-")) for column in own))
        for name, found in zip(names, columns, strict=True)
    ]
    if any(code.instructions for code in codes):
        found = [_code_row(one, one.code, bandwidth, rate) for one in kernels if one.code]
        rows = [(name, *columns, *row) for (name, *columns), row in zip(rows, found, strict=True)]
        notes = _CODE_NOTES.format(_rates(bandwidth, rate))
        lines += [table(rows, ("kernel", *own, *_CODE)), "", notes]
    elif own:
        lines.append(table(rows, ("kernel", *own)))
    else:
        lines.append("Its target knows nothing of the machine code.")
    lines += dict.fromkeys(code.NOTES for code in codes if code.NOTES)
    return "\n".join(lines)


def _rates(bandwidth: float, rate: float) -> str:
    if bandwidth and rate:
        return f"bound by: at {bandwidth:g} GB/s and {rate:g} G instructions/s, as given."
    return (
        "bound by: unknown without --bandwidth and --rate of a machine; with them memory where it\n"
        "makes more instructions than `a byte` while it reads one, else instructions."
    )


def _call_row(one: KernelFacts) -> tuple[str | int, ...]:
    calls = (one.calls.get("decode", "-"), one.calls.get("prefill", "-"))
    moved = (one.weight_bytes[0], one.read_bytes, one.written_bytes, one.cached_bytes)
    return (one.kernel, *calls, one.tokens, *(_bytes(nbytes) for nbytes in moved))


def _code_row(
    one: KernelFacts, code: KernelCode, bandwidth: float, rate: float
) -> tuple[str | int, ...]:
    figures = ("-",) * 3
    if one.instructions_per_byte:
        each = one.instructions_per_product
        figures = (f"{one.bytes_per_weight:.2f}", f"{each:.3f}", f"{one.instructions_per_byte:.2f}")
    classes = ", ".join(f"{name} {count}" for name, count in code.loop.items())
    loop = sum(code.loop.values()) or "-"
    bound = _bound(one, bandwidth, rate)
    return (code.instructions or "-", loop, *figures, bound, classes or "-")


def _bound(one: KernelFacts, bandwidth: float, rate: float) -> str:
    if not one.weights:
        return "-"
    name, times = one.bound(bandwidth, rate) if bandwidth and rate else ("unknown", 0.0)
    return f"{name} ({times:.1f}x)" if times else name


def _bytes(nbytes: float) -> str:
    if not nbytes:
        return "-"
    return f"{nbytes:.0f}" if nbytes < 10_000 else f"{nbytes / 1000:.0f} kB"
