"""Sets of Unicode characters, as the `tokenizers` library understands a character class.

Unicode versions differ in what is a letter. The library that the model was trained with is asked,
character by character, so that compiled tables agree with it and not with Python's own tables.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from tokenizers import Regex, pre_tokenizers

from .errors import UnsupportedTokenizer

COUNT = 0x110000
# Blocks without any assigned character in common patterns: one character speaks for all of them.
# Planes 4 to 13 and the end of 14 are unassigned, planes 15 and 16 are for private use.
_UNIFORM = ((0x40000, 0xE0000), (0xE1000, 0xF0000), (0xF0000, COUNT))
_SURROGATES = range(0xD800, 0xE000)


def _asked() -> np.ndarray:
    parts = [np.arange(0, 0xD800), np.arange(0xE000, 0x40000), np.arange(0xE0000, 0xE1000)]
    return np.concatenate([*parts, np.array([first for first, _ in _UNIFORM])])


@lru_cache(maxsize=1)
def question() -> tuple[np.ndarray, str]:
    """The code points that the library is asked about, and their text."""
    asked = np.unique(_asked())
    return asked, "".join(map(chr, asked))


@lru_cache(maxsize=256)
def matching(source: str) -> np.ndarray:
    """Which code points a pattern of one character matches, bool [0x110000].

    Raises:
        UnsupportedTokenizer: when the library does not understand the pattern.
    """
    asked, text = question()
    try:
        rest = pre_tokenizers.Split(Regex(f"(?:{source})+"), "removed").pre_tokenize_str(text)
    except Exception as error:  # the library raises plain Exception
        said = " ".join(str(error).split())
        raise UnsupportedTokenizer(f"the pattern {source!r} ({said})") from None
    found = np.ones(len(asked), bool)
    for _, (start, stop) in rest:
        found[start:stop] = False
    return spread(asked, found)


def spread(asked: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Answers for the characters that were asked about, for all."""
    result = np.zeros(COUNT, bool)
    result[asked] = found
    for first, last in _UNIFORM:
        result[first:last] = result[first]
    return result


def single(character: str) -> np.ndarray:
    """The set of one character."""
    result = np.zeros(COUNT, bool)
    result[ord(character)] = True
    return result
