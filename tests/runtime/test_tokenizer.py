"""Text in and out: streaming without halves of characters, stop texts, chat templates."""

from typing import Any

import pytest
import toy
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from morendo.ir.errors import ArtifactError, InputError
from morendo.runtime.sampling import SamplingSettings
from morendo.runtime.session import Session
from morendo.runtime.tokenizer import Tokenizer

FACTS = {"bos": 256, "eos": 257, "stop": [257], "add_bos": False}
TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == "system" %}{{ raise_exception("no system") }}{% endif %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
{{ message.role }}: {{ message.content | tojson }}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %} assistant:{% endif %}"""


def byte_tokenizer() -> Library:
    """One token for each byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    return library


@pytest.fixture
def home(tmp_path):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


@pytest.fixture
def tokenizer(home):
    return Tokenizer(home, FACTS)


TEXTS = ["", "plain text", "naïve café", "日本語テキスト", "🎉👩‍👩‍👧 ok", " leading and trailing  "]


@pytest.mark.parametrize("text", TEXTS)
def test_there_and_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_gives_whole_characters(tokenizer, text):
    pieces = list(tokenizer.stream(tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert len(pieces) == len(text)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_streaming_ends_with_what_is_left(tokenizer):
    ids = tokenizer.encode("é!")
    assert list(tokenizer.stream(ids[:1])) == ["\N{REPLACEMENT CHARACTER}"]
    assert "".join(tokenizer.stream([ids[0], ids[2]])) == "\N{REPLACEMENT CHARACTER}!"


def test_streaming_over_special_tokens(tokenizer):
    ids = tokenizer.encode("ab")
    assert "".join(tokenizer.stream([256, ids[0], 256, 257, ids[1], 257])) == "ab"


def test_streaming_keeps_the_spaces_of_sentencepiece(tmp_path):
    """There the first token of a text loses its leading space."""
    vocab = {"▁the": 0, "▁cat": 1, "s": 2, "<s>": 3}
    library = Library(models.BPE(vocab=vocab, merges=[]))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, FACTS)
    assert list(tokenizer.stream([0, 1, 2, 3, 1])) == ["the", " cat", "s", " cat"]


def test_beginning_of_text(home):
    assert Tokenizer(home, {**FACTS, "add_bos": True}).encode("a")[0] == 256
    assert Tokenizer(home, {**FACTS, "add_bos": True}).encode("") == [256]


def test_special_tokens_in_a_text(tokenizer):
    assert tokenizer.encode("a</s>")[1:] == [257]


def test_chat_template(tokenizer):
    ids = tokenizer.encode_chat('say "é" <b>')
    assert tokenizer._require().decode(ids, skip_special_tokens=False) == (
        '<s>user: "say \\"é\\" <b>"</s> assistant:'
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.decode(tokenizer.encode_chat(messages)) == (
        'user: "a"assistant: "b" assistant:'
    )


def test_damaged_tokenizer(home):
    (home / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(ArtifactError, match="cannot read the tokenizer"):
        Tokenizer(home, FACTS)


def test_text_that_is_no_unicode(tokenizer):
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenizer.encode("a\udc80")


def test_what_is_no_text_is_refused(tokenizer):
    with pytest.raises(InputError, match="the text is no str .got 5."):
        tokenizer.encode(5)
    with pytest.raises(InputError, match="a chat is a text or a list of messages .got 5."):
        tokenizer.encode_chat(5)
    for ids in (5, [1.5], ["1"]):
        with pytest.raises(InputError, match="token ids must be whole numbers"):
            tokenizer.decode(ids)


class Parrot:
    """An executor that says a given list of tokens."""

    vocabulary, context = 258, 1000

    def __init__(self, ids):
        self.ids, self.position = list(ids), 0

    def prefill(self, ids):
        return self.decode(0)

    def decode(self, token):
        import numpy as np

        logits = np.zeros(self.vocabulary, np.float32)
        logits[self.ids[self.position]] = 1
        self.position += 1
        return logits

    def decode_next(self, token, sampler):
        return sampler(self.decode(token))

    def set_position(self, position):
        self.position = position

    def close(self):
        pass


@pytest.fixture
def say(toy_library, home):
    """Opens a session whose model says a given text."""

    def start(text, **manifest):
        toy.write_toy(
            home / "toy",
            toy_library,
            {**toy.toy_manifest(), "tokenizer": FACTS, **manifest},
            lambda path: byte_tokenizer().save(str(path / "tokenizer.json")),
        )
        session = Session(home / "toy")
        session.close()
        parrot: Any = Parrot([*session.encode(text), 257])
        session.executor = parrot
        return session

    return start


@pytest.mark.parametrize(
    ("said", "stop", "streamed"),
    [
        ("one. two. three", [], "one. two. three"),
        ("one. two. three", ["two"], "one. "),
        ("one. two. three", ["three", ". t"], "one"),
        ("one. two. three", ["four"], "one. two. three"),
        ("aaab", ["aab"], "a"),
        ("half of a st", ["stop"], "half of a st"),
        ("ünï", ["ï"], "ün"),
        ("stop", ["stop"], ""),
    ],
)
def test_stop_texts(say, said, stop, streamed):
    session = say(said)
    assert "".join(session.stream([1], stop=stop)) == streamed
    assert session.stats.finish == "stop"
    ids = list(session.generate([1], stop=stop))
    assert session.stats.finish == "stop"
    first = min((said.find(text) + len(text) for text in stop if text in said), default=None)
    want = said if first is None else said[: first - 1]
    assert session.decode(ids) == want


def test_the_end_of_text_can_be_ignored(say):
    session = say("abc")
    got = list(session.generate([1], ignore_eos=True, max_tokens=4))
    assert got == [*session.encode("abc"), 257]


def test_one_stop_text_and_stop_tokens(say):
    session = say("abc")
    assert "".join(session.stream([1], stop="c")) == "ab"
    assert "".join(session.stream([1], stop=session.encode("b")[0])) == "a"
    assert "".join(session.stream([1], stop=["x", *session.encode("b")])) == "a"


def test_ids_that_are_none_are_refused(tokenizer):
    with pytest.raises(InputError, match="token ids must be whole numbers, 0 or more"):
        tokenizer.decode([-1])


def test_templates_see_the_special_tokens_of_the_manifest(home):
    (home / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}")
    assert Tokenizer(home, FACTS).render_chat("a") == "<s>|</s>|"  # from the ids
    tokens = {"eos_token": "</s>", "pad_token": "<pad>"}
    facts = {**FACTS, "special_tokens": tokens}
    assert Tokenizer(home, facts).render_chat("a") == "|</s>|<pad>"


def test_an_artifact_without_a_template(home):
    (home / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(home, FACTS)
    assert not tokenizer.has_chat_template
    with pytest.raises(InputError, match="no chat template; use encode, or chat=False"):
        tokenizer.encode_chat("a")


def test_a_template_that_cannot_be_read(home):
    (home / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ArtifactError, match="cannot read it .*chat_template.jinja"):
        Tokenizer(home, FACTS).encode_chat("a")


def test_the_models_own_sampling_settings_are_the_defaults(say):
    settings = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    session = say("abc", generation=settings)
    assert session.sampling == SamplingSettings(**settings)
    list(session.generate([1], max_tokens=1))
    assert session.stats.sampling == SamplingSettings(**settings)
    list(session.generate([1], max_tokens=1, temperature=0, min_p=0.5, repetition_penalty=1))
    assert session.stats.sampling == SamplingSettings(0, top_k=20, min_p=0.5)
    assert say("abc").sampling == SamplingSettings()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"temperature": -1}, "bad generation settings .temperature must be a finite number"),
        ({"mirostat": 2}, "bad generation settings .*unexpected keyword argument 'mirostat'"),
        ({"top_p": "0.9"}, "generation.top_p must be"),
    ],
)
def test_damaged_sampling_settings_are_refused(say, settings, match):
    with pytest.raises(ArtifactError, match=match):
        say("abc", generation=settings)
