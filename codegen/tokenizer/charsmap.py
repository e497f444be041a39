"""SentencePiece's normalization by a map of character strings (the normalizer `Precompiled`).

The map is a double array (Aoe 1989, as Darts-clone writes it) from UTF-8 strings to places in a
text of replacements that end with a zero byte. The library looks up grapheme clusters of up to five
bytes as a whole and the characters of other clusters one by one, and replaces all that it looked up
by what the shortest string at its start stands for.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping

import numpy as np

from .errors import UnsupportedTokenizer
from .tables import Section

_LEAF = 1 << 31


def charsmap_sections(text: str) -> dict[Section, np.ndarray]:
    """The map of tokenizer.json, in base64, as it is.

    Raises:
        UnsupportedTokenizer: when it is damaged.
    """
    data = base64.b64decode(text)
    size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 1
    if size % 4 or size + 4 > len(data):
        raise UnsupportedTokenizer("a damaged precompiled_charsmap")
    return {
        Section.CHARSMAP: np.frombuffer(data, "<u4", size // 4, offset=4).astype(np.uint32),
        Section.REPLACEMENTS: np.frombuffer(data, np.uint8, offset=4 + size),
    }


def write_charsmap(texts: Mapping[str, str]) -> bytes:
    """A map of few short strings, which the library takes as it takes SentencePiece's."""
    replacements, places = b"", {}
    for old, new in texts.items():
        places[old.encode()] = len(replacements)
        replacements += new.encode() + b"\0"
    units = {0: 0}
    _place(units, 0, b"", places)
    array = np.zeros(max(units) // 256 * 256 + 256, "<u4")
    array[list(units)] = list(units.values())
    return struct.pack("<I", array.nbytes) + array.tobytes() + replacements


def _place(units: dict[int, int], at: int, start: bytes, places: Mapping[bytes, int]) -> None:
    """Give the node of the strings that begin with `start`, which is unit `at`, its children."""
    size = len(start)
    labels = {key[size] for key in places if key[:size] == start and len(key) > size}
    if start in places:
        labels.add(0)
    taken = {0, *(unit >> 10 ^ place for place, unit in units.items() if unit < _LEAF)}
    free = (base for base in range(1, 1 << 20) if base not in taken)
    base = next(b for b in free if not any(b ^ label in units for label in labels))
    units[at] |= (base ^ at) << 10 | (start in places) << 8
    for label in labels:
        units[base ^ label] = label
    if start in places:
        units[base] = _LEAF | places[start]
    for label in sorted(labels - {0}):
        _place(units, base ^ label, start + bytes([label]), places)
