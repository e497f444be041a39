"""The vocabulary of a GGUF file as a tokenizer that cuts text as llama.cpp does.

Built from the file's lists, so it has exactly the file's tokens: transformers' tokenizer classes
append the special tokens that they expect and do not find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers.tokenization_utils_base import generate_merges

from .metadata import Metadata
from .pre_tokenizers import STARTS, WHOLE_WORDS, names, pre_tokenizer
from .split import GgufFile

_SPACE = "\u2581"  # how vocabularies of SentencePiece write a blank
_MARKED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
# Tokens that no text starts or ends with, and what is looked up elsewhere.
_HARMLESS = {
    *(f"{n}_token_id" for n in ("padding", "seperator", "mask", "cls", "prefix", "suffix")),
    *(f"fim_{n}_token_id" for n in ("pre", "suf", "mid", "pad", "rep", "sep")),
    *("middle_token_id", "token_type_count", "pre"),
    "add_space_prefix",  # llama.cpp puts no blank before texts of byte-level vocabularies
}
# Found whole in every file: older converters left these among the plain tokens.
_TURN_ENDS = {
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_sep_token": (False,),
    "remove_extra_whitespaces": (False,),
    "normalizer.lowercase": (False,),
    "normalizer.strip_accents": (False,),
}


@dataclass(frozen=True)
class GgufVocabulary:
    """A file's tokenizer.

    Attributes:
        library: the tokenizers.Tokenizer.
        chat_template: Jinja source, "" when there is none.
        bos, eos: ids, None when the file has none.
    """

    library: Any
    chat_template: str
    bos: int | None
    eos: int | None


def read_vocabulary(file: GgufFile) -> GgufVocabulary | None:
    """The tokenizer of a file; None when it has none.

    Raises:
        InputError: for a kind of tokenizer that is not known here, and for lists that are
            missing or do not fit each other.
    """
    keys = Metadata(file, "tokenizer.ggml.")
    kind = keys.text("model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in ("gpt2", "llama"):
        raise keys.error(f"GGUF key tokenizer.ggml.model is {kind!r}, need 'gpt2' or 'llama'")
    tokens = _tokens(keys)
    types = _list(keys, "token_type", int, len(tokens), [TokenType.NORMAL] * len(tokens))
    special = {n: _id(keys, n, len(tokens), kind) for n in ("bos", "eos", "eot", "eom", "unknown")}
    if kind == "gpt2":
        library, starts = _byte_level(keys, tokens)
    else:
        library, starts = _sentencepiece(keys, tokens, types, special["unknown"]), True
    stated = {i for name, i in special.items() if f"{name}_token_id" in keys}
    _mark(library, file, tokens, types, stated, kind)
    _frame(keys, library, tokens, special["bos"], special["eos"], starts)
    keys.finish(_HARMLESS, _NEUTRAL)
    template = file.metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise keys.error(f"GGUF key tokenizer.chat_template is {template!r}, need a text")
    return GgufVocabulary(library, template, special["bos"], special["eos"])


def unsaid(file: GgufFile) -> list[str]:
    """What the person should know of a vocabulary: notes."""
    keys = Metadata(file, "tokenizer.ggml.")
    if keys.raw("model", None) != "gpt2" or keys.raw("pre", "default") != "default":
        return []
    return [
        "the file does not say how its vocabulary cuts text into words (tokenizer.ggml.pre): text "
        "is cut as llama.cpp does by default, which may be other than in the model's training"
    ]


def _list(keys: Metadata, name: str, kind: type, count: int | None, default: Any) -> list[Any]:
    """A list of `count` values of one type, or the default when there is none."""
    values = keys.raw(name, None)
    if values is None:
        return default
    if not isinstance(values, list) or any(type(v) is not kind for v in values):
        raise keys.error(f"GGUF key tokenizer.ggml.{name} is not a list of {kind.__name__}")
    if count is not None and len(values) != count:
        raise keys.error(
            f"GGUF key tokenizer.ggml.{name} has another length than the list of tokens "
            f"(got {len(values)}, need {count})"
        )
    return values


def _tokens(keys: Metadata) -> list[str]:
    found = _list(keys, "tokens", str, None, [])
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(found)]
    if not tokens:
        raise keys.error("the GGUF file has no key tokenizer.ggml.tokens")
    if len(set(tokens)) < len(tokens):
        place = {token: i for i, token in enumerate(tokens)}
        twice = next(t for i, t in enumerate(tokens) if place[t] != i)
        raise keys.error(f"token {twice!r} is twice in the GGUF file's vocabulary")
    return tokens


def _id(keys: Metadata, name: str, count: int, kind: str) -> int | None:
    """The id of a special token; SentencePiece's usual ones where the file does not say."""
    usual = {"unknown": 0, "bos": 1, "eos": 2}.get(name) if kind == "llama" else None
    found = keys.integer(f"{name}_token_id", usual)
    if found is not None and found >= count:
        raise keys.error(
            f"GGUF key tokenizer.ggml.{name}_token_id is {found}, need a token's id below {count}"
        )
    return found


