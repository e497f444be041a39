"""Tokenizers as the runtime gets them, and the ids at which generation stops."""

import json

import pytest
from tokenizers import Tokenizer

from morendo.frontend import load_model, write_tokenizer
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
