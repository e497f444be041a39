"""Tokenizers of the kinds that families of models use, trained on Python's documentation."""

from __future__ import annotations

import pydoc_data.topics
import unicodedata
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from morendo.codegen.tokenizer.charsmap import write_charsmap

_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_MORE = (
    "Ünïcödé naïve café 日本語の文章 Привет мир 안녕하세요 مرحبا 😀😃👩‍👩‍👧 1234 ५६७ ß ﬁ Å \t\r\n"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿ]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
)


def _byte_level(pre: list[pre_tokenizers.PreTokenizer], **options: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre[0] if len(pre) == 1 else pre_tokenizers.Sequence(pre)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _bytes(use_regex: bool = True, prefix: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=use_regex)


def _by(*patterns: str, behavior: str = "isolated") -> list[pre_tokenizers.PreTokenizer]:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior) for pattern in patterns]
    return [*splits, _bytes(use_regex=False)]


def _sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", _MARK)  # type: ignore[assignment]
    parts = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    return tokenizer


def _llama2() -> Tokenizer:
    tokenizer = _sentencepiece()
    parts = [normalizers.Prepend(_MARK), normalizers.Replace(" ", _MARK)]
    tokenizer.normalizer = normalizers.Sequence(parts)  # type: ignore[assignment]
    decoding = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)])  # type: ignore[assignment]
    return tokenizer


def _gemma() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    return tokenizer


def _metaspace(scheme: str, split: bool) -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_MARK, scheme, split)  # type: ignore[assignment]
    return tokenizer


def _qwen2() -> Tokenizer:
    tokenizer = _byte_level(_by(_LLAMA3.replace("{1,3}", "")))
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    return tokenizer


def _without_merges_of_words() -> Tokenizer:
    return _byte_level(_by(_LLAMA3), ignore_merges=True)


def _unigram(scheme: str) -> Tokenizer:
    """SentencePiece's other model: as Llama 2 is written, or with words split at their marks."""
    tokenizer = _llama2() if not scheme else _metaspace(scheme, True)
    tokenizer.model = models.Unigram()  # type: ignore[assignment]
    return tokenizer


def _t5() -> Tokenizer:
    """As transformers writes T5 and XLM-R."""
    tokenizer = _metaspace("always", True)
    parts = [
        normalizers.Precompiled(charsmap()),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), _MARK),
    ]
    tokenizer.normalizer = normalizers.Sequence(parts)  # type: ignore[assignment]
    tokenizer.model = models.Unigram()  # type: ignore[assignment]
    return tokenizer


@cache
def charsmap() -> bytes:
    """Of the kind of SentencePiece's nmt_nfkc: blanks, compatibility characters, what is deleted.

    Marks and other second characters of clusters are among them, and clusters themselves.
    """
    mapped = {
        "\t": " ",
        "\n": " ",
        "\r": "",
        "\x85": " ",
        "\u3000": " ",
        "\u200d": "",
        "\u0301": "'",
    }
    mapped |= {c: "\u0915" for c in "\u0915\u0928\u094d"} | {
        "a": "A",
        "e\u0301": "é",
        "\xa9": "(c)",
    }
    for point in (*range(0xA0, 0x180), *range(0x1100, 0x1200, 3), *range(0x2460, 0x2490), 0xFDFA):
        text = unicodedata.normalize("NFKC", chr(point))
        if text != chr(point):
            mapped[chr(point)] = text
    return write_charsmap(mapped)


FAMILIES = {
    "gpt2": lambda: _byte_level([_bytes()]),
    "prefix": lambda: _byte_level([_bytes(prefix=True)]),
    "smollm": lambda: _byte_level([pre_tokenizers.Digits(True), _bytes()]),
    "llama3": _without_merges_of_words,
    "qwen2": _qwen2,
    "phi4": lambda: _byte_level(_by(_O200K)),
    "deepseek": lambda: _byte_level(
        [*_by(*_DEEPSEEK)[:-1], pre_tokenizers.Digits(True), _bytes(use_regex=False)]
    ),
    "llama2": _llama2,
    "gemma": _gemma,
    "mistral": lambda: _metaspace("first", False),
    "metaspace": lambda: _metaspace("always", True),
    "unigram": lambda: _unigram(""),
    "unigram_words": lambda: _unigram("first"),
    "t5": _t5,
}


@cache
def text() -> str:
    topics = "\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics))
    return topics[:200_000] + _MORE * 20


@cache
def trained(family: str) -> Tokenizer:
    """A tokenizer of 2,000 tokens or so, with added tokens of every kind."""
    tokenizer = FAMILIES[family]()
    special = ["<unk>", "<s>", "</s>"]
    unigram = family.startswith("unigram") or family == "t5"
    falls_back = family == "unigram" or (not unigram and tokenizer.model.byte_fallback)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)] if falls_back else []
    common = {"vocab_size": 2000, "special_tokens": special + spelled, "show_progress": False}
    trainer = (
        trainers.UnigramTrainer(unk_token="<unk>", **common)
        if unigram
        else trainers.BpeTrainer(
            initial_alphabet=[] if falls_back else pre_tokenizers.ByteLevel.alphabet()[:250],
            limit_alphabet=200,
            **common,
        )
    )
    tokenizer.train_from_iterator(text().splitlines(keepends=True), trainer)
    tokenizer = _plain_bytes(tokenizer) if falls_back else tokenizer
    tokenizer.add_special_tokens(
        [
            AddedToken("<|im_start|>", normalized=False),
            AddedToken("<|im_end|>", normalized=False, special=True),
            AddedToken("<mask>", normalized=False, lstrip=True),
            AddedToken("<tail>", normalized=False, rstrip=True),
        ]
    )
    blanks = [] if family == "t5" else ["    "]  # nothing would be left of it
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in [*blanks, "<tool>"]])
    return tokenizer


def _plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer makes special tokens of bytes; in models they are plain entries."""
    import json

    facts = json.loads(tokenizer.to_str())
    facts["model"]["byte_fallback"] = True
    facts["added_tokens"] = [t for t in facts["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(facts))
