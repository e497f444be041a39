"""Normalizers and pre-tokenizers as a list of steps, their patterns as automata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .automaton import pages, partition, tabulate
from .charsmap import charsmap_sections
from .errors import UnsupportedTokenizer
from .graphemes import grapheme_program
from .pattern import Program, literal, parse
from .tables import Behavior, Fact, Section, Step

# The split of GPT-2, which the ByteLevel pre-tokenizer has built in.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BEHAVIORS = {
    "Removed": Behavior.REMOVED,
    "Isolated": Behavior.ISOLATED,
    "Contiguous": Behavior.CONTIGUOUS,
    "MergedWithPrevious": Behavior.MERGED_WITH_PREVIOUS,
    "MergedWithNext": Behavior.MERGED_WITH_NEXT,
}


@dataclass
class Steps:
    """The steps collected so far.

    Attributes:
        rows: (kind, operands).
        normalizers: how many of them are normalizers.
        by_bytes: the pieces that come out are spelled in bytes, not in characters.
    """

    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    normalizers: int = 0
    by_bytes: bool = False
    _programs: list[Program] = field(default_factory=list)
    _splitters: list[tuple[Behavior, bool]] = field(default_factory=list)
    _strings: bytearray = field(default_factory=bytearray)
    _charsmap: dict[Section, np.ndarray] = field(default_factory=dict)

    def needs_nfc(self) -> bool:
        return any(row[0] == Step.NFC for row in self.rows)

    def add(self, kind: Step, a: int = 0, b: int = 0, c: int = 0) -> None:
        self.rows.append((kind, a, b, c))

    def add_text(self, text: str) -> tuple[int, int]:
        """Offset and size of a text in the strings."""
        data = text.encode()
        self._strings += data
        return len(self._strings) - len(data), len(data)

    def add_replacement(self, old: Program, new: str) -> None:
        self.add(Step.REPLACE, self._splitter(old), *self.add_text(new))

    def add_charsmap(self, text: str) -> None:
        if self._charsmap:
            raise UnsupportedTokenizer("a second normalizer Precompiled")
        self._charsmap = charsmap_sections(text)
        self.add(Step.CHARSMAP, self._splitter(grapheme_program()))

    def add_split(self, program: Program, behavior: Behavior, invert: bool = False) -> None:
        self.add(Step.SPLIT, self._splitter(program, behavior, invert))

    def _splitter(
        self, program: Program, behavior: Behavior = Behavior.ISOLATED, invert: bool = False
    ) -> int:
        self._programs.append(program)
        self._splitters.append((behavior, invert))
        return len(self._splitters) - 1

    def sections(self) -> tuple[dict[Fact, int], dict[Section, np.ndarray]]:
        """The tables of all steps."""
        spaces = parse(r"\s")
        classes, samples = partition([*self._programs, spaces])
        numbers, distinct = pages(classes)
        rows, tables, first = [], [], 0
        for program, (behavior, invert) in zip(self._programs, self._splitters, strict=True):
            table = tabulate(program, samples)
            rows.append((len(table), first, behavior, int(invert)))
            tables.append(table.reshape(-1))
            first += table.size
        return {Fact.CLASSES: len(samples), Fact.NORMALIZERS: self.normalizers}, {
            Section.CLASS_NUMBERS: numbers,
            Section.CLASS_PAGES: distinct,
            Section.CLASS_SPACES: spaces.sets[0][samples].astype(np.uint8),
            Section.SPLITTERS: np.array(rows, np.int32),
            Section.TRANSITIONS: np.concatenate([*tables, np.zeros(0, np.uint16)]),
            Section.STEPS: np.array(self.rows, np.int32),
            Section.STRINGS: np.frombuffer(bytes(self._strings), np.uint8),
            **self._charsmap,
        }


def read_steps(normalizer: Any, pre_tokenizer: Any) -> Steps:
    """The steps of tokenizer.json's two entries (None where there is none).

    Raises:
        UnsupportedTokenizer: with the name of what there is no step for.
    """
    steps = Steps()
    _normalize(steps, normalizer)
    steps.normalizers = len(steps.rows)
    _split(steps, pre_tokenizer)
    return steps


def _normalize(steps: Steps, entry: Mapping[str, Any] | None) -> None:
    kind = entry["type"] if entry else None
    if entry is None:
        return
    if kind == "Sequence":
        for part in entry["normalizers"]:
            _normalize(steps, part)
    elif kind == "NFC":
        steps.add(Step.NFC)
    elif kind == "Prepend":
        steps.add(Step.PREPEND, *steps.add_text(entry["prepend"]))
    elif kind == "Replace":
        steps.add_replacement(_pattern(entry), entry["content"])
    elif kind == "Strip" and entry["strip_right"] and not entry["strip_left"]:
        steps.add(Step.STRIP_END)
    elif kind == "Precompiled":
        steps.add_charsmap(entry["precompiled_charsmap"])
    else:
        raise UnsupportedTokenizer(f"the normalizer {kind}")


def _split(steps: Steps, entry: Mapping[str, Any] | None) -> None:
    if entry is None:
        return
    if steps.by_bytes:
        raise UnsupportedTokenizer("a pre-tokenizer behind ByteLevel")
    kinds = {
        "Sequence": _split_in_turn,
        "Split": _split_by_pattern,
        "Digits": _split_digits,
        "ByteLevel": _byte_level,
        "Metaspace": _metaspace,
    }
    if entry["type"] not in kinds:
        raise UnsupportedTokenizer(f"the pre-tokenizer {entry['type']}")
    kinds[entry["type"]](steps, entry)


def _split_in_turn(steps: Steps, entry: Mapping[str, Any]) -> None:
    for part in entry["pretokenizers"]:
        _split(steps, part)


def _split_by_pattern(steps: Steps, entry: Mapping[str, Any]) -> None:
    steps.add_split(_pattern(entry), _BEHAVIORS[entry["behavior"]], entry.get("invert", False))


def _pattern(entry: Mapping[str, Any]) -> Program:
    pattern = entry["pattern"]
    return parse(pattern["Regex"]) if "Regex" in pattern else literal(pattern["String"])


def _split_digits(steps: Steps, entry: Mapping[str, Any]) -> None:
    one = entry.get("individual_digits", False)
    steps.add_split(parse(r"\p{N}"), Behavior.ISOLATED if one else Behavior.CONTIGUOUS)


def _byte_level(steps: Steps, entry: Mapping[str, Any]) -> None:
    if entry.get("add_prefix_space", True):
        steps.add(Step.PREPEND_MISSING, *steps.add_text(" "))
    if entry.get("use_regex", True):
        steps.add_split(parse(_GPT2), Behavior.ISOLATED)
    steps.by_bytes = True


def _metaspace(steps: Steps, entry: Mapping[str, Any]) -> None:
    mark = entry["replacement"]
    steps.add_replacement(literal(" "), mark)
    scheme = entry.get("prepend_scheme", "always")
    if scheme != "never":
        steps.add(Step.PREPEND_MISSING, *steps.add_text(mark), int(scheme == "first"))
    if entry.get("split", True):
        steps.add_split(literal(mark), Behavior.MERGED_WITH_NEXT)
