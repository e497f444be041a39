"""Chat templates: rendered as transformers does, and what a hostile one can do: fail in a line."""

import os
import resource
import signal
import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from morendo.ir.errors import InputError
from morendo.runtime import chat_template, limited
from morendo.runtime.chat_template import render_chat
from morendo.runtime.limited import LimitError, WorkError, run_limited

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"b": [1, 2.5], "a": "é<&'"}}}
CHATS = {
    "one": [{"role": "user", "content": "hi <b> & 'é' 😀"}],
    "all roles": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "because", "tool_calls": None},
        {"role": "user", "content": "c"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "f", "content": "3"},
    ],
}
LOOP = "{% for m in messages %}"
# Each with what it is that some real templates do.
TEMPLATES = {
    "chatml": LOOP + "{{'<|im_start|>' + m['role'] + '\n' + (m.content|string) + '<|im_end|>'}}\n"
    "{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}\n",
    "block ends and indents": LOOP + "\n    {% if m.role == 'user' %}\n  U {{ m.content }}\n"
    "    {%- else %}\n\t{{- m.role }}\n    {% endif %}\n{% endfor %}\n\n",
    "carriage returns": LOOP + "{{ m.role }}\r\n{% endfor %}\r\n{{ 'a\\r\\n' }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}{{ sep_token }}"
    "{{ sep_token is defined }}",
    "tools is none": "{{ tools is none }}{{ tools is defined }}{{ documents is none }}"
    "{% if tools %}never{% endif %}{{ custom is defined }}",
    "generation": LOOP + "{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.role }}{% endif %}{{ x }}{% endfor %}",
    "tojson": LOOP + "{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m | tojson(sort_keys=True) }}"
    "{{ m | tojson(ensure_ascii=True) }}{{ m | tojson(separators=(',', ':')) }}"
    "{{ m | tojson(false, 4) }}{% endfor %}",
    "loop controls": LOOP + "{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.last }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, seen=false) %}" + LOOP + "{% set ns.n = ns.n + 1 %}"
    "{% set ns.seen = m.role == 'tool' %}{% endfor %}{{ ns.n }}{{ ns.seen }}",
    "macros": "{% macro say(x, y='-') %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}"
    + LOOP
    + "{{ say(m.role) }}{% call say('c') %}z{% endcall %}{% endfor %}",
    "parts": LOOP + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.type }}{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}",
    "tool calls": LOOP + "{% for c in m.tool_calls or [] %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v|tojson }},{% endfor %})"
    "{{ c.function.arguments | dictsort }}{% endfor %}{% endfor %}",
    "dict": "{% set d = dict(a=1, b=2) %}{{ d | items | list }}{{ dict.fromkeys(['x']) }}{{ d.a }}",
    "text methods": LOOP + "{% set t = m.role ~ ' x-y ' %}{{ t.strip().split('-')[0].upper() }}"
    "{{ t.startswith('user') }}{{ t | replace('x', 'z') | trim | title }}{{ t[1:-1:2] }}"
    "{{ t.rstrip('\n') | length }}{{ '%s!' % t }}{{ '{0:>9}'.format(m.role) }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(',') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ (messages | last).role }}{{ messages[::-1] | first }}{{ range(3) | list }}"
    "{{ undefined_name }}{{ undefined_name | default('d') }}{{ messages[0].nothing }}",
    "reasoning": LOOP + "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}{% endfor %}",
    "whole messages": "{{ messages }}",
    "date": "{{ strftime_now('%Y-%m-%d')[:2] }}",
    "refuses": "{{ raise_exception('only user and \x1b[31m assistant\n roles') }}",
    "malformed": "a\n{% if %}",
    "unknown tag": "{% image %}",
    "not what it is taken for": LOOP + "{{ m.content.strip() }}{% endfor %}",
    "undefined attribute": "{{ nothing.at.all }}",
    "underscore in a namespace": "{% set ns = namespace(__x=1) %}{{ ns }}",
    "sets an underscore": "{% set ns = namespace(a=1) %}{% set ns._b = 1 %}x",
    "changes messages": "{{ messages.append(1) }}",
    "out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "function globals": "{{ raise_exception.__globals__.x }}",
    "division": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(name):
    for chat in CHATS.values():
        chat = [
            {k: v for k, v in m.items() if v is not None} for m in chat
        ]  # as its tokenizer does
        try:
            [want], _ = render_jinja_template(
                [chat], chat_template=TEMPLATES[name], add_generation_prompt=True, **TOKENS
            )
        except Exception:
            with pytest.raises(InputError, match="the model's chat template (refuses|is|fails)"):
                render_chat(TEMPLATES[name], chat, TOKENS)
        else:
            assert render_chat(TEMPLATES[name], chat, TOKENS) == want


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("refuses", "refuses this chat .only user and .* assistant roles.; without the template"),
        ("malformed", "is malformed .line 2: Expected an expression"),
        ("unknown tag", "is malformed .line 1: Encountered unknown tag 'image'"),
        ("undefined attribute", "refuses this chat .'nothing' is undefined."),
        ("division", "fails .ZeroDivisionError: division by zero."),
        ("out of the sandbox", "refuses this chat .access to attribute '__class__'"),
        ("sets an underscore", "refuses this chat .a namespace has no attribute '_b'"),
    ],
)
def test_what_failed_is_one_line(template, said):
    with pytest.raises(InputError, match=f"the model's chat template {said}") as caught:
        render_chat(TEMPLATES[template], CHATS["one"], TOKENS)
    assert str(caught.value).isprintable()


