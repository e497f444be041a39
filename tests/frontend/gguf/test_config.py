"""What a GGUF file says of its model: read, known to change nothing, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from morendo.frontend.checkpoint import open_checkpoint, open_weights
from morendo.frontend.gguf import open_gguf, read_config
from morendo.frontend.gguf.config import BUILDERS
from morendo.frontend.torch_export import build_empty
from morendo.frontend.weights import WeightStore
from morendo.ir.errors import InputError
from tests.frontend.families import make_model
from tests.frontend.tiny_gguf import save_gguf


def _open(path: Path) -> WeightStore:
    opened = open_checkpoint(path)
    return open_weights(opened, build_empty(opened.config))


def test_factors_of_frequencies(tmp_path):
    model = make_model("llama")
    factors = np.array([1, 1, 2, 8], np.float32)
    save_gguf(model, tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    store = _open(tmp_path / "m.gguf")
    want = model.model.rotary_emb.inv_freq.numpy() / factors
    np.testing.assert_allclose(store.get("model.rotary_emb.inv_freq"), want)


@pytest.mark.parametrize(
    ("architecture", "tensors", "message"),
    [
        ("llama", {"rope_freqs.weight": np.ones(3, np.float32)}, "needs 4 positive numbers, got 3"),
        ("llama", {"rope_freqs.weight": np.zeros(4, np.float32)}, "needs 4 positive numbers"),
        (
            "llama",
            {"rope_factors_long.weight": np.ones(4, np.float32)},
            "has no tensor rope_factors_short.weight",
        ),
        (
            "qwen3",
            {"rope_freqs.weight": np.ones(4, np.float32)},
            r"does not use \(first: rope_freqs.weight\)",
        ),
    ],
)
def test_factors_that_cannot_be_used(tmp_path, architecture, tensors, message):
    model = make_model("qwen3" if architecture == "qwen3" else "llama")
    save_gguf(model, tmp_path / "m.gguf", architecture, tensors=tensors)
    with pytest.raises(InputError, match=message):
        _open(tmp_path / "m.gguf")


_HARMLESS = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.scale": 8**-0.5,
    "attention.sliding_window": 0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 1.0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.dimension_count": 8,
    "rope.scaling.finetuned": True,
    "rope.scaling.yarn_beta_fast": 16.0,
    "tensor_data_layout": "Meta AI original pth",
    "vocab_size": 96,
}


def test_keys_that_change_nothing(tmp_path):
    model = make_model("llama")
    save_gguf(model, tmp_path / "a.gguf")
    head_counts = {"attention.head_count": [4, 4], "attention.head_count_kv": [2, 2]}
    save_gguf(model, tmp_path / "b.gguf", keys=_HARMLESS | head_counts)
    plain, more = (read_config(open_gguf(tmp_path / f"{n}.gguf")).to_dict() for n in "ab")
    assert plain == more


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.causal", False),
        ("attention.clamp_kqv", 8.0),
        ("attention.key_length_mla", 8),
        ("attention.max_alibi_bias", 8.0),
        ("attention.scale", 0.25),
        ("attention.shared_kv_layers", 2),
        ("attention.sliding_window_pattern", 2),
        ("attention.temperature_scale", 0.1),
        ("attention.value_length", 16),
        ("attn_logit_softcapping", 50.0),
        ("embedding_scale", 12.0),
        ("final_logit_softcapping", 30.0),
        ("interleave_moe_layer_step", 2),
        ("logit_scale", 8.0),
        ("nextn_predict_layers", 1),
        ("residual_scale", 0.22),
        ("rope.dimension_count", 4),
        ("rope.dimension_sections", [2, 2]),
        ("rope.freq_base_swa", 10000.0),
        ("rope.scaling.alpha", 1000.0),
        ("rope.scaling.attn_factor", 1.2),
        ("rope.scaling.yarn_attn_factor", 1.2),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("swin_norm", True),
        ("something_new", 1),
    ],
)
def test_keys_that_change_the_function(tmp_path, key, value):
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys={key: value})
    with pytest.raises(InputError, match=rf"GGUF key llama\.{key} = .* is not supported for llama"):
        read_config(open_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", None, "has no key llama.block_count"),
        ("block_count", "two", "llama.block_count is 'two', need an integer"),
        ("block_count", 2.0, "llama.block_count is 2.0, need an integer"),
        ("block_count", True, "llama.block_count is True, need an integer"),
        ("block_count", 0, "llama.block_count is 0, need 1 to 2147483647"),
        ("block_count", 4_000_000_000, "llama.block_count is 4000000000, need 1 to 2147483647"),
        ("block_count", 1_000_000, "block_count is 1000000, need 1 to 20, the tensors"),
        ("attention.head_count_kv", [2, 1], "head_count_kv differs from layer to layer"),
        ("feed_forward_length", [48, 32], "feed_forward_length differs from layer to layer"),
        ("attention.head_count", 5, "GGUF key llama.attention|32 channels do not divide"),
        ("attention.layer_norm_rms_epsilon", "1e-5", "epsilon is '1e-5', need a number"),
        ("attention.layer_norm_rms_epsilon", float("nan"), "is nan, need 0 or more"),
        ("attention.head_count_kv", 3, "4 heads cannot share the keys and values of 3"),
        ("rope.freq_base", -1.0, "rope.freq_base is -1.0, need 0 or more"),
        ("rope.freq_base", 0.0, "rope.freq_base is 0.0, need over 1"),
        ("rope.scaling.factor", -2.0, "rope.scaling.factor is -2.0, need 0 or more"),
        ("rope.scaling.type", 4, "rope.scaling.type is 4, need a text"),
        ("rope.scaling.type", "ntk", "rope.scaling.type is 'ntk'"),
        ("rope.scaling.type", "longrope", "has no tensor rope_factors_long.weight"),
    ],
)
def test_keys_that_are_missing_or_wrong(tmp_path, key, value, message):
    keys = {"attention.key_length": None, "attention.value_length": None, key: value}
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys=keys)
    with pytest.raises(InputError, match=message):
        read_config(open_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("architecture", "family", "keys", "message"),
    [
        ("gemma3", "gemma3", {"attention.scale": 0.3}, r"scaled by 1 / sqrt\(11\.1111\)"),
        (
            "gemma3",
            "gemma3",
            {"attention.sliding_window": 4, "attention.sliding_window_pattern": [True]},
            "pattern needs a flag for each layer",
        ),
        ("bloom", "bloom", {"feed_forward_length": 99}, "bloom.feed_forward_length = 99"),
        ("bloom", "bloom", {"attention.max_alibi_bias": 4.0}, "max_alibi_bias = 4.0"),
        ("gptneox", "gpt_neox", {"use_parallel_residual": 1}, "is 1, need true or false"),
        ("phi3", "phi3", {"rope.dimension_count": 10}, "10 of a head's 8 channels cannot"),
        ("qwen2", "qwen2", {"attention.sliding_window": 4}, "qwen2.attention.sliding_window = 4"),
    ],
)
def test_what_one_architecture_refuses(tmp_path, architecture, family, keys, message):
    save_gguf(make_model(family), tmp_path / "m.gguf", architecture, keys)
    with pytest.raises(InputError, match=message):
        read_config(open_gguf(tmp_path / "m.gguf"))


def test_a_configuration_that_transformers_refuses(tmp_path, monkeypatch):
    def refuse(**fields: Any) -> None:
        raise ValueError("no such\nthing")

    save_gguf(make_model("llama"), tmp_path / "m.gguf")
    monkeypatch.setattr(AutoConfig, "for_model", refuse)
    with pytest.raises(InputError, match=r"configuration is not valid \(no such thing\)"):
        read_config(open_gguf(tmp_path / "m.gguf"))


def test_without_an_embedding(tmp_path):
    save_gguf(make_model("llama"), tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"token_embd.weight", b"token_embx.weight"))
    with pytest.raises(InputError, match="has no tensor token_embd.weight"):
        read_config(open_gguf(tmp_path / "m.gguf"))


def test_unknown_architecture(tmp_path):
    save_gguf(make_model("llama"), tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"llama", b"mamba"))
    with pytest.raises(InputError, match="'mamba' is not supported.*supported: .*llama, nemotron"):
        read_config(open_gguf(tmp_path / "m.gguf"))


def test_architectures_are_documented():
    text = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text()
    assert [name for name in BUILDERS if f"`{name}`" not in text] == []
