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
        ("vocab_size", -4, r"is -4, need 1 to \d+, the numbers"),
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


@pytest.mark.parametrize("value", [0, -5])
def test_positions(model, value):
    edit_config(model, max_position_embeddings=value)
    with pytest.raises(InputError, match=f"max_position_embeddings is {value}, need at least 1"):
        open_checkpoint(model)


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
