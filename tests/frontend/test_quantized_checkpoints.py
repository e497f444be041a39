"""Checkpoints that are quantized already are refused with the name of what quantized them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from tests.frontend.spoil import (
    QUERY,
    WEIGHTS,
    edit_config,
    edit_weights,
    opened,
    refuses_weights,
    to_bin,
)


def test_quantization_in_the_config(model):
    edit_config(model, quantization_config=None)
    opened(model)
    for key, value, said in (
        ("quantization_config", {"quant_method": "gptq", "bits": 4}, "gptq with 4 bits"),
        ("quantization_config", {"load_in_4bit": True}, "bitsandbytes"),
        ("quantization_config", {}, "an unknown tool"),
        ("quantization_config", "fp8", "an unknown tool"),
        ("quantization_config",
         {"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, "modelopt with NVFP4"),
        ("compression_config", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("quantization", {"group_size": 64, "bits": 4}, "MLX with 4 bits"),
    ):  # fmt: skip
        edit_config(model, quantization_config=None, compression_config=None, quantization=None)
        edit_config(model, **{key: value})
        refuses_weights(model, f"quantized already by {said}", key, "original float checkpoint")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["qweight", "qzeros", "scales", "g_idx"], "GPTQ"),
        (["qweight", "qzeros", "scales"], "GPTQ or AWQ"),
        (["q_weight", "q_scale"], "ExLlama"),
        (["weight_packed", "weight_scale", "weight_shape"], "compressed-tensors"),
        (["weight.absmax", "weight.quant_map"], "bitsandbytes"),
        (["SCB"], "bitsandbytes"),
        (["W_q"], "HQQ"),
        (["weight_scale_inv"], "FP8"),
        (["weight_scale", "input_scale"], "ModelOpt or compressed-tensors"),
        (["weight._data", "weight._scale"], "quanto"),
        (["codebooks", "codes"], "AQLM or VPTQ"),
        (["scales", "biases"], "MLX"),
    ],
)
def test_tensors_of_quantized_checkpoints(model, parts, said):
    names = {f"{QUERY}.{part}": np.ones((4, 4), np.int32) for part in parts}
    edit_weights(model, **{f"{QUERY}.weight": None}, **names)
    refuses_weights(model, f"quantized already by {said} (tensor {QUERY}", "float checkpoint")


@pytest.mark.parametrize(
    ("file", "facts", "said"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "GPTQ with 4 bits"),
        ("quant_config.json", {"w_bit": 4, "zero_point": True}, "AWQ with 4 bits"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "ModelOpt with FP8"),
    ],
)
def test_files_of_quantizing_tools(model, file, facts, said):
    (model / file).write_text(json.dumps(facts))
    opened(model)  # the weights are floats all the same
    edit_weights(model, **{f"{QUERY}.qzeros": np.ones(4, np.int32)})
    refuses_weights(model, f"quantized already by {said} ({file}, tensor {QUERY}.qzeros)")


def test_eight_bit_floats(model):
    tensors = load_torch(model / WEIGHTS)
    tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn)
    save_torch(tensors, model / WEIGHTS)
    refuses_weights(model, "quantized already by FP8 or FP4 (weights are stored as F8_E4M3)")
    to_bin(model)
    refuses_weights(model, "quantized already by FP8 or FP4", "float8_e4m3fn")
