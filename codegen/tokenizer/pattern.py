"""Pre-tokenizer patterns as programs of a small matching machine.

Patterns are regular expressions of the Oniguruma kind, of which tokenizers use a part: classes,
groups, alternatives, greedy repetition, and a look at the next character. Alternatives are tried in
order and the first that matches wins, also over a longer one; a program keeps that order.

    chars S      consume a character of set S
    split A B    go on at A; only if that fails, at B
    ahead S      go on where the next character is in S (the text's end is in no set)
    match        a match ends here
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .code_points import COUNT, matching, single
from .errors import UnsupportedTokenizer

_MOST_COPIES = 64  # of a repeated part; the machine has a state for each
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}
_SETS = "sSdDwW"


@dataclass
class Program:
    """Instructions and the sets of characters that they name.

    Attributes:
        code: (operation, operand, operand).
        sets: bool [0x110000] each; an `ahead` also holds at the end of the text where
            `at_end` says so.
    """

    code: list[tuple[str, int, int]] = field(default_factory=list)
    sets: list[np.ndarray] = field(default_factory=list)

    def emit(self, operation: str, a: int = 0, b: int = 0) -> int:
        self.code.append((operation, a, b))
        return len(self.code) - 1

    def set_index(self, members: np.ndarray) -> int:
        for index, known in enumerate(self.sets):
            if np.array_equal(known, members):
                return index
        self.sets.append(members)
        return len(self.sets) - 1


@dataclass(frozen=True)
class _Chars:
    members: np.ndarray

    def write(self, program: Program) -> None:
        program.emit("chars", program.set_index(self.members))


@dataclass(frozen=True)
class _Ahead:
    members: np.ndarray
    at_end: bool

    def write(self, program: Program) -> None:
        program.emit("ahead", program.set_index(self.members), int(self.at_end))


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]

    def write(self, program: Program) -> None:
        for part in self.parts:
            part.write(program)


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Node, ...]

    def write(self, program: Program) -> None:
        ends = []
        for option in self.options[:-1]:
            fork = program.emit("split")
            option.write(program)
            ends.append(program.emit("jump"))
            program.code[fork] = ("split", fork + 1, len(program.code))
        self.options[-1].write(program)
        for end in ends:
            program.code[end] = ("jump", len(program.code), 0)


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    low: int
    high: int | None  # None: without end

    def write(self, program: Program) -> None:
        for _ in range(self.low):
            self.part.write(program)
        if self.high is None:
            fork = program.emit("split")
            self.part.write(program)
            program.emit("jump", fork)
            program.code[fork] = ("split", fork + 1, len(program.code))
            return
        forks = []
        for _ in range(self.high - self.low):
            forks.append(program.emit("split"))
            self.part.write(program)
        for fork in forks:
            program.code[fork] = ("split", fork + 1, len(program.code))


_Node = _Chars | _Ahead | _Sequence | _Choice | _Repeat


def parse(pattern: str, names: Mapping[str, np.ndarray] | None = None) -> Program:
    """The program of a regular expression.

    Args:
        names: characters that stand for a set.

    Raises:
        UnsupportedTokenizer: for what the machine has no instruction for.
    """
    parser = _Parser(pattern, names or {})
    node = parser.choice()
    if parser.at < len(pattern):
        raise parser.unsupported()
    program = Program()
    node.write(program)
    program.emit("match")
    return program


def literal(text: str) -> Program:
    """The program that matches just this text."""
    program = Program()
    for character in text:
        program.emit("chars", program.set_index(single(character)))
    program.emit("match")
    return program


class _Parser:
    """Recursive descent; `at` is the next character of the pattern."""

    def __init__(self, text: str, names: Mapping[str, np.ndarray]) -> None:
        self.text, self.at, self.fold = text, 0, False
        self.names = names

    def unsupported(self) -> UnsupportedTokenizer:
        return UnsupportedTokenizer(
            f"the pattern {self.text!r} at character {self.at} ({self.text[self.at :][:12]!r})"
        )

    def peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def take(self, text: str) -> bool:
        found = self.peek(text)
        self.at += len(text) if found else 0
        return found

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise self.unsupported()

    def choice(self) -> _Node:
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        return options[0] if len(options) == 1 else _Choice(tuple(options))

    def sequence(self) -> _Node:
        parts = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else _Sequence(tuple(parts))

    def repeated(self, part: _Node) -> _Node:
        bounds = self.bounds()
        if bounds is None:
            return part
        if isinstance(part, _Ahead) or self.text[self.at : self.at + 1] in ("*", "+", "?", "{"):
            raise self.unsupported()  # lazy or possessive repetition
        return _Repeat(part, *bounds)

    def bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if not self.take("{"):
            return None
        numbers, closed, _ = self.text[self.at :].partition("}")
        low, comma, high = numbers.partition(",")
        digits = low.isdecimal() and (high.isdecimal() or not high)
        if not closed or not digits or max(int(low), int(high or 0)) > _MOST_COPIES:
            raise self.unsupported()
        self.at += len(numbers) + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def atom(self) -> _Node:
        if self.peek("("):
            return self.group()
        start = self.at
        if self.take("["):
            self.skip_class()
            return _Chars(self.members(self.text[start : self.at]))
        if self.take("\\"):
            return _Chars(self.escape())
        if self.take("."):
            return _Chars(self.members("."))
        if self.take("$"):  # Oniguruma: the end of a line, or of the text
            return _Ahead(single("\n"), at_end=True)
        if self.text[self.at] in "^*+?{":
            raise self.unsupported()
        self.at += 1
        return _Chars(self.character(self.text[start]))

    def group(self) -> _Node:
        for opening, negative in (("(?!", True), ("(?=", False)):
            if self.take(opening):
                return self.ahead(negative)
        outer = self.fold
        if self.take("(?i:"):
            self.fold = True
        elif not self.take("(?:"):
            self.expect("(")
            if self.peek("?"):
                raise self.unsupported()
        node = self.choice()
        self.expect(")")
        self.fold = outer
        return node

    def ahead(self, negative: bool) -> _Node:
        inner = self.choice()
        self.expect(")")
        if not isinstance(inner, _Chars):
            raise self.unsupported()
        return _Ahead(~inner.members if negative else inner.members, at_end=negative)

    def skip_class(self) -> None:
        """Go behind the bracket that closes a class; classes may be nested."""
        self.take("^")
        first = True
        while self.at < len(self.text):
            if self.take("]") and not first:
                return
            first = False
            if self.take("["):
                self.skip_class()
                continue
            self.at += 2 if self.peek("\\") else 1
        raise self.unsupported()

    def escape(self) -> np.ndarray:
        kind = self.text[self.at : self.at + 1]
        self.at += 1
        if kind in ("p", "P") and self.peek("{"):
            end = self.text.find("}", self.at)
            name = self.text[self.at : end + 1]
            if end < 0 or name[1:].lstrip("^").upper().startswith("C"):  # blocks differ in those
                raise self.unsupported()
            self.at = end + 1
            return self.members(f"\\{kind}{name}")
        if kind and kind in _SETS:
            return self.members(f"\\{kind}")
        if kind in _ESCAPES or (kind and not kind.isalnum()):
            return self.character(_ESCAPES.get(kind, kind))
        self.at -= 1
        raise self.unsupported()

    def character(self, character: str) -> np.ndarray:
        if character in self.names:
            return self.names[character]
        if not self.fold:
            return single(character)
        return self.members("\\" + character if not character.isalnum() else character)

    def members(self, source: str) -> np.ndarray:
        found = matching(f"(?i:{source})" if self.fold else source)
        assert found.shape == (COUNT,)
        return found
