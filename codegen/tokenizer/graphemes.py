"""Grapheme clusters (Unicode Standard Annex 29) as a pattern, as the `tokenizers` library has them.

Clusters matter to the normalizer `Precompiled` alone, which also tells what the library takes for
one: it replaces a cluster of up to five bytes as a whole, by what its first character is mapped to,
and so loses the marks behind that character. For each kind of character there is a text that keeps
a mark only where a character of that kind is put in. So the library's Unicode version counts.
Pairs of flags are no kind: any cluster with one has more than five bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from tokenizers import normalizers

from .charsmap import write_charsmap
from .code_points import COUNT, question, single, spread
from .pattern import Program, parse

_MARK, _JOINER = "\N{COMBINING ACUTE ACCENT}", "\N{ZERO WIDTH JOINER}"
_SIGN = "\N{COPYRIGHT SIGN}"  # a pictograph of two bytes
_KA, _VIRAMA = "\N{DEVANAGARI LETTER KA}", "\N{DEVANAGARI SIGN VIRAMA}"
_LEADING, _VOWEL, _TRAILING = "\u1100", "\u1161", "\u11a8"  # Hangul jamo
_SYLLABLES = range(0xAC00, 0xD7A4)
_FINALS = 28  # syllables of the same two jamo: without, and with a third one
_SEPARATOR, _MAPPED = "\n", "X"

# The annex's regular expression; its letters are sets.
_PATTERN = "\r\n|C|P*(?:L*(?:V+|GV*|H)T*|L+|T+|I(?:E*ZI)*|K(?:N*MN*K)+|A)F*"


@cache
def grapheme_program() -> Program:
    """The pattern of one cluster; flags are two."""
    before = _kept("a", f"{{}}a{_MARK * 2}")  # prepended
    leads, vowel_follows, final_follows = (
        _kept(jamo, f"{{}}{jamo}{_MARK}") & ~before for jamo in (_LEADING, _VOWEL, _TRAILING)
    )
    syllables = np.zeros(COUNT, bool)
    syllables[_SYLLABLES] = True
    open_syllables = np.zeros(COUNT, bool)
    open_syllables[_SYLLABLES[::_FINALS]] = True
    vowels = vowel_follows & ~leads & ~syllables
    control = single(_SEPARATOR) | _answers(
        _MARK, f"{{}}{_MARK * 2}", lambda given, said: said == given + _MAPPED
    )
    sets = {
        "A": ~control,
        "C": control,
        "E": _kept(_SIGN, f"{_SIGN}{{}}{_JOINER}{_SIGN}{_MARK}"),
        "F": _answers("a", "a{}", lambda _, said: said == _MAPPED),
        "G": open_syllables,
        "H": syllables & ~open_syllables,
        "I": _kept(_SIGN, f"{{}}{_JOINER}{_SIGN}{_MARK}"),
        "K": _kept(_KA, f"{{}}{_VIRAMA}{_KA}{_MARK}"),
        "L": leads,
        "M": _kept(_KA, f"{_KA}{{}}{_KA}{_MARK}"),
        "N": _kept(_KA, f"{_KA}{_VIRAMA}{{}}{_KA}{_MARK}"),
        "P": before,
        "T": final_follows & ~vowels & ~syllables,
        "V": vowels,
        "Z": single(_JOINER),
    }
    return parse(_PATTERN, sets)


def _kept(mapped: str, text: str) -> np.ndarray:
    """The characters that, put into `text`, join the mapped one, so that its mark is kept."""
    return _answers(mapped, text, lambda _, said: said.endswith(_MARK))


def _answers(mapped: str, text: str, wanted: Callable[[str, str], bool]) -> np.ndarray:
    """For which characters the library makes of `text` what is wanted, bool [0x110000].

    Args:
        mapped: the only character that is replaced.
        text: with {} for a character; a separator behind it ends every cluster.
        wanted: is given the character and what the library makes of the text.
    """
    asked, characters = question()
    normalizer = normalizers.Precompiled(write_charsmap({mapped: _MAPPED}))
    given = [character for character in characters if character != _SEPARATOR]
    said = normalizer.normalize_str(_SEPARATOR.join(text.format(c) for c in given))
    pairs = zip(given, said.split(_SEPARATOR), strict=True)
    right = dict(zip(given, (wanted(*pair) for pair in pairs), strict=True))
    return spread(asked, np.array([right.get(c, False) for c in characters]))
