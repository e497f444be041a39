"""What a compiled model knows about its texts, linked into it as C data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ChatForm:
    """Texts around the messages of a chat of one question.

    Attributes:
        user: before and behind what the user says.
        system: with a system message: before it, between both, behind what the user says; empty
            where the model takes none.
        trims: blanks around messages are taken away.
    """

    user: tuple[str, str]
    system: tuple[str, str, str] | None = None
    trims: bool = False


@dataclass(frozen=True)
class SamplingDefaults:
    """How tokens are drawn unless the command line says otherwise; as `runtime/sampling.py`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class TextFacts:
    """What a library and an executable know of their model besides its plan.

    Attributes:
        name: the model's.
        version: of morendo, which compiles it.
        bos: id in front of a text, or None.
        stops: ids that end an answer.
        missing_tokenizer: why the tokenizer was not compiled; "" when it was.
        chat: the form of chats, or None.
        missing_chat: why there is no form; "" when the model has no template either.
        level_bytes: of weights that a decode step reads, by precision level.
        weights: how many these are.
    """

    name: str = ""
    version: str = ""
    bos: int | None = None
    stops: Sequence[int] = ()
    missing_tokenizer: str = ""
    chat: ChatForm | None = None
    missing_chat: str = ""
    sampling: SamplingDefaults = field(default=SamplingDefaults())
    level_bytes: Sequence[int] = ()
    weights: int = 0

    def c_source(self) -> str:
        """The definition of `model_facts` (runtime/c/model.h)."""
        chat = self.chat or ChatForm(("", ""))
        s = self.sampling
        drawn = ", ".join(f"{float(x)!r}" for x in (s.temperature, s.top_p, s.min_p))
        fields = [
            f".name = {c_string(self.name)}",
            f".version = {c_string(self.version)}",
            ".stops = stops",
            f".stop_count = {len(self.stops)}",
            f".bos = {-1 if self.bos is None else self.bos}",
            f".missing_tokenizer = {_optional(self.missing_tokenizer)}",
            f".missing_chat = {'0' if self.chat else c_string(self.missing_chat)}",
            f".user = {_texts(chat.user)}",
            f".system = {_texts(chat.system) if chat.system else '{0}'}",
            f".trims = {int(chat.trims)}",
            ".level_bytes = level_bytes",
            f".weights = {self.weights}",
            f".sampling = {{{drawn}, {float(s.repetition_penalty)!r}, {s.top_k}}}",
        ]
        stops = ", ".join(map(str, [*self.stops, -1]))
        body = "".join(f"    {line},\n" for line in fields)
        sizes = ", ".join(map(str, [*self.level_bytes, 0]))
        head = f'#include "model.h"\n\nstatic const int32_t stops[] = {{{stops}}};\n'
        head += f"static const int64_t level_bytes[] = {{{sizes}}};\n"
        return f"{head}\nconst Model model_facts = {{\n{body}}};\n"


def c_string(text: str) -> str:
    """A C string literal of UTF-8 bytes."""
    return '"' + "".join(_c_byte(byte) for byte in text.encode()) + '"'


def _c_byte(byte: int) -> str:
    """Octal escapes have three digits at most, so what follows cannot become a part of them."""
    plain = 0x20 <= byte < 0x7F and chr(byte) not in '"\\?'
    return chr(byte) if plain else f"\\{byte:03o}"


def _optional(text: str) -> str:
    return c_string(text) if text else "0"


def _texts(texts: Sequence[str]) -> str:
    return "{" + ", ".join(map(c_string, texts)) + "}"