def _byte_level(keys: Metadata, tokens: list[str]) -> tuple[Any, bool]:
    """(a vocabulary of bytes written as letters, as GPT-2 has it; texts start with bos)."""
    name = keys.text("pre", "default")
    if name not in names():
        raise keys.error(
            f"GGUF key tokenizer.ggml.pre is {name!r}: how this vocabulary cuts text is not known",
            hint=f"known: {', '.join(names())}",
        )
    merges = _list(keys, "merges", str, None, None)
    if merges is None:
        raise keys.error("the GGUF file has no key tokenizer.ggml.merges")
    keys.raw("scores", None)  # some files have them; merges alone decide
    model = _bpe(keys, tokens, [_pair(m) for m in merges], ignore_merges=name in WHOLE_WORDS)
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer(name)
    library.decoder = decoders.ByteLevel()
    return library, name in STARTS


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge[1:].partition(" ")  # a token may begin with a blank
    return merge[:1] + left, right


def _sentencepiece(keys: Metadata, tokens: list[str], types: list[int], unknown: int | None) -> Any:
    """A vocabulary of pieces with scores: the pair that makes the best piece merges first."""
    scores = _list(keys, "scores", float, len(tokens), None)
    merges = [_pair(m) for m in _list(keys, "merges", str, None, [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if scores is not None:
        if keys.file.architecture.startswith("gemma"):  # as its own tokenizer.json has them
            scores = [-float(i) for i in range(len(tokens))]
        plain = (TokenType.NORMAL, TokenType.UNUSED)
        marked = {t for t, kind in zip(tokens, types, strict=True) if kind not in plain}
        merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)), marked)
    elif not merges:
        raise keys.error("the GGUF file has neither tokenizer.ggml.scores nor merges")
    unk = None if unknown is None else tokens[unknown]
    library = Tokenizer(
        _bpe(keys, tokens, merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    )
    prefix = keys.flag("add_space_prefix", True)
    blanks = normalizers.Replace(" ", _SPACE)
    first = [normalizers.Prepend(_SPACE)] if prefix else []
    library.normalizer = normalizers.Sequence([*first, blanks])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence([*steps, *last])
    return library


def _bpe(keys: Metadata, tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Any:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for left, right in merges:
        if not {left, right, left + right} <= vocabulary.keys():
            raise keys.error(f"GGUF key tokenizer.ggml.merges: {left!r} {right!r} makes no token")
    return models.BPE(vocab=vocabulary, merges=merges, **options)


def _mark(
    library: Any, file: GgufFile, tokens: list[str], types: list[int], named: set[Any], kind: str
) -> None:
    """Tokens that are found whole in a text, before it is cut into words."""
    # Phi-3's markers swallow the blanks behind them, which no key says.
    swallow = kind == "llama" and file.architecture == "phi3"
    keep = {"<unk>", "<s>", "<|endoftext|>"}
    marked = [
        AddedToken(
            token,
            normalized=False,
            special=types[i] != TokenType.USER_DEFINED,
            rstrip=swallow and token not in keep,
        )
        for i, token in enumerate(tokens)
        if types[i] in _MARKED or i in named or token in _TURN_ENDS
    ]
    library.add_tokens(marked)


def _frame(
    keys: Metadata, library: Any, tokens: list[str], bos: int | None, eos: int | None, starts: bool
) -> None:
    """What is put before and behind a text."""
    before = [bos] if keys.flag("add_bos_token", starts) and bos is not None else []
    behind = [eos] if keys.flag("add_eos_token", False) and eos is not None else []
    if not before and not behind:
        return
    pieces = [*(tokens[i] for i in before), "$A", *(tokens[i] for i in behind)]
    library.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=[(tokens[i], i) for i in {*before, *behind}]
    )
