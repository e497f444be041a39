"""Texts around messages are found in templates, and templates that do more are named."""

from datetime import datetime

import pytest

from morendo.chat_form import apply_form, find_chat_form
from morendo.codegen.text_facts import ChatForm
from morendo.ir.errors import InputError


def chatml(chat):
    said = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
    return f"{said}<|im_start|>assistant\n"


def with_default_system(chat):
    default = [] if chat[0]["role"] == "system" else [{"role": "system", "content": "Be kind."}]
    return chatml([*default, *chat])


def trimmed(chat):
    return chatml([{**m, "content": m["content"].strip()} for m in chat])


def without_system(chat):
    if chat[0]["role"] == "system":
        raise InputError("no system messages")
    return chatml(chat)


def into_the_user(chat):
    """Gemma and Llama 2 put the system message into the first turn of the user."""
    system = f"{chat[0]['content']}\n\n" if chat[0]["role"] == "system" else ""
    return f"<bos>[INST] {system}{chat[-1]['content']} [/INST]"


def test_form_of_chatml():
    form = find_chat_form(chatml)
    assert form == ChatForm(
        user=("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        system=(
            "<|im_start|>system\n",
            "<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
        ),
    )


@pytest.mark.parametrize(
    "render", [chatml, with_default_system, trimmed, without_system, into_the_user]
)
def test_form_gives_what_the_template_gives(render):
    form = find_chat_form(render)
    assert isinstance(form, ChatForm)
    assert apply_form(form, " Hi? ") == render([{"role": "user", "content": " Hi? "}])
    if form.system is None:
        assert render is without_system
        return
    chat = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    assert apply_form(form, "Hi", "Be.") == render(chat)


def dated(chat):
    return f"Today is {datetime.now().strftime('%d %b %Y')}\n{chatml(chat)}"


def by_length(chat):
    return chatml(chat) + ("!" if len(chat[-1]["content"]) > 12 else "")


def refuses(chat):
    raise InputError("needs tools")


@pytest.mark.parametrize(
    ("render", "why"),
    [
        (dated, "more than texts"),
        (by_length, "more than texts"),
        (lambda chat: chatml([{**m, "content": m["content"].upper()} for m in chat]), "changes"),
        (lambda chat: chatml([*chat, *chat]), "repeats"),
        (refuses, "needs tools"),
    ],
)
def test_template_that_does_more_is_named(render, why):
    assert why in str(find_chat_form(render))
