"""The common case of a chat template: fixed texts around what is said.

Most templates put a text before and a text behind each message. Those texts are found by rendering
marked messages; then other messages are rendered to see that nothing else happens. An executable
that has the texts needs no interpreter of templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from morendo.codegen.text_facts import ChatForm
from morendo.ir.errors import MorendoError

Render = Callable[[Sequence[dict[str, str]]], str]

_USER, _SYSTEM = "\N{LEFT CEILING}user\N{RIGHT CEILING}", "\N{LEFT CEILING}rule\N{RIGHT CEILING}"
# Messages that a template might treat in some way of its own.
_SAMPLES = (
    "a",
    "What is 1 + 1?",
    "two\nlines",
    "<b>&amp;</b> {{ x }}",
    "</think> \N{GRINNING FACE}",
)


def find_chat_form(render: Render) -> ChatForm | str:
    """The form of a template, or why it has none.

    Args:
        render: gives the text of a conversation that waits for an answer.
    """
    try:
        user = _split(render(_chat(_USER)), _USER)
    except MorendoError as error:
        return f"the chat template cannot be rendered ({error})"
    if user is None:
        return "the chat template repeats or changes what the user says"
    system = _system_form(render)
    form = ChatForm((user[0], user[1]), system, _trims(render))
    return form if _holds(render, form) else "the chat template is more than texts around messages"


def apply_form(form: ChatForm, user: str, system: str | None = None) -> str:
    """The text of a chat, as the executable puts it together."""
    if form.trims:
        user, system = user.strip(), system and system.strip()
    if system is None or form.system is None:
        return f"{form.user[0]}{user}{form.user[1]}"
    return f"{form.system[0]}{system}{form.system[1]}{user}{form.system[2]}"


def _chat(user: str, system: str | None = None) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": user}]


def _split(text: str, *marks: str) -> list[str] | None:
    """What lies around the marks, each of which must be there once and in this order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return None
        parts.append(before)
    return [*parts, text]


def _system_form(render: Render) -> tuple[str, str, str] | None:
    try:
        parts = _split(render(_chat(_USER, _SYSTEM)), _SYSTEM, _USER)
    except MorendoError:  # the template refuses system messages
        return None
    return (parts[0], parts[1], parts[2]) if parts else None


def _trims(render: Render) -> bool:
    return f" {_USER}\n" not in render(_chat(f" {_USER}\n"))


def _holds(render: Render, form: ChatForm) -> bool:
    """Whether the form gives what the template gives, today and (where it tells dates) any day."""
    today = datetime.now()
    dates = {today.strftime(form) for form in ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y")}
    fixed = "".join([*form.user, *(form.system or ())])
    if any(date in fixed for date in dates):
        return False
    chats = [(text, None) for text in (*_SAMPLES, f" {_USER}\n")]
    if form.system is not None:
        chats += [(text, other) for text, other in zip(_SAMPLES, reversed(_SAMPLES), strict=True)]
    try:
        return all(render(_chat(*chat)) == apply_form(form, *chat) for chat in chats)
    except MorendoError:
        return False
