"""Tables of a byte-pair encoding or a Unigram model: tokens of bytes, characters and words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .errors import UnsupportedTokenizer
from .tables import Fact, Section

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPECIAL, BYTE, NO_TOKEN = 1, 2, 3


def byte_characters() -> dict[str, int]:
    """The printable character by which byte-level tokenizers spell each byte (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    spelled = {chr(b): b for b in plain}
    return spelled | {chr(256 + i): b for i, b in enumerate(others)}


_UNKNOWN_PENALTY = 10.0  # the library's: an unknown character is that much less than all tokens
_UNREAD = {
    "BPE": ("continuing_subword_prefix", "end_of_word_suffix", "dropout"),
    "Unigram": ("alpha", "nbest_size"),  # they draw one of several spellings
}


def check_model(model: Mapping[str, Any]) -> None:
    """Refuse what is no plain byte-pair encoding or Unigram model.

    Raises:
        UnsupportedTokenizer: with the name of the part.
    """
    kind = model.get("type")
    if kind not in _UNREAD:
        raise UnsupportedTokenizer(f"the model {kind}")
    for option in _UNREAD[kind]:
        if model.get(option):
            raise UnsupportedTokenizer(f"{option} {model[option]!r}")
    if kind == "BPE":
        return
    if model.get("unk_id") is None:
        raise UnsupportedTokenizer("a Unigram model without unk_id")
    if len(token_ids(model)) != len(model["vocab"]):
        raise UnsupportedTokenizer("a Unigram model with a token twice")


def token_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """The model's tokens, without added ones."""
    if model["type"] == "BPE":
        return model["vocab"]
    return {token: i for i, (token, _) in enumerate(model["vocab"])}


def model_facts(model: Mapping[str, Any], size: int) -> dict[Fact, int]:
    """What the encoder has to know."""
    unknown = model.get("unk_id")
    if model["type"] == "BPE":
        unknown = token_ids(model).get(model.get("unk_token") or "")
    return {
        Fact.VOCABULARY: size,
        Fact.BYTE_FALLBACK: int(bool(model.get("byte_fallback"))),
        Fact.UNKNOWN: -1 if unknown is None else unknown,
        Fact.UNIGRAM: int(model["type"] == "Unigram"),
        Fact.FUSE_UNKNOWN: int(bool(model.get("fuse_unk"))),
        Fact.WHOLE_WORDS: int(bool(model.get("ignore_merges"))),
    }


def merge_sections(model: Mapping[str, Any], size: int) -> dict[Section, np.ndarray]:
    """Merges by their left token, then their right one; none of a Unigram model."""
    vocabulary = token_ids(model)
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model.get("merges", ())):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found[vocabulary[left], vocabulary[right]] = rank, vocabulary[left + right]
    rows = np.array(sorted((*pair, *what) for pair, what in found.items()), np.int64)
    rows = rows.reshape(-1, 4)
    return {
        Section.MERGE_STARTS: np.searchsorted(rows[:, 0], np.arange(size + 1)).astype(np.uint32),
        Section.MERGE_RIGHTS: rows[:, 1].astype(np.int32),
        Section.MERGE_RANKS: rows[:, 2].astype(np.int32),
        Section.MERGE_RESULTS: rows[:, 3].astype(np.int32),
    }


def symbol_sections(model: Mapping[str, Any], by_bytes: bool) -> dict[Section, np.ndarray]:
    """The tokens of single bytes or characters, with which an encoding starts."""
    vocabulary = token_ids(model)
    ids = np.full(256, -1, np.int32)
    if by_bytes:
        for character, byte in byte_characters().items():
            ids[byte] = vocabulary.get(character, -1)
        return {Section.BYTE_IDS: ids}
    for byte in range(256):
        ids[byte] = vocabulary.get(f"<0x{byte:02X}>", -1)
    characters = sorted((ord(t), i) for t, i in vocabulary.items() if len(t) == 1)
    return {
        Section.BYTE_IDS: ids,
        Section.CHARACTERS: np.array([c for c, _ in characters], np.uint32),
        Section.CHARACTER_IDS: np.array([i for _, i in characters], np.int32),
    }


def word_sections(model: Mapping[str, Any], by_bytes: bool) -> dict[Section, np.ndarray]:
    """All tokens as sorted byte strings: where a whole word may be one without merges, and of a
    Unigram model, with their scores.
    """
    spell = byte_characters() if by_bytes else None
    words = sorted((_bytes_of(t, spell), i) for t, i in token_ids(model).items())
    words = [(text, i) for text, i in words if text]
    sections = {
        **strings((text for text, _ in words), Section.WORD_STARTS, Section.WORDS),
        Section.WORD_IDS: np.array([i for _, i in words], np.int32),
    }
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        unknown = min(scores) - _UNKNOWN_PENALTY
        sections[Section.SCORES] = np.array([*(scores[i] for _, i in words), unknown], np.float64)
    return sections


def _bytes_of(token: str, spell: dict[str, int] | None) -> bytes:
    """A token's text; b"" for one that no byte-level text spells."""
    if spell is None:
        return token.encode()
    return bytes(spell[c] for c in token) if all(c in spell for c in token) else b""


def strings(texts: Iterable[bytes], starts: Section, data: Section) -> dict[Section, np.ndarray]:
    """Texts one after the other, and where each starts."""
    texts = list(texts)
    ends = np.cumsum([0, *(len(text) for text in texts)])
    joined = np.frombuffer(b"".join(texts), np.uint8)
    return {starts: ends.astype(np.uint32), data: joined}


def byte_of(token: str) -> int | None:
    """The byte that a token such as <0x0A> stands for."""
    found = _BYTE_TOKEN.fullmatch(token)
    return int(found[1], 16) if found else None
