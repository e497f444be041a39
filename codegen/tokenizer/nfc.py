"""Tables for Unicode's canonical composition (NFC, Unicode Standard Annex 15).

The `tokenizers` library is asked for them, so that its Unicode version counts. Hangul syllables are
composed by arithmetic in the runtime and have no entries.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from tokenizers import normalizers

from .errors import UnsupportedTokenizer
from .tables import Section

_CODE_POINTS = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
_SEPARATOR = "\n"
_HANGUL = range(0xAC00, 0xD7A4)
_LOWEST = "\N{COMBINING TILDE OVERLAY}"  # of class 1, the lowest; marks above it change places
_ABOVE = 230  # the class of most marks; below it, marks of class 1 change places with these too


def nfc_sections() -> dict[Section, np.ndarray]:
    """Decompositions, combining classes and compositions."""
    points = [p for p in _CODE_POINTS if p != ord(_SEPARATOR) and p not in _HANGUL]
    apart = dict(zip(points, _normalized(normalizers.NFD(), map(chr, points)), strict=True))
    taken_apart = {p: text for p, text in apart.items() if text != chr(p)}
    composed = _normalized(normalizers.NFC(), map(chr, taken_apart))
    stable = [p for p, text in zip(taken_apart, composed, strict=True) if text == chr(p)]
    marks = _combining_classes(points)
    starts = np.cumsum([0, *(len(text) for text in taken_apart.values())])
    return {
        Section.DECOMPOSED: np.array(list(taken_apart), np.uint32),
        Section.DECOMPOSITION_STARTS: starts.astype(np.uint32),
        Section.DECOMPOSITIONS: np.array([ord(c) for t in taken_apart.values() for c in t], "u4"),
        Section.MARKS: np.array(sorted(marks), np.uint32),
        Section.MARK_CLASSES: np.array([marks[p] for p in sorted(marks)], np.uint8),
        Section.COMPOSITIONS: _compositions(stable, taken_apart),
    }


def _normalized(normalizer: normalizers.Normalizer, texts: object) -> list[str]:
    """Each text normalized; one call for all, since a separator stops composition."""
    joined = _SEPARATOR.join(texts)  # type: ignore[arg-type]
    return normalizer.normalize_str(joined).split(_SEPARATOR)


def _combining_classes(points: list[int]) -> dict[int, int]:
    """Code point -> its class above 0, found by whether NFD exchanges it with a known mark."""
    nfd = normalizers.NFD()
    plain = [p for p in points if unicodedata.normalize("NFD", chr(p)) == chr(p)]
    moved = _normalized(nfd, (chr(p) + _LOWEST for p in plain))
    marks = [chr(p) for p, text in zip(plain, moved, strict=True) if text == _LOWEST + chr(p)]
    known = {unicodedata.combining(mark): mark for mark in reversed(marks)}
    classes = {ord(mark): _class_of(mark, known) for mark in marks}
    raised = _normalized(nfd, (known[_ABOVE] + chr(p) for p in plain))
    lowest = {p: 1 for p, text in zip(plain, raised, strict=True) if text == chr(p) + known[_ABOVE]}
    return lowest | classes


def _class_of(mark: str, known: dict[int, str]) -> int:
    """The class whose known mark stays in place on both sides of `mark`."""
    nfd = normalizers.NFD()
    for number in sorted(known):
        texts = (known[number] + mark, mark + known[number])
        if all(nfd.normalize_str(text) == text for text in texts):
            return number
    raise UnsupportedTokenizer(f"the combining class of U+{ord(mark):04X}")


def _compositions(stable: list[int], apart: dict[int, str]) -> np.ndarray:
    """uint32 [n, 3]: a pair of characters that composes, and into what."""
    nfc = normalizers.NFC()
    rows = []
    for point in stable:
        text = apart[point]
        first = nfc.normalize_str(text[:-1])
        if len(text) > 1 and len(first) == 1 and nfc.normalize_str(first + text[-1]) == chr(point):
            rows.append((ord(first), ord(text[-1]), point))
    return np.array(sorted(rows), np.uint32).reshape(-1, 3)
