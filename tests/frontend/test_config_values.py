"""Numbers of a configuration that no model can have are refused, by their key."""

from pathlib import Path

import numpy as np
import pytest

from morendo.frontend import load_model
from morendo.frontend.checkpoint import open_checkpoint
from morendo.frontend.gguf import open_gguf, read_config
from morendo.ir.errors import InputError
from tests.frontend.families import make_model, save_config
from tests.frontend.spoil import edit_config, edit_weights, opened
from tests.frontend.tiny_gguf import save_gguf, save_tokenizer

ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 4.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_hidden_layers", 10**12, r"is 10{12}, need 1 to 10000"),
        ("num_hidden_layers", 0, "is 0, need 1 to 10000"),
        ("num_hidden_layers", 10**4, r"is 10000, need 1 to \d+, the tensors of the checkpoint"),
        (
            "hidden_size",
            10**12,
            r"is 10{12}, need 1 to \d+, the numbers in the checkpoint's tensors",
        ),
        ("intermediate_size", 10**9, r"is 10{9}, need 1 to \d+, the numbers"),
        ("vocab_size", 10**12, r"is 10{12}, need 1 to \d+, the numbers"),
    ],
)
def test_sizes_that_the_tensors_cannot_fill(model, key, value, said):
    edit_config(model, **{key: value})
    with pytest.raises(InputError, match=f"configuration's {key} {said}"):
        opened(model)


def test_sizes_have_the_names_of_the_file(tmp_path):
    save_config("gpt2", {}, tmp_path)
    edit_config(tmp_path, n_layer=5000)
    with pytest.raises(
        InputError, match=r"configuration's n_layer is 5000, need 1 to \d+, the tensors"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("llama", "max_position_embeddings"),
        ("gpt2", "n_positions"),
        ("gptj", "n_positions"),  # makes a table of them
        ("bloom", "seq_length"),
        ("mistral", "sliding_window"),
    ],
)
@pytest.mark.parametrize("value", [0, -5, 2**31, 10**12])
def test_positions(kind, key, value, tmp_path):
    save_config(kind, {}, tmp_path)
    edit_config(tmp_path, **{key: value})
    with pytest.raises(InputError, match=f"{key} is {value}, need 1 to 16777216"):
        open_checkpoint(tmp_path)


def test_positions_of_a_gguf_file(tmp_path):
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys={"context_length": 10**9})
    with pytest.raises(InputError, match="max_position_embeddings is 10{9}, need 1 to 16777216"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(("llama", k) for k in ("num_attention_heads", "num_key_value_heads", "head_dim")),
        *(("llama", k) for k in ("hidden_size", "intermediate_size", "vocab_size")),
        *(("gpt2", k) for k in ("n_head", "n_embd", "n_inner")),
        *(("opt", k) for k in ("ffn_dim", "word_embed_proj_dim")),
        ("bloom", "n_head"),
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_widths_below_one(kind, key, value, tmp_path):
    save_config(kind, {}, tmp_path)
    edit_config(tmp_path, **{key: value})
    with pytest.raises(InputError, match=f"configuration's {key} is {value}, need at least 1"):
        open_checkpoint(tmp_path)


def test_what_transformers_finds_wrong_is_told_in_its_last_words(model):
    edit_config(model, num_attention_heads=7)
    match = r"is not valid \(The hidden size \(32\) is not a multiple .* heads \(7\)\.\)"
    with pytest.raises(InputError, match=match):
        open_checkpoint(model)
    edit_config(model, num_attention_heads=4, head_dim=2.5)
    match = r"\(Field 'head_dim' with value 2.5 doesn't match any type in [^:]*\) at"
    with pytest.raises(InputError, match=match):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("kind", "key", "value", "need"),
    [
        ("gptj", "rotary_dim", -1, "0 to 32, the hidden size"),
        ("codegen", "rotary_dim", 2**31, "0 to 32, the hidden size"),
        ("gpt_neox", "partial_rotary_factor", 1.5, "0 to 1"),
        ("gemma2", "query_pre_attn_scalar", -1, "a number above 0"),
        ("gemma2", "attn_logit_softcapping", 0.0, "a number above 0"),
        ("gemma2", "final_logit_softcapping", float("nan"), "a number above 0"),
        ("granite", "logits_scaling", 0.0, "a number above 0"),
        ("granite", "residual_multiplier", float("inf"), "a finite number"),
        ("granite", "attention_multiplier", float("nan"), "a finite number"),
        ("cohere", "logit_scale", float("nan"), "a finite number"),
    ],
)
def test_numbers_that_a_model_computes_with(kind, key, value, need, tmp_path):
    save_config(kind, {}, tmp_path)
    edit_config(tmp_path, **{key: value})
    with pytest.raises(InputError, match=f"configuration's {key} is {value}, need {need} at"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [-1.0, -1e-5, float("nan"), float("inf")])
