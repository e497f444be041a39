"""Assembly as LLVM prints it: made readable, and counted.

A listing has the argument checks that TVM puts around a kernel, in functions of their own. The
kernel is `NAME_compute_` and, where it is parallel, what its threads run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from morendo.codegen.kernel_code import KernelCode

_NOISE = re.compile(r"\.L(?:tmp|func_begin|func_end)\d+:|\s+\.(?:loc|cfi_\w+|file\s+\d)\b")
_SECTION = re.compile(r"\s+\.(?:section\s+(\S+)|text\b)")
_LABEL = re.compile(r"([\w.$]+):")
_LOCAL = re.compile(r"\.L(?!__)")
_INSTRUCTION = re.compile(r"\s+([a-z][^#;/]*)")
_KERNEL = re.compile(r"\w+_compute_$|\.L__tvm_parallel_lambda")


@dataclass(frozen=True)
class Syntax:
    """How a processor's instructions are told apart, by patterns of their whole text.

    Attributes:
        jump: a jump within a function; its group is the label.
        classes: (name, pattern), the first that fits counts.
        products: (pattern, products of a weight and an activation that one instruction makes), in
            groups: where one of the first group occurs, those of later groups do other work.
        lines: makes a listing one of a line for each instruction, where it is not.
    """

    jump: re.Pattern[str]
    classes: Sequence[tuple[str, re.Pattern[str]]]
    products: Sequence[Sequence[tuple[re.Pattern[str], int]]]
    lines: Callable[[str], str] = str

    def class_of(self, instruction: str) -> str:
        """The name of an instruction's class."""
        return next((name for name, is_one in self.classes if is_one.match(instruction)), "other")

    def products_of(self, instructions: Sequence[str]) -> int:
        """Products that these instructions make together."""
        for group in self.products:
            made = sum(count for each in instructions for one, count in group if one.match(each))
            if made:
                return made
        return 0


def readable(listing: str) -> str:
    """The listing without what is for debuggers and for unwinding the stack."""
    kept, debug = [], False
    for line in listing.splitlines():
        section = _SECTION.match(line)
        if section:
            debug = (section[1] or "").startswith(".debug")
        if not debug and not _NOISE.match(line):
            kept.append(line)
    return "\n".join(kept) + "\n"


def kernel_code(listing: str, syntax: Syntax) -> KernelCode:
    """Count a kernel's instructions, and those of its hot loop."""
    functions = _kernel_functions(listing, syntax)
    total = sum(not _LABEL.fullmatch(line) for body in functions for line in body)
    hot = hot_loop(listing, syntax)
    if not hot:
        return KernelCode(total)
    classes = Counter(map(syntax.class_of, hot))
    return KernelCode(total, dict(classes.most_common()), syntax.products_of(hot))


def hot_loop(listing: str, syntax: Syntax) -> list[str]:
    """The innermost loop with the most products, and of such loops the one with the most
    instructions: of a kernel with precision levels, the one that reads all bits. [] without loops.
    """
    functions = _kernel_functions(listing, syntax)
    loops = [loop for body in functions for loop in _innermost_loops(body, syntax)]
    return max(loops, key=lambda loop: (syntax.products_of(loop), len(loop)), default=[])


def _kernel_functions(listing: str, syntax: Syntax) -> list[list[str]]:
    return [body for name, body in _functions(syntax.lines(listing)) if _KERNEL.match(name)]


def _functions(listing: str) -> Iterator[tuple[str, list[str]]]:
    """(name, instructions and local labels with their colons) of each function."""
    name, body = "", []
    for line in listing.splitlines():
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label and not _LOCAL.match(label[1]):
            if body:
                yield name, body
            name, body = label[1], []
        elif label or instruction:
            body.append(label[0] if label else instruction[1].strip() if instruction else "")
    if body:
        yield name, body


def _innermost_loops(body: Sequence[str], syntax: Syntax) -> list[list[str]]:
    """Instructions from a label to the last jump back to it, where there is no such loop inside."""
    labels = {line[:-1]: index for index, line in enumerate(body) if line.endswith(":")}
    ends: dict[int, int] = {}
    for index, line in enumerate(body):
        jump = syntax.jump.match(line)
        start = labels.get(jump[1], index + 1) if jump else index + 1
        if start < index:
            ends[start] = index
    spans = sorted(ends.items())
    inner = [
        (start, end)
        for start, end in spans
        if not any(start < other and last <= end for other, last in spans)
    ]
    return [[line for line in body[a : b + 1] if not line.endswith(":")] for a, b in inner]
