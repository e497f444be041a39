"""How a byte-level vocabulary cuts text into words: `tokenizer.ggml.pre`.

The names are llama.cpp's; the patterns are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

# As GPT-2: contractions, letters, digits, other signs.
_WORDS = (
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling"),
    *("gigachat", "a.x-4.0", "mellum", "modern-bert", "jina-es", "jina-de"),
)
# As GPT-2, but every digit is a word.
_DIGITS = (
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "mellum2",
)
_BLOOM = (r" ?[^(\s|[.,!?…。，、।۔،])]+",)
_SPLITS: dict[str, tuple[str, ...]] = {
    **{name: (split,) for name, split in GGUF_PRE_TOKENIZER_SPLITS.items()},
    "stablelm2": (GGUF_PRE_TOKENIZER_SPLITS["qwen2"],),
    "glm4": (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"],),
    "chatglm-bpe": (GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"],),
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "viking": (*_BLOOM, r"\p{N}"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
}
_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# What llama.cpp does with files that name no pre-tokenizer.
_SPLITS["default"] = (r"[\p{P}\$\+<=>\^~\|]+", _CONTRACTIONS, r"\p{N}+", "[0-9][0-9][0-9]")
_LLAMA3 = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "jina-v5-nano",
)
# Words that are tokens stay whole, whatever the merges say.
WHOLE_WORDS = {*_LLAMA3, "tekken"}
# Texts start with the first token unless the file says otherwise.
STARTS = {*_LLAMA3, "tekken"}


def names() -> list[str]:
    """All names of `tokenizer.ggml.pre` that are known."""
    return sorted({*_WORDS, *_DIGITS, *_SPLITS})


def pre_tokenizer(name: str) -> Any:
    """The tokenizers.PreTokenizer of a known name."""
    if name in _WORDS:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in _SPLITS[name]]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, letters])
