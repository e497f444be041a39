"""Which files and tensors of a folder are the model's, and what is said of the others."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM

from morendo.frontend import load_model
from morendo.frontend.float_model import open_float_model
from morendo.frontend.model_files import weight_files
from morendo.ir.evaluate import evaluate
from tests.frontend.families import VOCABULARY, save_config, save_model
from tests.frontend.spoil import (
    QUERY,
    WEIGHTS,
    edit_config,
    edit_weights,
    opened,
    refuses,
    refuses_weights,
    to_bin,
)

INDEX = f"{WEIGHTS}.index.json"


def notes_of(model: Path) -> str:
    return "\n".join(opened(model)[0].notes)


def shard(model: Path, index: object) -> None:
    (model / WEIGHTS).rename(model / "model-1.safetensors")
    (model / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("llama", "lm_head.weight"),
        ("gpt2", "lm_head.weight"),
        ("gpt_neox", "embed_out.weight"),
        ("opt", "lm_head.weight"),
        ("bloom", "lm_head.weight"),
    ],
)
def test_a_head_that_is_stored_apart_is_untied(tmp_path, family, head):
    save_model(family, tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / WEIGHTS)
    embedding = next(n for n in tensors if re.search("embed_in|embed_tokens|word_emb|wte", n))
    other = np.random.default_rng(0).normal(size=tensors[embedding].shape).astype(np.float32)
    edit_weights(tmp_path, **{head: other})
    checkpoint, empty, store = opened(tmp_path)
    (note,) = checkpoint.notes
    assert "both are used, as transformers does" in note
    assert head in note
    assert not empty.aliases
    np.testing.assert_array_equal(store.get("lm_head.weight"), other)
    ids = torch.tensor([[5, 6, 7]])
    want = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()(ids).logits
    got = open_float_model(tmp_path).build()(ids).logits
    torch.testing.assert_close(got, want)


def test_a_head_that_is_stored_apart_is_in_the_graph(model):
    edit_weights(model, **{"lm_head.weight": np.ones((96, 32), np.float32)})
    loaded = load_model(model)
    assert "lm_head.weight" in loaded.module["main"].attrs["weight_names"]
    assert "both are used" in loaded.notes[0]


def test_a_head_that_is_stored_twice_stays_tied(model):
    tensors = load_torch(model / WEIGHTS)
    head = tensors["model.embed_tokens.weight"]
    save_torch({**tensors, "lm_head.weight": head.clone()}, model / WEIGHTS)
    checkpoint, empty, _ = opened(model)
    assert empty.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert not checkpoint.notes
    save_torch({**tensors, "lm_head.weight": head[:9].clone()}, model / WEIGHTS)
    refuses_weights(model, "lm_head.weight has another shape", "got [9, 32], need [96, 32]")
    del tensors["model.embed_tokens.weight"]
    save_torch({**tensors, "lm_head.weight": head}, model / WEIGHTS)
    _, empty, store = opened(model)
    assert empty.aliases
    np.testing.assert_array_equal(store.get("model.embed_tokens.weight"), head.numpy())


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.lora",
        "lm_head.bias",
        "model.layers.0.input_layernorm.scale",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.attn.bias",  # of one dimension: no mask
        "model.layers.2.mlp.up_proj.weight",
        "model.gate",
        "logit_scale",
    ],
)
def test_tensors_that_the_configuration_does_not_use(model, name):
    edit_weights(model, **{name: np.ones(32, np.float32)})
    refuses_weights(model, "1 tensor that the configuration does not use", name, str(model))


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "vision_tower."])
def test_an_adapter_is_not_ignored(model, prefix):
    names = [f"{prefix}{QUERY}.lora_{part}.default.weight" for part in "AB"]
    edit_weights(model, **{name: np.ones((2, 32), np.float32) for name in names})
    refuses_weights(model, "2 tensors", "merge_and_unload", names[0])


def test_tensors_of_other_parts_are_noted(model):
    parts = {
        "vision_tower.layers.0.fc1.weight": np.ones((500, 500), np.float32),
        "model.visual.proj.weight": np.ones((500, 500), np.float16),
        "model.visual.proj.bias": np.ones(500, np.float32),
        "mtp.fc.weight": np.ones(4, np.float32),
        "score.weight": np.ones(4, np.float32),
        "v_head.summary.bias": np.ones(4, np.float32),
    }
    edit_weights(model, **parts)
    assert not set(parts) & set(opened(model)[2].names())
    note = notes_of(model)
    assert note.endswith("left out: 6 tensors, 1.5 MB, of vision_tower, visual, mtp and 2 more")


def test_layers_that_predict_further_tokens_are_noted(model):
    edit_weights(model, **{"model.layers.2.mlp.up_proj.weight": np.ones(4, np.float32)})
    edit_config(model, num_nextn_predict_layers=1)
    assert "left out: 1 tensor, 0.0 MB, of layers" in notes_of(model)


def test_what_the_model_computes_itself_is_no_news(model):
    layer = "model.layers.0"
    derived = {
        f"{layer}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        f"{layer}.attn.bias": np.ones((1, 1, 8, 8), np.uint8),
        f"{layer}.attn.masked_bias": np.array(-1e4, np.float32),
        "model.embeddings.position_ids": np.arange(4),
    }
    edit_weights(model, **derived)
    assert not notes_of(model)


def test_two_tensors_for_one_weight(tmp_path):
    save_model("gpt2", tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "transformer.h.0.ln_1.weight"
    edit_weights(tmp_path, **{name.removeprefix("transformer."): tensors[name]})
    assert not notes_of(tmp_path)
    edit_weights(tmp_path, **{name.removeprefix("transformer."): tensors[name] + 1})
    refuses_weights(tmp_path, f"two tensors for {name}", "h.0.ln_1.weight")


def test_files_beside_the_model(model):
    save_file({"lora_A.weight": np.ones(4, np.float32)}, model / "adapter_model.safetensors")
    save_file({"x": np.ones(4, np.float32)}, model / "consolidated.safetensors")
    save_file({"x": np.ones(4, np.float32)}, model / "model.fp16.safetensors")
    torch.save({}, model / "optimizer.bin")
    expected = "adapter_model.safetensors, consolidated.safetensors, model.fp16.safetensors"
    assert notes_of(model) == f"not read, since they are not the model's: {expected}"
    assert weight_files(model) == [WEIGHTS]
    to_bin(model)
    assert weight_files(model) == ["pytorch_model.bin"]
    assert expected in notes_of(model)
    (model / "pytorch_model.bin").unlink()
    refuses_weights(model, "holds no weights", "adapter_model.safetensors", "and 1 more")


def test_the_file_that_counts_is_that_of_transformers(model):
    shard(model, {"weight_map": {"a": "model-1.safetensors"}})
    assert weight_files(model) == ["model-1.safetensors"]
    (model / WEIGHTS).touch()
    assert weight_files(model) == [WEIGHTS]  # before an index
    edit_config(model, transformers_weights="model-1.safetensors")
    assert opened(model)[2].names()
    edit_config(model, transformers_weights=INDEX)
    assert weight_files(model) == ["model-1.safetensors"]
    edit_config(model, transformers_weights="none.safetensors")
    refuses_weights(model, "is missing (got 0 of 1 files)", "none.safetensors")
    edit_config(model, transformers_weights="../model.safetensors")
    refuses_weights(model, "bad name (got '../model.safetensors'", "config.json")


@pytest.mark.parametrize("weight_map", [None, [1], {}, "x", 5])
def test_an_index_without_files(model, weight_map):
    shard(model, {"weight_map": weight_map})
    refuses_weights(model, "weight_map is not an object", INDEX, "download")


@pytest.mark.parametrize(
    "name", [1, None, ["a"], "", "/etc/m.safetensors", "../m.safetensors", "a/../../m.safetensors",
             "..\\m.safetensors", "m.safetensors\0", "m.bin"]
)  # fmt: skip
def test_an_index_that_leaves_the_folder(model, name):
    shard(model, {"weight_map": {"a": "model-1.safetensors", "b": name}})
    refuses_weights(model, "a file of weights has a bad name", INDEX, "not to be trusted")


def test_missing_weights_and_shards(model):
    shard(model, {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    refuses_weights(model, "weights is missing", "model-2.safetensors", "1 of 2")
    (model / INDEX).write_text("[]")
    refuses_weights(model, "not a JSON object", INDEX)
    (model / INDEX).write_text("[" * 100_000)
    refuses_weights(model, "not a JSON object", INDEX)
    (model / INDEX).unlink()
    (model / "model-1.safetensors").unlink()
    refuses_weights(model, "holds no weights")


def test_a_tensor_in_two_shards(model):
    names = ["model-1.safetensors", "model-2.safetensors"]
    shard(model, {"weight_map": dict(zip("ab", names, strict=True))})
    save_file({f"{QUERY}.weight": np.ones((32, 32), np.float32)}, model / names[1])
    refuses_weights(model, f"{QUERY}.weight is in more than one file", names[1])


def test_adapters(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    refuses_weights(model, "an adapter beside the model", "merge_and_unload", "adapter_config.json")
    (model / "config.json").unlink()
    refuses(model, "an adapter without its model", "into its base model, someone/base, first")


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("is_causal", False),
        ("use_bidirectional_attention", True),
        ("use_bidirectional_attention", "all"),
        ("add_cross_attention", True),
        ("is_encoder_decoder", True),
    ],
)
def test_switches_that_are_not_a_causal_decoders(model, switch, value):
    edit_config(model, **{switch: value})
    refuses_weights(model, f"config.json sets {switch} to {value!r}", "one decoder")


def test_what_the_config_says_of_the_checkpoint_is_noted(model):
    edit_config(model, architectures=["LlamaForSequenceClassification"])
    assert "of a LlamaForSequenceClassification; it is compiled as LlamaForCausalLM" in notes_of(
        model
    )
    edit_config(model, architectures=7)
    assert not notes_of(model)
    edit_config(model, architectures=None, auto_map={"AutoModelForCausalLM": "own.Own"})
    assert "code of the checkpoint's own (auto_map), which is not run" in notes_of(model)


def test_parts_that_transformers_keeps_in_bfloat16_are_widened(tmp_path):
    save_config("llama", {"num_key_value_heads": 2, "hidden_act": "xielu"}, tmp_path)
    assert opened(tmp_path)[2].dtype("model.layers.0.mlp.act_fn.alpha_p") == "bfloat16"
    loaded = load_model(tmp_path)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 9))
    with torch.no_grad():
        want = open_float_model(tmp_path).build()(torch.tensor(ids)).logits
    assert want.dtype == torch.float32
    got = evaluate(loaded.module["main"], [ids, np.arange(9)[None]], loaded.weights)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-4, rtol=1e-4)
