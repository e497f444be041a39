"""The model's tokenizer as files that need no transformers: tokenizer.json, chat_template.jinja."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from morendo.ir.errors import InputError

TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
# Tokens that end a turn in chat templates; models are often not configured to stop at them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class ModelTokenizer:
    """What is known of a model's tokenizer.

    Attributes:
        library: the tokenizers.Tokenizer.
        chat_template: Jinja source, "" when there is none.
        size: number of token ids, added tokens included.
        bos, eos: ids, None when the tokenizer has none.
        add_bos: texts start with bos.
        turn_ends: ids of special tokens that end a turn in the chat template.
    """

    library: Any
    chat_template: str
    size: int
    bos: int | None
    eos: int | None
    add_bos: bool
    turn_ends: tuple[int, ...]

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, and chat_template.jinja when there is a template."""
        self.library.save(str(directory / TOKENIZER))
        if self.chat_template:
            (directory / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8")


def load_tokenizer(path: Path, vocabulary: int) -> ModelTokenizer | None:
    """The tokenizer of a model directory or .gguf file; None when a directory has none.

    Args:
        path: where the model is.
        vocabulary: number of the model's logits.

    Raises:
        InputError: when it cannot be read, or has more tokens than the model.
    """
    if path.is_dir() and not any(path.glob("*token*")) and not any(path.glob("vocab*")):
        return None
    found = _load(path)
    library = found.backend_tokenizer
    size = library.get_vocab_size(with_added_tokens=True)
    top = max(library.get_vocab(with_added_tokens=True).values(), default=-1)
    if top >= vocabulary:
        raise InputError(
            f"the tokenizer has ids that the model does not know "
            f"(got id {top}, need below {vocabulary})",
            where=str(path),
            hint="tokenizer and weights are of different models",
        )
    template = found.chat_template if isinstance(found.chat_template, str) else ""
    bos: Any = found.bos_token_id
    eos: Any = found.eos_token_id
    start = library.encode("a", add_special_tokens=True).ids[:1]
    return ModelTokenizer(
        library=library,
        chat_template=template,
        size=size,
        bos=bos,
        eos=eos,
        add_bos=bos is not None and start == [bos],
        turn_ends=_turn_ends(library, template),
    )


def _load(path: Path) -> PreTrainedTokenizerFast:
    where = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True, **where
        )
    except Exception as error:  # transformers and tokenizers raise many types
        said = " ".join(str(error).split())
        raise InputError(
            f"the tokenizer cannot be read ({said[:200]})",
            where=str(path),
            hint="tokenizer.json (or the GGUF file's tokens) is missing or damaged",
        ) from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise InputError(
            f"the tokenizer has no tokenizer.json form ({type(found).__name__})", where=str(path)
        )
    return found


def _turn_ends(library: Any, template: str) -> tuple[int, ...]:
    added = {token.content: i for i, token in library.get_added_tokens_decoder().items()}
    return tuple(added[t] for t in _TURN_ENDS if t in added and t in template)
