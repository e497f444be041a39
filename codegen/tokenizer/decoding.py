"""What each token decodes to, as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import UnsupportedTokenizer
from .tables import Fact, Section
from .vocabulary import BYTE, NO_TOKEN, SPECIAL, byte_characters, byte_of, strings


def decoding_sections(
    decoder: Mapping[str, Any] | None, tokens: Sequence[str | None], special: set[int]
) -> tuple[dict[Fact, int], dict[Section, np.ndarray]]:
    """Texts and kinds of all tokens.

    Raises:
        UnsupportedTokenizer: for a decoder that is neither byte-level nor of SentencePiece's kind.
    """
    kinds = np.zeros(len(tokens), np.uint8)
    texts = []
    spelling = _Spelling(decoder)
    for i, token in enumerate(tokens):
        text, is_byte = (b"", False) if token is None else spelling.of(token)
        texts.append(text)
        if token is None:
            kinds[i] = NO_TOKEN
        elif i in special:
            kinds[i] = SPECIAL
        elif is_byte:
            kinds[i] = BYTE
    facts = {
        Fact.BYTES_DECODE: int(spelling.bytes_decode),
        Fact.STRIP_START: spelling.strip_start,
    }
    return facts, {Section.KINDS: kinds, **strings(texts, Section.TEXT_STARTS, Section.TEXTS)}


class _Spelling:
    """How a decoder writes one token."""

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        self.bytes_decode = decoder is not None and decoder["type"] == "ByteLevel"
        self.strip_start = 0
        self._bytes = byte_characters()
        self._replaced: list[tuple[str, str]] = []
        self._falls_back = False
        if not self.bytes_decode:
            self._read(decoder)

    def of(self, token: str) -> tuple[bytes, bool]:
        """The bytes of a token, and whether it stands for a single byte."""
        if self.bytes_decode:
            known = all(c in self._bytes for c in token)
            return (bytes(self._bytes[c] for c in token) if known else token.encode()), False
        for old, new in self._replaced:
            token = token.replace(old, new)
        byte = byte_of(token) if self._falls_back else None
        return (token.encode(), False) if byte is None else (bytes([byte]), True)

    def _read(self, decoder: Mapping[str, Any] | None) -> None:
        parts = [decoder] if decoder and decoder["type"] != "Sequence" else []
        parts = parts or (decoder or {}).get("decoders", [])
        order = [part["type"] for part in parts if part]
        for part in parts:
            if part["type"] == "Replace" and "String" in part["pattern"]:
                self._replaced.append((part["pattern"]["String"], part["content"]))
            elif part["type"] == "ByteFallback":
                self._falls_back = True
            elif part["type"] == "Strip" and part["content"] == " " and not part["stop"]:
                self.strip_start = part["start"]
            elif part["type"] == "Metaspace" and part.get("prepend_scheme") == "never":
                self._replaced.append((part["replacement"], " "))
            elif part["type"] != "Fuse":
                raise UnsupportedTokenizer(f"the decoder {part['type']}")
        usual = ["Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"]
        if not order or order != sorted(order, key=usual.index) or _strips_tokens(order):
            raise UnsupportedTokenizer(f"the decoder {' '.join(order) or 'none'}")


def _strips_tokens(order: Sequence[str]) -> bool:
    """Without Fuse before it, Strip would work on every token."""
    return "Strip" in order and "Fuse" not in order