DOUBLE = "{% set x = x ~ x %}"
NESTED = "{% for a in range(99999) %}"
HOSTILE = {
    "nested loops": NESTED * 4 + "{% endfor %}" * 4,
    "a large range": "{% for i in range(10**12) %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "large text": "{{ 'a' * 10**10 }}",
    "large list": "{{ ([0] * 10**10) | length }}",
    "large number": "{{ 9 ** (9 ** 9) }}",
    "a number of many digits": "{{ 10 ** 100000 }}",
    "doubled text": "{% set x = 'abcdefgh' %}" + DOUBLE * 60 + "{{ x }}",
    "doubled list": "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "doubled output": "{% set x %}aaaaaaaa{% endset %}"
    + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "format width": "{{ '%1000000000d' % 1 }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "json indent": "{{ [[1]] | tojson(indent=10**10) }}",
    "replace": "{{ ('a' * 9999) | replace('', 'b' * 9999) | replace('', 'b' * 9999) }}",
    "much output": "{% for i in range(99999) %}" + "x" * 1000 + "{% endfor %}",
    "words": "{{ lipsum(n=1000000) }}",
    "fill": "{{ [1] | batch(10**9, 0) | list }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_as_one_line(name, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.4)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="the model's chat template (takes|needs|writes|fails|is)"):
        render_chat(HOSTILE[name], CHATS["one"], TOKENS)
    assert time.monotonic() - start < 8
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kB; what it took, it took in a process that is gone


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "the chat has no messages"),
        ([{"content": "a"}], "a message is a dict with a role .got ..content.: .a..."),
        (["a"], "a message is a dict with a role"),
        ([{"role": 1}], "a message is a dict with a role"),
        ([{"role": "user", "content": object()}], "messages may hold texts, numbers, lists and"),
        ([{"role": "user", "content": b"a"}], "messages may hold texts, numbers, lists and"),
    ],
)
def test_malformed_messages(messages, match):
    with pytest.raises(InputError, match=match):
        render_chat(TEMPLATES["chatml"], messages, TOKENS)


def test_a_template_sees_plain_values_only():
    class Text(str):
        __slots__ = ()
        secret = 1

    messages = [{"role": "user", "content": Text("a")}]
    assert render_chat("{{ messages[0].content.secret }}", messages, {}) == ""
    messages = [{"role": "user", "content": "\ud800"}]
    assert render_chat("{{ messages[0].content }}", messages, {}) == "\ud800"


def limits(**changed):
    return {"seconds": 5.0, "memory_bytes": 1 << 28, "output_bytes": 100, **changed}


def fail() -> str:
    raise ValueError("no")


def crash() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_running_apart():
    assert run_limited(lambda: "é" * 50, str, **limits()) == "é" * 50
    with pytest.raises(WorkError, match="^no$"):
        run_limited(fail, str, **limits())
    with pytest.raises(LimitError, match="writes more than 0.0001 MB of text"):
        run_limited(lambda: "é" * 51, str, **limits())
    with pytest.raises(LimitError, match="takes longer than 0.1 s"):
        run_limited(lambda: str(time.sleep(60)), str, **limits(seconds=0.1))
    with pytest.raises(LimitError, match="needs more than 256 MB of memory, or crashes"):
        run_limited(crash, str, **limits())
    with pytest.raises(LimitError, match="needs more than 1 MB of memory, or crashes"):
        run_limited(lambda: "a" * (1 << 28), str, **limits(memory_bytes=1 << 20))


def test_a_fork_that_cannot_be_made_is_said(monkeypatch):
    def refuse():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(limited.os, "fork", refuse)
    with pytest.raises(InputError, match="cannot be run apart .Resource temporarily unavailable."):
        render_chat("", CHATS["one"], {})
