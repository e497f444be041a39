"""Tokenizers as the runtime gets them, and the ids at which generation stops."""

import json

import pytest
from tokenizers import Tokenizer

from morendo.frontend import load_model, write_tokenizer
from morendo.frontend.tokenizer import load_tokenizer
from morendo.ir.errors import InputError
from tests.frontend.families import VOCABULARY, save_model
from tests.frontend.tiny_gguf import TEMPLATE, save_tokenizer


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    save_model("opt", path)
    return path


def test_files_and_stop_ids(model, tmp_path):
    save_tokenizer(model, VOCABULARY - 6)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0]}))
    loaded = load_model(model)
    # eos of the tokenizer, of config.json, of generation_config.json, and the template's turn end
    assert (loaded.bos, loaded.eos, loaded.stop) == (0, 0, (0, 2, 7))
    assert not loaded.add_bos
    write_tokenizer(loaded, tmp_path)
    written = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert written.encode("abc").ids == [29, 5]
    assert written.encode("<|im_end|>").ids == [2]
    assert (tmp_path / "chat_template.jinja").read_text() == TEMPLATE


def set_template(model, template):
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    (model / "chat_template.jinja").unlink(missing_ok=True)


def test_named_templates(model, tmp_path):
    """As a list in the configuration, or as files; the default one is used."""
    save_tokenizer(model, VOCABULARY)
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "a\r\né"}]
    set_template(model, named)
    found = load_tokenizer(model, VOCABULARY)
    assert found is not None
    assert (found.chat_template, found.other_templates) == ("a\r\né", ("tool_use",))
    assert found.notes() == ["chat templates that are not used: tool_use"]
    found.write(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_bytes() == "a\r\né".encode()

    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("r")
    (model / "chat_template.jinja").write_text("b")
    found = load_tokenizer(model, VOCABULARY)
    assert found is not None
    assert (found.chat_template, found.other_templates) == ("b", ("rag",))


def test_no_default_template(model):
    save_tokenizer(model, VOCABULARY)
    set_template(model, [{"name": "tool_use", "template": "t"}])
    found = load_tokenizer(model, VOCABULARY)
    assert found is not None
    assert (found.chat_template, found.other_templates) == ("", ("tool_use",))


def test_special_tokens_are_those_of_transformers(model):
    save_tokenizer(model, VOCABULARY)
    path = model / "tokenizer_config.json"
    facts = {**json.loads(path.read_text()), "pad_token": "a"}
    path.write_text(json.dumps(facts))
    found = load_tokenizer(model, VOCABULARY)
    assert found is not None
    end = "<|endoftext|>"
    assert found.special_tokens == {"bos_token": end, "eos_token": end, "pad_token": "a"}


@pytest.mark.parametrize("template", [5, "a\ud800"])
def test_a_template_that_is_no_text_is_refused(template, model):
    save_tokenizer(model, VOCABULARY)
    set_template(model, template)
    with pytest.raises(InputError, match="the chat template 'default' is no text"):
        load_tokenizer(model, VOCABULARY)


def test_text_that_starts_with_bos(model):
    save_tokenizer(model, VOCABULARY, add_bos=True)
    assert load_model(model).add_bos


def test_model_without_tokenizer(model, tmp_path):
    loaded = load_model(model)
    assert loaded.tokenizer is None
    assert (loaded.bos, loaded.stop, loaded.add_bos) == (1, (2,), False)
    write_tokenizer(loaded, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


def _with_pad(model, **changes):
    """The tokenizer with a [PAD] behind the model's last row, as people add it for training."""
    save_tokenizer(model, VOCABULARY)
    facts = json.loads((model / "tokenizer.json").read_text())
    pad = {**facts["added_tokens"][0], "id": VOCABULARY, "content": "[PAD]"}
    facts["added_tokens"].append(pad)
    (model / "tokenizer.json").write_text(json.dumps(facts | changes))
    return model


def test_a_token_behind_the_vocabulary_is_left_out(model):
    found = load_tokenizer(_with_pad(model), VOCABULARY)
    assert found.size == VOCABULARY
    assert max(found.library.get_vocab().values()) == VOCABULARY - 1
    assert all(i < VOCABULARY for i in found.library.encode("a[PAD]b").ids)
    assert load_tokenizer(model, VOCABULARY + 1).size == VOCABULARY + 1


@pytest.mark.parametrize("use", ["eos", "template", "frame"])
def test_a_token_behind_the_vocabulary_that_is_needed(model, use):
    frame = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[PAD]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"[PAD]": {"id": "[PAD]", "ids": [VOCABULARY], "tokens": ["[PAD]"]}},
    }
    _with_pad(model, **({"post_processor": frame} if use == "frame" else {}))
    config = model / "tokenizer_config.json"
    changes = {"eos": {"eos_token": "[PAD]"}, "template": {"chat_template": "{{ '[PAD]' }}"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes.get(use, {})))
    if use == "template":
        (model / "chat_template.jinja").write_text(changes[use]["chat_template"])
    with pytest.raises(InputError, match=r"got id 96 for '\[PAD\]', need below 96"):
        load_tokenizer(model, VOCABULARY)
