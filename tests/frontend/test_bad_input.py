"""Whatever is wrong with a model is said in one line that names the file and what to do."""

import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from morendo.frontend import load_model
from morendo.frontend.checkpoint import open_checkpoint, open_weights
from morendo.frontend.torch_export import build_empty
from morendo.ir.errors import InputError
from tests.frontend.families import VOCABULARY, save_model
from tests.frontend.tiny_gguf import save_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "phi"
    save_model("phi", path)
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model, to be spoiled."""
    return Path(shutil.copytree(saved, tmp_path / "phi"))


def refuses(model: object, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(str(model))
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 600
    for word in words:
        assert word in said, said


def edit_config(model: Path, **changes: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(model: Path, **changes: np.ndarray | None) -> None:
    arrays = {**load_file(model / WEIGHTS), **changes}
    save_file({k: v for k, v in arrays.items() if v is not None}, model / WEIGHTS)


def test_missing_file(tmp_path):
    refuses(tmp_path / "none.gguf", "no such file", "none.gguf", "hub id")
    refuses("./none", "no such file")
    refuses("a/b/c", "no such file")


def test_not_a_model_directory(tmp_path):
    refuses(tmp_path, "no config.json")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refuses(tmp_path, "give the file", "model.gguf")


def test_a_single_weight_file(model):
    refuses(model / WEIGHTS, "not GGUF", f"give its directory {model}")


def test_unknown_architecture(model):
    edit_config(model, model_type="t5")
    refuses(model, "architecture 't5' is not supported", "llama", "bloom", str(model))


def test_damaged_config(model):
    (model / "config.json").write_text('{"model_type": ')
    refuses(model, "not a JSON object", "config.json")
    (model / "config.json").write_text('{"vocab_size": 5}')
    refuses(model, "names no model_type")
    (model / "config.json").write_text('{"model_type": "phi", "hidden_size": "wide"}')
    refuses(model, "config.json is not valid")


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


def test_quantized_checkpoint(model):
    edit_config(model, quantization_config={"quant_method": "gptq"})
    refuses(model, "quantized already", "original float checkpoint")


@pytest.mark.parametrize("keep", [0, 5, 100, 3000, -1])
def test_truncated_safetensors(model, keep):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:keep])
    refuses(model, WEIGHTS, "truncated or damaged")


def test_damaged_safetensors(model):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:8] + b"[" + data[9:])
    refuses(model, "header is not JSON", "download it again")
    (model / WEIGHTS).write_bytes(data.replace(b'"dtype"', b'"dtypo"', 1))
    refuses(model, "header is damaged")
    (model / WEIGHTS).write_bytes(data.replace(b'"shape":[96,32]', b'"shape":[96,31]', 1))
    refuses(model, "bytes, need")


def test_unsupported_dtype(model):
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data.replace(b'"F32"', b'"F8X"'))
    empty = build_empty(open_checkpoint(model).config)
    store = open_weights(open_checkpoint(model), empty)
    with pytest.raises(InputError, match="stored as F8X"):
        store.get("lm_head.weight")


def test_missing_tensor(model):
    edit_weights(model, **{"model.layers.1.mlp.fc1.bias": None})
    refuses(model, "no tensor model.layers.1.mlp.fc1.bias", str(model))


def test_shape_mismatch(model):
    edit_config(model, intermediate_size=64)
    refuses(model, "fc1", "got [48, 32], need [64, 32]")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.lora",
        "model.layers.0.input_layernorm.scale",
        "model.layers.1.self_attn.q_norm.weight",
    ],
)
def test_tensors_that_the_configuration_does_not_use(model, name):
    edit_weights(model, **{name: np.ones(32, np.float32)})
    refuses(model, "1 tensor that the configuration does not use", name, "config.json")


def test_harmless_tensors(model):
    names = [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attn.bias",
        "model.layers.0.attn.masked_bias",
        "vision_tower.layers.0.fc1.weight",
        "score.weight",
    ]
    edit_weights(model, **{name: np.ones(4, np.float32) for name in names})
    opened = open_checkpoint(model)
    assert not set(names) & set(open_weights(opened, build_empty(opened.config)).names())


@pytest.mark.parametrize("pickled", [False, True])
def test_integers_as_weights(model, pickled):
    name = "model.layers.0.mlp.fc1.weight"
    edit_weights(model, **{name: load_file(model / WEIGHTS)[name].astype(np.int32)})
    if pickled:
        tensors = {n: torch.tensor(array) for n, array in load_file(model / WEIGHTS).items()}
        torch.save(tensors, model / "pytorch_model.bin")
        (model / WEIGHTS).unlink()
    refuses(model, f"tensor {name} is int32, need a float type", "bfloat16")


def test_missing_weights_and_shards(model):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / WEIGHTS).rename(model / "model-1.safetensors")
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    refuses(model, "a shard of the checkpoint is missing", "model-2.safetensors", "1 of 2")
    (model / f"{WEIGHTS}.index.json").unlink()
    (model / "model-1.safetensors").unlink()
    refuses(model, "holds no weights")


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
    refuses(model, f"got id {VOCABULARY}, need below {VOCABULARY}", "different models")


def test_damaged_tokenizer(model):
    save_tokenizer(model, VOCABULARY)
    (model / "tokenizer.json").write_text('{"model": ')
    refuses(model, "tokenizer", str(model))


def test_hub_unreachable(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refuses("someone/some-model", "hub cannot be reached", "someone/some-model", "network")


def test_unknown_hub_model(monkeypatch):
    def unknown(*args, **kwargs):
        raise huggingface_hub.errors.RepositoryNotFoundError.__new__(
            huggingface_hub.errors.RepositoryNotFoundError
        )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unknown)
    refuses("no-such-model", "no such public model")


def test_hub_model_from_the_cache(monkeypatch, saved):
    asked = []

    def cached(name, allow_patterns, local_files_only=False):
        asked.append((name, local_files_only))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load_model("someone/phi").name == "someone/phi"
    assert asked == [("someone/phi", True)]
