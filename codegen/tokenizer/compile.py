"""tokenizer.json to tables."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from morendo.codegen.build_cache import BuildCache, cache_key

from . import vocabulary
from .added import added_sections
from .decoding import decoding_sections
from .errors import UnsupportedTokenizer
from .nfc import nfc_sections
from .steps import read_steps
from .tables import Fact, Section, pack_tables


def compile_tokenizer(text: str) -> bytes:
    """The tables of a tokenizer.json, which the runtime maps.

    With them it gives the ids and texts that the `tokenizers` library gives, without the special
    tokens of a post-processor.

    Args:
        text: what the file holds.

    Raises:
        UnsupportedTokenizer: for a tokenizer with a part that has no tables.
    """
    facts, sections = _tables(json.loads(text), Tokenizer.from_str(text))
    sections[Section.FACTS] = np.array([facts[fact] for fact in Fact], np.int32)
    return pack_tables(sections)


def kept_tokenizer(text: str, cache: BuildCache) -> bytes:
    """`compile_tokenizer`, or its result of another time."""
    ours = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    key = cache_key("tokenizer", version("tokenizers"), ours, text)
    return cache.get(key, lambda: compile_tokenizer(text))


def _tables(
    tokenizer: dict[str, Any], library: Tokenizer
) -> tuple[dict[Fact, int], dict[Section, np.ndarray]]:
    for setting in ("truncation", "padding"):
        if tokenizer.get(setting):
            raise UnsupportedTokenizer(f"{setting} of texts")
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
    vocabulary.check_model(model)
    steps = read_steps(tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    if steps.by_bytes and model["type"] == "Unigram":
        raise UnsupportedTokenizer("a Unigram model behind ByteLevel")
    known = vocabulary.token_ids(model).values()
    size = 1 + max([*known, *(token["id"] for token in added)])
    tokens = [library.id_to_token(i) for i in range(size)]
    facts = vocabulary.model_facts(model, size) | {Fact.SYMBOLS_ARE_BYTES: int(steps.by_bytes)}
    sections = vocabulary.merge_sections(model, size)
    sections |= vocabulary.symbol_sections(model, steps.by_bytes)
    if facts[Fact.WHOLE_WORDS] or facts[Fact.UNIGRAM]:
        sections |= vocabulary.word_sections(model, steps.by_bytes)
    if steps.needs_nfc():
        sections |= nfc_sections()
    special = {token["id"] for token in added if token["special"]}
    normalizer = library.normalizer
    normalize = normalizer.normalize_str if normalizer else str
    parts = (
        steps.sections(),
        decoding_sections(tokenizer.get("decoder"), tokens, special),
        added_sections(added, normalize),
    )
    for more_facts, more_sections in parts:
        facts |= more_facts
        sections |= more_sections
    return facts, sections
