"""Chat templates as they are tried at compile time: what is noted, and what the artifact tells."""

import pytest
from tokenizers import Tokenizer, models

from morendo.chat_check import check_chat
from morendo.cli.inspect_command import _chat

LOOP = "{% for m in messages %}{{ m.content }}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
CASES = {
    "good": (LOOP, {"system": True, "problem": ""}, [], "template, with system messages"),
    "no system": (
        NO_SYSTEM + LOOP,
        {"system": False, "problem": ""},
        ["note: no system messages, the model's chat template refuses this chat (no system)"],
        "template, no system messages",
    ),
    "system left out": (
        LOOP.replace("{{", "{% if m.role != 'system' %}{{").replace("}}", "}}{% endif %}"),
        {"system": False, "problem": ""},
        ["note: the model's chat template leaves out system messages"],
        "template, no system messages",
    ),
    "failing": (
        "{{ 1 / 0 }}",
        {
            "system": False,
            "problem": "the model's chat template fails (ZeroDivisionError: division by zero)",
        },
        [
            "note: the model's chat template fails (ZeroDivisionError: division by zero); chats "
            "will be refused, plain texts will not"
        ],
        "the model's chat template fails (ZeroDivisionError: division by zero)",
    ),
    "wants parts": (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
        {
            "system": False,
            "problem": "the model's chat template leaves out what the user says",
        },
        [
            "note: the model's chat template leaves out what the user says",
            "note: the model's chat template leaves out system messages",
        ],
        "the model's chat template leaves out what the user says",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_is_rendered(name, tmp_path):
    template, facts, notes, shown = CASES[name]
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(template)
    said: list[str] = []
    assert check_chat(tmp_path, {"special_tokens": {}}, said.append) == facts
    assert said == notes
    assert _chat(facts) == shown


def test_a_model_without_a_template(tmp_path):
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    assert check_chat(tmp_path, {}, pytest.fail) is None
    assert _chat(None) == "no template"
