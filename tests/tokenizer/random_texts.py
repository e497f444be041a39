"""Texts that are hard for a tokenizer: all scripts, all blanks, special tokens, nothing."""

from __future__ import annotations

import random

from families import text

_TRICKY = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\x85", "\x1c", "a", "B", "1", ".", "_", "-",
    "'s", "'LL", "'\u017f", "\u017f", "\u00e9", "e\u0301", "\u6f22", "\uac00",
    "\u1112\u1161\u11ab", "\U0001f600", "\u200d", "\ufb01", "\u0967", "\u2167", "\u01c5", "\u2581",
]  # fmt: skip


def random_text(source: random.Random, special: list[str]) -> str:
    """A text of up to 200 characters."""
    size = source.randrange(40)
    kind = source.randrange(5)
    if kind == 0:
        return "".join(chr(source.choice(_ranges(source))) for _ in range(size))
    if kind == 1:
        points = (source.randrange(0x110000) for _ in range(size))
        return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    if kind == 2:
        return "".join(source.choice(_TRICKY) for _ in range(size))
    start = source.randrange(len(text()))
    part = text()[start : start + source.randrange(200)]
    if kind == 3:
        return part
    words = [source.choice([*special, *_TRICKY, part[:20]]) for _ in range(size // 4)]
    return "".join(words)


def _ranges(source: random.Random) -> list[int]:
    """ASCII, other alphabets, combining marks."""
    return [
        source.randrange(0x20, 0x7F),
        source.randrange(0xA0, 0x500),
        source.randrange(0x300, 0x370),
    ]