def test_epsilons(model, value):
    edit_config(model, rms_norm_eps=value)
    with pytest.raises(InputError, match=rf"rms_norm_eps is {value}, need 0 or more"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({**ROPE, "factor": -2.0}, r"rope_parameters.factor is -2.0, need a number above 0"),
        ({**ROPE, "factor": 0}, r"rope_parameters.factor is 0, need a number above 0"),
        ({**ROPE, "factor": float("nan")}, r"rope_parameters.factor is nan"),
        ({**ROPE, "factor": float("inf")}, r"rope_parameters.factor is inf"),
        ({**ROPE, "rope_theta": -1.0}, r"rope_parameters.rope_theta is -1.0"),
        ({"rope_type": "default", "rope_theta": 0.0}, r"rope_parameters.rope_theta is 0.0"),
        ({**ROPE, "beta_fast": 0}, r"rope_parameters.beta_fast is 0"),
        ({**ROPE, "partial_rotary_factor": -0.5}, r"rope_parameters.partial_rotary_factor is -0.5"),
        ({**ROPE, "mscale": float("nan")}, r"rope_parameters.mscale is nan, need a finite number"),
        (LLAMA3, r"rope_parameters.high_freq_factor is 4.0, need more than 4.0"),
    ],
)
def test_rotary_parameters(model, rope, said):
    edit_config(model, rope_parameters=rope)
    with pytest.raises(InputError, match=said):
        open_checkpoint(model)


def test_rotary_parameters_of_old_files_and_of_types_of_layers(model, tmp_path):
    edit_config(model, rope_parameters=None, rope_scaling={"type": "linear", "factor": -2.0})
    with pytest.raises(InputError, match=r"rope_parameters.factor is -2.0"):
        open_checkpoint(model)
    edit_config(model, rope_scaling=None, rope_theta=-3.0)
    with pytest.raises(InputError, match=r"rope_parameters.rope_theta is -3.0"):
        open_checkpoint(model)
    save_config("gemma3_text", {"num_key_value_heads": 2, "head_dim": 8}, tmp_path / "gemma3")
    wrong = {"rope_type": "linear", "rope_theta": 1e6, "factor": 0.0}
    local = {"rope_type": "default", "rope_theta": 1e4}
    rope = {"full_attention": wrong, "sliding_attention": local}
    edit_config(tmp_path / "gemma3", rope_parameters=rope)
    with pytest.raises(InputError, match=r"rope_parameters.full_attention.factor is 0.0"):
        open_checkpoint(tmp_path / "gemma3")


@pytest.mark.parametrize(
    ("kind", "key", "experts"),
    [
        ("mixtral", "num_local_experts", 4),
        ("minimax", "num_local_experts", 4),
        ("qwen2_moe", "num_experts", 4),
        ("deepseek_v3", "n_routed_experts", 8),
    ],
)
def test_mixtures_of_experts(model, kind, key, experts):
    edit_config(model, model_type=kind, **{key: experts})
    match = rf"mixture of experts is not supported \({key} is {experts}\)"
    with pytest.raises(InputError, match=match):
        open_checkpoint(model)


def test_tensors_of_experts(model):
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    edit_weights(model, **{name: np.ones((4, 4), np.float32)})
    with pytest.raises(InputError, match=rf"mixture of experts is not supported \(tensor {name}"):
        opened(model)


@pytest.mark.parametrize("experts", [8, [8, 8]])
def test_mixtures_of_experts_in_gguf(tmp_path: Path, experts):
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys={"expert_count": experts})
    with pytest.raises(InputError, match=r"not supported \(GGUF key llama.expert_count = "):
        read_config(open_gguf(tmp_path / "m.gguf"))


def test_special_ids_outside_the_vocabulary_are_left_out(model):
    save_tokenizer(model, 40)
    edit_config(model, bos_token_id=500, eos_token_id=[9999, -1, 7])
    loaded = load_model(model)
    assert loaded.stop == (0, 7, 2)
    note = "special ids outside the vocabulary of 96, left out: 9999, -1"
    assert note in loaded.notes
    for file in model.glob("*token*"):
        file.unlink()
    loaded = load_model(model)
    assert (loaded.bos, loaded.eos, loaded.stop) == (None, 7, (7, 2))
    assert "special ids outside the vocabulary of 96, left out: 500, 9999, -1" in loaded.notes
