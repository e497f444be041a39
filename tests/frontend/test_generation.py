"""Sampling settings that models come with, as transformers would use them."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from morendo.chat_check import check_generation
from morendo.frontend.checkpoint import open_checkpoint
from morendo.frontend.generation import Generation, from_config, from_gguf
from morendo.ir.errors import InputError
from tests.frontend.families import save_model

HERE = Path("model")


@pytest.mark.parametrize(
    ("facts", "sampling"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {}),  # transformers is greedy without do_sample
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1},
         {"repetition_penalty": 1.1}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": None, "top_k": 0}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05,
          "repetition_penalty": 1.05},
         {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05,
          "repetition_penalty": 1.05}),
        ({"do_sample": True, "temperature": 0.0, "top_p": 1.0}, {"top_k": 50}),
    ],
)  # fmt: skip
def test_generation_config(facts, sampling):
    found = from_config(facts, HERE)
    assert found == Generation(sampling, (), "generation_config.json")
    check_generation(found)


def test_defaults_are_those_of_transformers():
    usual = GenerationConfig._get_default_generation_params()
    found = from_config({"do_sample": True}, HERE).sampling
    assert (found["temperature"], found["top_k"]) == (usual["temperature"], usual["top_k"])
    assert (usual["top_p"], usual["repetition_penalty"], usual["do_sample"]) == (1.0, 1.0, False)


def test_what_is_not_applied_is_said():
    facts = {
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [1],
        "bad_words_ids": [],
        "num_beams": 1,
        "guidance_scale": 1.0,
        "typical_p": 0.9,
    }
    found = from_config(facts, HERE)
    assert found.notes() == [
        "generation_config.json asks for no_repeat_ngram_size, suppress_tokens: not applied"
    ]
    assert "typical_p" in from_config({**facts, "do_sample": True}, HERE).left_out
    assert from_config({}, HERE).notes() == []


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ({"do_sample": True, "temperature": "hot"}, "temperature must be a number .got 'hot'. at"),
        ({"repetition_penalty": True}, "repetition_penalty must be a number .got True."),
        ({"do_sample": 1}, "do_sample must be true or false .got 1. at model/generation_config"),
        ({"do_sample": True, "top_p": 1.5}, "top_p must be above 0 .* at generation_config.json"),
        ({"repetition_penalty": -1}, "repetition_penalty must be a finite number above 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature must be a finite number"),
    ],
)
def test_settings_that_are_none_are_refused(facts, match):
    with pytest.raises(InputError, match=match):
        check_generation(from_config(facts, HERE))


def test_settings_of_a_folder(tmp_path):
    save_model("opt", tmp_path)
    facts = {"do_sample": True, "top_k": 5, "eos_token_id": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(facts))
    opened = open_checkpoint(tmp_path)
    assert opened.generation.sampling == {"temperature": 1.0, "top_k": 5}
    assert 3 in opened.eos


def test_settings_of_a_gguf_file():
    keys = {"temp": 0.8, "top_k": 40, "min_p": 0.05, "penalty_repeat": 1.0, "mirostat": 2}
    metadata = {f"general.sampling.{name}": value for name, value in keys.items()}
    found = from_gguf(metadata, Path("a.gguf"))
    assert found.sampling == {"temperature": 0.8, "top_k": 40, "min_p": 0.05}
    assert found.notes() == ["a.gguf asks for general.sampling.mirostat: not applied"]
    del metadata["general.sampling.temp"]
    assert from_gguf(metadata, Path("a.gguf")).sampling == {}
    with pytest.raises(InputError, match="temperature must be a number .got 'x'. at a.gguf"):
        from_gguf({"general.sampling.temp": "x"}, Path("a.gguf"))
