"""The file of a compiled tokenizer: numbered arrays that the C runtime maps and walks."""

from __future__ import annotations

import enum
import struct

import numpy as np

MAGIC, VERSION, ALIGNMENT = b"MRTK", 3, 8
_FACTOR = 0x9E3779B97F4A7C15  # odd; spreads what changes over all bits


class Section(enum.IntEnum):
    """The arrays in the order of the file; runtime/c/tokenizer.h has the same list."""

    FACTS = 0  # int32, one of each `Fact`
    CLASS_NUMBERS = enum.auto()  # uint16: code point / 256 -> page of CLASS_PAGES
    CLASS_PAGES = enum.auto()  # uint8 [pages, 256]: class of a character
    CLASS_SPACES = enum.auto()  # uint8 [classes]: 1 where the class is white space
    SPLITTERS = enum.auto()  # int32 [n, 4]: states, first transition, behavior, inverted
    TRANSITIONS = enum.auto()  # uint16 [states, classes + 1]: 2 * next state + match ends here
    STEPS = enum.auto()  # int32 [n, 4]: kind and operands, normalizers first
    STRINGS = enum.auto()  # bytes that steps refer to
    TEXT_STARTS = enum.auto()  # uint32 [vocabulary + 1]
    TEXTS = enum.auto()  # bytes: what each token decodes to
    KINDS = enum.auto()  # uint8 [vocabulary]: 1 special, 2 a byte, 3 not a token
    BYTE_IDS = enum.auto()  # int32 [256]: the token of a byte, or -1
    CHARACTERS = enum.auto()  # uint32, sorted: characters that are tokens
    CHARACTER_IDS = enum.auto()  # int32
    MERGE_STARTS = enum.auto()  # uint32 [vocabulary + 1]: by left token
    MERGE_RIGHTS = enum.auto()  # int32, sorted within a left token
    MERGE_RANKS = enum.auto()  # int32
    MERGE_RESULTS = enum.auto()  # int32
    WORD_STARTS = enum.auto()  # uint32 [words + 1]
    WORDS = enum.auto()  # bytes, sorted: whole words that are tokens
    WORD_IDS = enum.auto()  # int32
    SCORES = enum.auto()  # float64 [words + 1]: of words in a Unigram model, then of the unknown
    NODE_STARTS = enum.auto()  # uint32 [nodes + 1]: edges of a node of the tries of added tokens
    NODE_IDS = enum.auto()  # int32 [nodes]: index of the added token that ends here, or -1
    EDGE_BYTES = enum.auto()  # uint8
    EDGE_NODES = enum.auto()  # uint32
    ADDED = enum.auto()  # int32 [n, 2]: id, 1 strips blanks before it, 2 behind it
    DECOMPOSED = enum.auto()  # uint32, sorted: characters that NFD takes apart
    DECOMPOSITION_STARTS = enum.auto()  # uint32 [n + 1]
    DECOMPOSITIONS = enum.auto()  # uint32
    MARKS = enum.auto()  # uint32, sorted: characters with a combining class
    MARK_CLASSES = enum.auto()  # uint8
    COMPOSITIONS = enum.auto()  # uint32 [n, 3], sorted: first, second, composed
    CHARSMAP = enum.auto()  # uint32: units of a double array, of UTF-8 strings
    REPLACEMENTS = enum.auto()  # UTF-8: what stands for them, each with a zero byte behind it


class Fact(enum.IntEnum):
    """The numbers of section FACTS."""

    VOCABULARY = 0
    CLASSES = enum.auto()
    SYMBOLS_ARE_BYTES = enum.auto()
    BYTE_FALLBACK = enum.auto()
    UNKNOWN = enum.auto()  # id or -1
    FUSE_UNKNOWN = enum.auto()
    WHOLE_WORDS = enum.auto()
    UNIGRAM = enum.auto()  # the model has scores of words instead of merges
    RAW_TRIE = enum.auto()  # node, or -1
    NORMALIZED_TRIE = enum.auto()
    NORMALIZERS = enum.auto()  # how many of the steps come before normalized added tokens
    BYTES_DECODE = enum.auto()  # texts are bytes of one stream (byte-level), else of characters
    STRIP_START = enum.auto()  # blanks that decoding takes away in front


class Step(enum.IntEnum):
    """Kinds of steps; operands are offset and size in STRINGS, or a splitter."""

    NFC = 0
    PREPEND = enum.auto()  # text: offset, bytes; where a piece is not empty
    REPLACE = enum.auto()  # what a splitter matches by another text: splitter, offset, bytes
    SPLIT = enum.auto()  # splitter
    PREPEND_MISSING = enum.auto()  # text: offset, bytes; 1: only at the start of the text
    STRIP_END = enum.auto()  # white space
    CHARSMAP = enum.auto()  # clusters of characters by REPLACEMENTS: the splitter of a cluster


class Behavior(enum.IntEnum):
    """What becomes of the matches of a splitter."""

    REMOVED = 0
    ISOLATED = enum.auto()
    CONTIGUOUS = enum.auto()
    MERGED_WITH_PREVIOUS = enum.auto()
    MERGED_WITH_NEXT = enum.auto()


def pack_tables(sections: dict[Section, np.ndarray]) -> bytes:
    """The file; sections that are left out are empty."""
    offset = _aligned(16 + 16 * len(Section))
    entries, parts = [], []
    for section in Section:
        data = sections[section].tobytes() if section in sections else b""
        entries.append(struct.pack("<QQ", offset, len(data)))
        padding = _aligned(len(data)) - len(data)
        parts.append(data + bytes(padding))
        offset += len(data) + padding
    listed = b"".join(entries)
    body = listed + bytes(_aligned(len(listed)) - len(listed)) + b"".join(parts)
    return MAGIC + struct.pack("<III", VERSION, len(Section), checksum(body)) + body


def checksum(body: bytes) -> int:
    """A sum of words, each times an odd number of its own, so that no changed word goes unseen."""
    words = np.frombuffer(body, np.uint64)
    with np.errstate(over="ignore"):
        odd = (2 * np.arange(len(words), dtype=np.uint64) + 1) * np.uint64(_FACTOR)
        total = int((words * odd).sum(dtype=np.uint64))
    return (total ^ total >> 32) & 0xFFFFFFFF


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
