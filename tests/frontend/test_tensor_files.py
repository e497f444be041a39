"""Files of tensors: what the safetensors library refuses, and what pickled files may hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_torch

from tests.frontend.spoil import QUERY, WEIGHTS, opened, refuses_weights, to_bin


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("state_dict", {"a": torch.zeros(1)}, "'state_dict' is of type dict"),
        ("epoch", 3, "'epoch' is of type int"),
        ("sparse", torch.zeros(2, 2).to_sparse(), "a torch.sparse_coo tensor"),
        ("empty", torch.zeros(2, device="meta"), "a tensor without data"),
    ],
)
def test_pickled_files_of_other_things(model, name, value, said):
    path = to_bin(model, **{name: value})
    refuses_weights(model, "not a dictionary of plain tensors", said, str(path))


def test_pickled_parameters(model):
    want = load_torch(model / WEIGHTS)[f"{QUERY}.weight"]
    to_bin(model, **{f"{QUERY}.weight": torch.nn.Parameter(want)})
    np.testing.assert_array_equal(opened(model)[2].get(f"{QUERY}.weight"), want.numpy())


def write_header(model: Path, **changes: dict) -> None:
    """Change fields of tensors in the header, and leave the data as they are."""
    data = (model / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    for name, fields in changes.items():
        header[name] |= fields
    text = json.dumps(header).encode()
    (model / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_damaged_safetensors(model):
    data = (model / WEIGHTS).read_bytes()
    offsets = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])[f"{QUERY}.weight"][
        "data_offsets"
    ]
    spoiled = {
        "overlap": {"model.layers.0.self_attn.o_proj.weight": {"data_offsets": offsets}},
        "negative": {f"{QUERY}.weight": {"data_offsets": [-1, 4]}},
        "backwards": {f"{QUERY}.weight": {"data_offsets": offsets[::-1]}},
        "huge": {f"{QUERY}.weight": {"data_offsets": [0, 2**63]}},
        "shape": {f"{QUERY}.weight": {"shape": [32, 31]}},
        "huge shape": {f"{QUERY}.weight": {"shape": [2**62, 16]}},
        "dtype": {f"{QUERY}.weight": {"dtype": "F8X"}},
        "no dtype": {f"{QUERY}.weight": {"dtype": None}},
    }
    for changes in spoiled.values():
        (model / WEIGHTS).write_bytes(data)
        write_header(model, **changes)
        refuses_weights(model, "header is not valid", WEIGHTS, "damaged")
    for other in (data + b"\0", data[:-1], data[:8] + b"[" + data[9:], b"\xff" * 9, b""):
        (model / WEIGHTS).write_bytes(other)
        refuses_weights(model, "header is not valid", WEIGHTS, "download it again")
