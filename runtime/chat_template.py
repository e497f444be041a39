"""Chat templates: a conversation as the one text that the model was trained to continue.

A template is a program in Jinja's language that comes with the model. It is rendered as
transformers renders it (`transformers.utils.chat_template_utils`), in Jinja's sandbox, and apart
from this process, with limits: it may loop for ever or ask for all memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from morendo.ir.errors import InputError
from morendo.ir.printable import one_line
from morendo.runtime.limited import LimitError, WorkError, run_limited

if TYPE_CHECKING:
    from jinja2 import Environment

# {"role": "user", "content": "Hi"}; a content may be a list of parts, and there may be other keys.
Message = dict[str, Any]

SECONDS = 10.0  # templates take milliseconds
_MEMORY_BYTES = 256 << 20
_OUTPUT_BYTES = 16_000_000  # more than any context holds
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing, the usual first
_LONGEST_MESSAGE = 300
_HINT = "without the template: morendo run --raw, or token ids"


def render_chat(source: str, messages: Sequence[Message], special_tokens: dict[str, str]) -> str:
    """The text of a conversation, ready for the model's answer.

    Args:
        source: the template.
        messages: at least one; nothing but texts, numbers, lists and dicts.
        special_tokens: "bos_token" and others, as texts.

    Raises:
        InputError: when messages are malformed, or the template is, refuses them, fails, or takes
            too much time or memory.
    """
    environment = _environment()  # here, so that the fork need not import and build it
    chat = _plain(messages)
    try:
        return run_limited(
            partial(_render, environment, source, chat, special_tokens),
            _explain,
            seconds=SECONDS,
            memory_bytes=_MEMORY_BYTES,
            output_bytes=_OUTPUT_BYTES,
        )
    except (WorkError, LimitError) as error:
        raise InputError(f"the model's chat template {error}", hint=_HINT) from None


def _plain(messages: Sequence[Message]) -> list[Message]:
    """A copy that a template can do no harm with; values of None are left out."""
    try:
        chat = json.loads(json.dumps(list(messages)))
    except (TypeError, ValueError, RecursionError):
        raise InputError("messages may hold texts, numbers, lists and dicts only") from None
    if not chat:
        raise InputError("the chat has no messages")
    for message in chat:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(
                f"a message is a dict with a role (got {json.dumps(message)[:80]})",
                hint='such as {"role": "user", "content": "Hi"}',
            )
    return [_with_reasoning({k: v for k, v in m.items() if v is not None}) for m in chat]


def _with_reasoning(message: Message) -> Message:
    """Templates read a model's thoughts under two names, people write them under three."""
    thoughts = [message[name] for name in _REASONING if name in message]
    if not thoughts:
        return message
    return {"thinking": thoughts[0], **message, "reasoning_content": thoughts[0]}


def _render(
    environment: Environment, source: str, chat: list[Message], special_tokens: dict[str, str]
) -> str:
    return environment.from_string(source).render(
        messages=chat, tools=None, documents=None, add_generation_prompt=True, **special_tokens
    )


def _explain(error: Exception) -> str:
    """What a template did, as a verb and what it said."""
    from jinja2 import TemplateError, TemplateSyntaxError

    said = one_line(str(error))[:_LONGEST_MESSAGE]
    if isinstance(error, TemplateSyntaxError):
        return f"is malformed (line {error.lineno}: {said})"
    if isinstance(error, TemplateError):
        return f"refuses this chat ({said})"
    return f"fails ({type(error).__name__}: {said})"


@cache
def _environment() -> Environment:
    """Jinja as templates expect it."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Generation(Extension):
        """`{% generation %}` marks for trainers what the model said; here it only has a scope."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own annotation

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_say")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _say(self, caller: Any) -> str:
            return caller()

    class Dict:
        """The type itself would give access to more."""

        def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
            return dict(*args, **items)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        """Without names that mean something to Python."""

        def __init__(*args: Any, **items: Any) -> None:
            self, *rest = args
            jinja2.utils.Namespace.__init__(self)
            for name, value in dict(*rest, **items).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a namespace has no attribute {name!r}")
            super().__setitem__(name, value)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes for HTML, which models were not trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
