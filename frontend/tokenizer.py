"""The model's tokenizer as files that need no transformers: tokenizer.json, chat_template.jinja."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from morendo.ir.errors import InputError

from .gguf import GgufFile, read_vocabulary
from .model_files import refuse_pointer

TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
_FILES = (TOKENIZER, "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt")
_NAMED = "tokenizer.chat_template."  # GGUF keys of templates for other uses
# Tokens that end a turn in chat templates; models are often not configured to stop at them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class ModelTokenizer:
    """What is known of a model's tokenizer.

    Attributes:
        library: the tokenizers.Tokenizer.
        chat_template: Jinja source, "" when there is none.
        other_templates: names of templates for other uses, such as "tool_use".
        special_tokens: texts of "bos_token", "eos_token" and others, which templates write.
        size: number of token ids, added tokens included.
        bos, eos: ids, None when the tokenizer has none.
        add_bos: texts start with bos.
        turn_ends: ids of special tokens that end a turn in the chat template.
    """

    library: Any
    chat_template: str
    other_templates: tuple[str, ...]
    special_tokens: dict[str, str]
    size: int
    bos: int | None
    eos: int | None
    add_bos: bool
    turn_ends: tuple[int, ...]

    def notes(self) -> list[str]:
        """What the person should know."""
        names = ", ".join(self.other_templates)
        return [f"chat templates that are not used: {names}"] if names else []

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, and chat_template.jinja when there is a template."""
        self.library.save(str(directory / TOKENIZER))
        if self.chat_template:
            (directory / CHAT_TEMPLATE).write_bytes(self.chat_template.encode())


def load_tokenizer(
    path: Path, vocabulary: int, file: GgufFile | None = None
) -> ModelTokenizer | None:
    """The tokenizer of a model directory or GGUF file; None when there is none.

    Args:
        path: where the model is.
        vocabulary: number of the model's logits.
        file: the GGUF file at `path`, if it is one.

    Raises:
        InputError: when it cannot be read, or needs more tokens than the model has.
    """
    if file is not None:
        stored = read_vocabulary(file)
        if stored is None:
            return None
        library, bos, eos = stored.library, stored.bos, stored.eos
        named = {k.removeprefix(_NAMED): v for k, v in file.metadata.items() if _NAMED in k}
        templates = _templates({"default": stored.chat_template, **named}, str(path))
        ends = {"bos_token": bos, "eos_token": eos}
        special = {name: library.id_to_token(i) for name, i in ends.items() if i is not None}
    elif not any(path.glob("*token*")) and not any(path.glob("vocab*")):
        return None
    else:
        found = _load(path)
        library = found.backend_tokenizer
        templates = _templates(found.chat_template, str(path))
        bos, eos = found.bos_token_id, found.eos_token_id
        special = dict(found.special_tokens_map)
    template = templates.pop("default", "")
    library = _within(library, vocabulary, (bos, eos), template, str(path))
    start = library.encode("a", add_special_tokens=True).ids[:1]
    return ModelTokenizer(
        library=library,
        chat_template=template,
        other_templates=tuple(templates),
        special_tokens=special,
        size=library.get_vocab_size(with_added_tokens=True),
        bos=bos,
        eos=eos,
        add_bos=bos is not None and start == [bos],
        turn_ends=_turn_ends(library, template),
    )


def _within(
    library: Tokenizer, vocabulary: int, ends: tuple[int | None, ...], template: str, where: str
) -> Tokenizer:
    """The tokenizer without added tokens that the model has no row for, if none is needed.

    People add a [PAD] for training and leave the embedding as it was.
    """
    known = library.get_vocab(with_added_tokens=True)
    behind = {token: i for token, i in known.items() if i >= vocabulary}
    if not behind:
        return library
    facts = json.loads(library.to_str())
    added = {token["content"] for token in facts["added_tokens"]}
    base = facts["model"]["vocab"]
    words = set(base) if isinstance(base, dict) else {word for word, _ in base}
    framed = json.dumps(facts["post_processor"], ensure_ascii=False)
    for token, i in behind.items():
        unused = token in added and token not in words and i not in ends
        if not unused or token in template or json.dumps(token, ensure_ascii=False) in framed:
            raise InputError(
                f"the tokenizer has ids that the model does not know "
                f"(got id {i} for {token!r}, need below {vocabulary})",
                where=where,
                hint="tokenizer and weights are of different models",
            )
    facts["added_tokens"] = [t for t in facts["added_tokens"] if t["id"] < vocabulary]
    facts["padding"] = None
    return Tokenizer.from_str(json.dumps(facts))


def _load(path: Path) -> PreTrainedTokenizerFast:
    for name in _FILES:
        refuse_pointer(path / name)
    try:
        found = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # transformers and tokenizers raise many types
        missing = "the key {} is missing" if isinstance(error, KeyError) else "{}"
        said = missing.format(" ".join(str(error).split()))
        raise InputError(
            f"the tokenizer cannot be read ({said[:200]})",
            where=str(path),
            hint="tokenizer.json is missing or damaged",
        ) from error
    if not isinstance(found, PreTrainedTokenizerFast):
        raise InputError(
            f"the tokenizer has no tokenizer.json form ({type(found).__name__})", where=str(path)
        )
    return found


def _templates(found: Any, where: str) -> dict[str, str]:
    """Name -> Jinja source; a template without a name is the "default"."""
    named = found if isinstance(found, dict) else {"default": found or ""}
    for name, source in named.items():
        if not isinstance(source, str) or not _is_unicode(source):
            raise InputError(f"the chat template {name!r} is no text", where=where)
    return {name: source for name, source in named.items() if source}


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _turn_ends(library: Any, template: str) -> tuple[int, ...]:
    added = {token.content: i for i, token in library.get_added_tokens_decoder().items()}
    return tuple(added[t] for t in _TURN_ENDS if t in added and t in template)
