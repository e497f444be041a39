"""Text to token ids and back, with the tokenizer and chat template of an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from morendo.ir.errors import ArtifactError, InputError
from morendo.runtime.artifact import CHAT_TEMPLATE, TOKENIZER
from morendo.runtime.text_stream import TextStream

Message = dict[str, str]  # {"role": "user", "content": "..."}
_BAD_IDS = "token ids must be 0 or more and fit 32 bits"


class Tokenizer:
    """The tokenizer of the artifact in `directory`.

    Args:
        directory: the artifact; without a tokenizer.json only token ids can be used.
        facts: "tokenizer" of its manifest.
    """

    def __init__(self, directory: Path, facts: dict[str, Any]) -> None:
        self._directory = directory
        self._facts = facts
        self._library = _load(directory / TOKENIZER)
        self._template: Any = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, after the beginning-of-text token if the model expects one."""
        start = [self._facts["bos"]] if self._facts["add_bos"] else []
        return start + self._encode_plain(text)

    def encode_chat(self, chat: str | Sequence[Message], system: str | None = None) -> list[int]:
        """Token ids of a conversation, ready for the model's answer.

        `chat` is what the user says, or all messages; `system` goes in front of them.
        """
        messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self._encode_plain(self._render(messages))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        try:
            return self._require().decode([int(i) for i in ids], skip_special_tokens=True)
        except OverflowError:
            raise InputError(_BAD_IDS) from None

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` piece by piece, as soon as its characters are complete.

        Joined, the pieces are what `decode` gives for all of `ids`.
        """
        try:
            yield from TextStream(self._require()).pieces(map(int, ids))
        except OverflowError:
            raise InputError(_BAD_IDS) from None

    def _require(self) -> Any:
        if self._library is None:
            raise InputError("this artifact has no tokenizer", hint="use token ids")
        return self._library

    def _encode_plain(self, text: str) -> list[int]:
        library = self._require()
        try:
            return library.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair
            raise InputError("the text is not valid Unicode") from None

    def _render(self, messages: list[Message]) -> str:
        from jinja2 import TemplateError

        if self._template is None:
            self._template = _read_template(self._directory / CHAT_TEMPLATE)
        names = {}
        for name in ("bos", "eos"):
            token = self._facts.get(name)
            text = None if token is None else self._require().id_to_token(token)
            names[f"{name}_token"] = text or ""
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **names)
        except (TemplateError, TypeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise InputError(f"the model's chat template refuses this chat ({message})") from None


def _load(path: Path) -> Any:
    if not path.exists():
        return None
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        message = " ".join(str(error).split())
        raise ArtifactError(f"cannot read the tokenizer ({message})", where=str(path)) from None


def _read_template(path: Path) -> Any:
    """The compiled chat template; it runs in a sandbox, since it came with the model."""
    from datetime import datetime

    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not path.exists():
        raise InputError("this model has no chat template", hint="run it without --chat")

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (jinja2.TemplateError, ValueError) as error:
        raise ArtifactError(f"bad chat template ({error})", where=str(path)) from None


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own tojson escapes for HTML, which models were not trained on."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)
