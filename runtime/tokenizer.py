"""Text to token ids and back, with the tokenizer and chat template of an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

from morendo.ir.errors import ArtifactError, InputError
from morendo.runtime.artifact import CHAT_TEMPLATE, TOKENIZER
from morendo.runtime.chat_template import Message, render_chat
from morendo.runtime.text_stream import TextStream

_BAD_IDS = "token ids must be whole numbers, 0 or more, and fit 32 bits"


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

    @property
    def has_chat_template(self) -> bool:
        """The model comes with a template for conversations."""
        return (self._directory / CHAT_TEMPLATE).exists()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, after the beginning-of-text token if the model expects one."""
        start = [self._facts["bos"]] if self._facts["add_bos"] else []
        return start + self._encode_plain(text)

    def encode_chat(self, chat: str | Sequence[Message], system: str | None = None) -> list[int]:
        """Token ids of a conversation, ready for the model's answer; see `render_chat`."""
        return self._encode_plain(self.render_chat(chat, system))

    def render_chat(self, chat: str | Sequence[Message], system: str | None = None) -> str:
        """The text of a conversation in the model's chat template, ready for the answer.

        Args:
            chat: what the user says, or all messages.
            system: a message that goes in front of them.

        Raises:
            InputError: when there is no template, or it refuses the conversation.
        """
        if not isinstance(chat, Iterable):
            raise InputError(f"a chat is a text or a list of messages (got {chat!r})")
        messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        return self._render(messages)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, without special tokens."""
        try:
            return self._require().decode([index(i) for i in ids], skip_special_tokens=True)
        except (OverflowError, TypeError, ValueError):
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
        if not isinstance(text, str):
            raise InputError(f"the text is no str (got {text!r})")
        try:
            return library.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair
            raise InputError("the text is not valid Unicode") from None

    def _render(self, messages: list[Message]) -> str:
        path = self._directory / CHAT_TEMPLATE
        if not self.has_chat_template:
            raise InputError("this model has no chat template", hint="use encode, or chat=False")
        try:
            source = path.read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read it ({error})", where=str(path)) from None
        return render_chat(source, messages, self._special_tokens())

    def _special_tokens(self) -> dict[str, str]:
        """Texts of "bos_token" and others, as far as the model has them."""
        if "special_tokens" in self._facts:
            return self._facts["special_tokens"]
        ids = {f"{name}_token": self._facts.get(name) for name in ("bos", "eos")}
        library = self._require()
        return {name: library.id_to_token(i) or "" for name, i in ids.items() if i is not None}


def _load(path: Path) -> Any:
    if not path.exists():
        return None
    from tokenizers import Tokenizer as Library

    try:
        return Library.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        message = " ".join(str(error).split())
        raise ArtifactError(f"cannot read the tokenizer ({message})", where=str(path)) from None
