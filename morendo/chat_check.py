"""A model's chat template and generation settings, tried when it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from morendo.frontend import LoadedModel, write_tokenizer
from morendo.frontend.generation import Generation
from morendo.ir.errors import InputError
from morendo.runtime.sampling import SamplingSettings
from morendo.runtime.tokenizer import Tokenizer

_SYSTEM = {"role": "system", "content": "You answer briefly"}
_CHAT = [
    {"role": "user", "content": "How many are one and one"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "And two and two"},
]


def prepare_tokenizer(
    loaded: LoadedModel, directory: Path, note: Callable[[str], None]
) -> dict[str, Any]:
    """Write a model's tokenizer and try its template and settings, before the work begins.

    Args:
        loaded: the model.
        directory: the artifact in the making.
        note: told what the template cannot do.

    Returns:
        What "tokenizer" of the manifest says of it.

    Raises:
        InputError: for sampling settings that are out of range.
    """
    check_generation(loaded.generation)
    if loaded.tokenizer is None:
        return {}
    write_tokenizer(loaded, directory)
    facts = {"special_tokens": loaded.tokenizer.special_tokens}
    chat = check_chat(directory, facts, note)
    return {**facts, "chat": chat} if chat else facts


def check_chat(
    directory: Path, facts: dict[str, Any], note: Callable[[str], None]
) -> dict[str, Any] | None:
    """Render a conversation with the template of an artifact in the making.

    Args:
        directory: with the tokenizer's files.
        facts: "tokenizer" of the manifest.
        note: told what the template cannot do.

    Returns:
        "chat" for the manifest: whether it takes a system message, and what is wrong with it, ""
        when nothing is; None without a template.
    """
    tokenizer = Tokenizer(directory, facts)
    if not tokenizer.has_chat_template:
        return None
    try:
        text = tokenizer.render_chat(_CHAT)
    except InputError as error:
        note(f"note: {error.message}; chats will be refused, plain texts will not")
        return {"system": False, "problem": error.message}
    problem = ""
    if _CHAT[-1]["content"] not in text:
        problem = "the model's chat template leaves out what the user says"
        note(f"note: {problem}")
    return {"system": _takes_system(tokenizer, note), "problem": problem}


def _takes_system(tokenizer: Tokenizer, note: Callable[[str], None]) -> bool:
    try:
        if _SYSTEM["content"] in tokenizer.render_chat([_SYSTEM, *_CHAT]):
            return True
        note("note: the model's chat template leaves out system messages")
    except InputError as error:
        note(f"note: no system messages, {error.message}")
    return False


def check_generation(generation: Generation) -> None:
    """Raise InputError for a model's sampling settings that are out of range."""
    try:
        SamplingSettings(**generation.sampling)
    except InputError as error:
        raise InputError(error.message, where=generation.source) from None
