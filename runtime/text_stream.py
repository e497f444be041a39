"""Text from token ids piece by piece: joined, it is what decoding all of them at once gives.

A decoder is not a table from tokens to text. Byte-level decoders need all bytes of a character;
byte-fallback decoders try a whole run of byte tokens, and where one byte is wrong they give up all
characters of the run; most treat the first token of a text in a way of its own. So a piece is what
the library's decoder adds to a short context, and is given as soon as no later token can change it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for the bytes of half a character
_BYTES_OF_HALF = 3  # most bytes of a character that is not complete
_FEW = 8  # tokens that are decoded again and again before a shorter context is looked for
# Stages of a decoder after which a text only grows at its end, whatever follows.
_GROWING = {"ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}


class TextStream:
    """Decodes one token after another.

    Args:
        library: a tokenizers.Tokenizer. Special tokens and unknown ids give no text.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        stages = _stages(library.decoder)
        self._has_halves = any(stage["type"] == "ByteLevel" for stage in stages)
        self._has_runs = any(stage["type"] == "ByteFallback" for stage in stages)
        self._grows = _only_grows(stages)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` in pieces, each as early as it is certain.

        A tokenizer whose decoder is not known to let texts grow gives one piece, at the end.

        Raises:
            OverflowError: for ids below 0 or of more than 32 bits.
        """
        held: list[int] = []  # tokens that were shown, as a context, then those that were not
        shown = ""
        for token in ids:
            if self._is_silent(token):
                continue
            held.append(token)
            if self._is_open(token):
                continue
            text = self._decode(held)
            complete = not (self._has_halves and text.endswith(_INCOMPLETE))
            ready = text if complete else text[:-1]
            if len(ready) > len(shown):
                yield ready[len(shown) :]
                shown = ready
            if complete:
                held, shown = self._context(held)
            elif len(held) > _FEW:  # bytes that are no text
                held = held[-_BYTES_OF_HALF - 1 :]
                shown = self._decode(held)[:-1]
        rest = self._decode(held)[len(shown) :] if held else ""
        if rest:
            yield rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=True)

    @cached_property
    def _special(self) -> set[int]:
        added = self._library.get_added_tokens_decoder()
        return {i for i, token in added.items() if token.special}

    def _is_silent(self, token: int) -> bool:
        return token in self._special or self._library.id_to_token(token) is None

    def _is_open(self, token: int) -> bool:
        """What comes after `token` may change its text."""
        if not self._grows:
            return True
        return self._has_runs and _is_byte(self._library.id_to_token(token))

    def _context(self, held: list[int]) -> tuple[list[int], str]:
        """The fewest last tokens that a decoder takes for the beginning of a text, and their text.

        Alone, a token may lose its leading space and have no text: then the next one would be
        taken for the beginning.
        """
        for count in range(1, len(held)):
            text = self._decode(held[-count:])
            if text:
                return held[-count:], text
        return held, self._decode(held)


def _is_byte(name: str) -> bool:
    """`name` spells a byte as <0xE2>."""
    if len(name) != 6 or not name.startswith("<0x") or not name.endswith(">"):
        return False
    with contextlib.suppress(ValueError):
        return int(name[3:5], 16) >= 0
    return False


def _stages(decoder: Any) -> list[dict[str, Any]]:
    """What a decoder does, one thing after another; [] joins tokens with spaces."""
    if decoder is None:
        return []
    return list(_flat(json.loads(decoder.__getstate__())))


def _flat(facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if facts["type"] != "Sequence":
        yield facts
        return
    for stage in facts["decoders"]:
        yield from _flat(stage)


def _only_grows(stages: list[dict[str, Any]]) -> bool:
    """A token adds to the text before it, and changes none, but for halves and runs of bytes."""
    kinds = [stage["type"] for stage in stages]
    if not _GROWING.issuperset(kinds):
        return False
    if "ByteFallback" in kinds and {*kinds[: kinds.index("ByteFallback")]} - {"Replace"}:
        return False
    if "WordPiece" in kinds and "Fuse" in kinds[: kinds.index("WordPiece")]:
        return False
    strips = [stage for stage in stages if stage["type"] == "Strip"]
    replaced = [
        stage["pattern"].get("String", "") for stage in stages if stage["type"] == "Replace"
    ]
    return all(strip["stop"] == 0 for strip in strips) and all(len(text) == 1 for text in replaced)
