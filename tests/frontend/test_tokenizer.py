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
