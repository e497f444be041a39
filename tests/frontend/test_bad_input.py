"""Whatever is wrong with a model is said in one line that names the file and what to do."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from morendo.frontend import load_model
from morendo.frontend.checkpoint import open_checkpoint
from tests.frontend.families import VOCABULARY, save_model
from tests.frontend.spoil import WEIGHTS, edit_config, edit_weights, refuses, refuses_weights
from tests.frontend.tiny_gguf import save_tokenizer

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 134515008\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "phi"
    save_model("phi", path)
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "phi"))


def test_missing_file(tmp_path):
    refuses(tmp_path / "none.gguf", "no such file", "none.gguf", "hub id")
    refuses("./none", "no such file")
    refuses("a/b/c", "no such file")


def test_not_a_model_directory(tmp_path):
    refuses(tmp_path, "no config.json")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refuses(tmp_path, "give the file", "model.gguf")


def test_paths_in_hints_can_be_pasted_into_a_shell(tmp_path):
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "a model.gguf").write_bytes(b"GGUF")
    refuses(folder, f"give the file '{folder}/a model.gguf'")
    (folder / "model.safetensors").write_bytes(b"12345678")
    refuses(folder / "model.safetensors", f"give its directory '{folder}'")


def test_a_single_weight_file(model):
    refuses(model / WEIGHTS, "neither GGUF nor ONNX", f"give its directory {model}")


def test_unknown_architecture(model):
    edit_config(model, model_type="t5")
    refuses(model, "architecture 't5' is not supported", "causal language model", str(model))


def test_damaged_config(model):
    (model / "config.json").write_text('{"model_type": ')
    refuses(model, "not a JSON object", "config.json")
    (model / "config.json").write_text('{"vocab_size": 5}')
    refuses(model, "names no model_type")
    (model / "config.json").write_text('{"model_type": "phi", "hidden_size": "wide"}')
    refuses(model, "config.json is not valid")


@pytest.mark.parametrize("eos", ["x", {}, [None], [[1]], 1.5, True])
def test_ends_that_are_no_ids(model, eos):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    refuses_weights(model, "eos_token_id is no token id", "generation_config.json")
    (model / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert open_checkpoint(model).eos == [2, 5]


def test_unknown_values_in_the_config(model):
    edit_config(model, hidden_act="foo")
    refuses(model, "config.json", "hidden_act is 'foo'", "check hidden_act", str(model))
    scaling = {"rope_type": "blah", "factor": 2.0, "rope_theta": 10000.0}
    edit_config(model, hidden_act="gelu_new", rope_parameters=scaling)
    refuses(model, "rope_parameters.rope_type is 'blah'")


def test_a_config_that_cannot_be_built(model, monkeypatch):
    def fails(*args, **kwargs):
        raise TypeError("no such\nthing")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", fails)
    refuses(model, "config.json", "cannot be built (TypeError: no such)", str(model))


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1])
def test_truncated_safetensors(model, keep):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:keep])
    refuses(model, WEIGHTS, "truncated or damaged")


def test_missing_tensor(model):
    edit_weights(model, **{"model.layers.1.mlp.fc1.bias": None})
    refuses(model, "no tensor model.layers.1.mlp.fc1.bias", str(model))


def test_shape_mismatch(model):
    edit_config(model, intermediate_size=64)
    refuses(model, "fc1", "got [48, 32], need [64, 32]")


@pytest.mark.parametrize("pickled", [False, True])
def test_integers_as_weights(model, pickled):
    name = "model.layers.0.mlp.fc1.weight"
    edit_weights(model, **{name: load_file(model / WEIGHTS)[name].astype(np.int32)})
    if pickled:
        tensors = {n: torch.tensor(array) for n, array in load_file(model / WEIGHTS).items()}
        torch.save(tensors, model / "pytorch_model.bin")
        (model / WEIGHTS).unlink()
    refuses(model, f"tensor {name} is int32, need a float type", "bfloat16")


class Attack:
    def __reduce__(self):
        return (print, ("this code must not run",))


def test_pickled_checkpoint(model, capsys):
    tensors = {name: torch.tensor(array) for name, array in load_file(model / WEIGHTS).items()}
    (model / WEIGHTS).unlink()
    bin_file = model / "pytorch_model.bin"
    torch.save(tensors, bin_file)
    loaded = load_model(model)
    name = "model.layers.0.mlp.fc1.weight"
    np.testing.assert_array_equal(loaded.weights.get(name), tensors[name].numpy())
    torch.save({**tensors, "x": Attack()}, bin_file)
    refuses(model, "could run code", "safetensors")
    bin_file.write_bytes(pickle.dumps(Attack()))
    refuses(model, "pytorch_model.bin")
    bin_file.write_bytes(b"no pickle at all")
    refuses(model, "pytorch_model.bin")
    assert "must not run" not in capsys.readouterr().out


def test_vocabulary_mismatch(model):
    save_tokenizer(model, VOCABULARY + 1)
    refuses(model, f"got id {VOCABULARY} for 'w66', need below {VOCABULARY}", "different models")


def test_damaged_tokenizer(model):
    save_tokenizer(model, VOCABULARY)
    (model / "tokenizer.json").write_text('{"model": ')
    refuses(model, "tokenizer", str(model))


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"]
)
def test_pointers_of_git_lfs(model, name):
    save_tokenizer(model, VOCABULARY)
    (model / name).write_text(POINTER)
    refuses(model, "a git-lfs pointer, not the file itself", name, f"git -C {model} lfs pull")


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx", "model.bin"])
def test_single_files_that_are_pointers_of_git_lfs(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    refuses(tmp_path / name, "a git-lfs pointer, not the file itself", name)


def test_a_tokenizer_without_a_key(model):
    save_tokenizer(model, VOCABULARY)
    facts = json.loads((model / "tokenizer.json").read_text())
    del facts["added_tokens"]
    (model / "tokenizer.json").write_text(json.dumps(facts))
    refuses(model, "the tokenizer cannot be read (the key 'added_tokens' is missing)")
