"""Weight stores: views, aliases, shards, bfloat16."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from morendo.frontend.safetensors_file import SafetensorsSource
from morendo.frontend.torch_file import TorchSource
from morendo.frontend.weights import MemorySource, WeightStore
from morendo.ir.errors import InputError
from morendo.ir.weight_views import WeightView, parse_view


@pytest.mark.parametrize(
    ("view", "name"),
    [
        (WeightView("a.b", 0, 4), "a.b[0:4]"),
        (WeightView("a.b", 2, 4, 6), "a.b[2:4/6]"),
        (WeightView("a.b", 2, 4, columns=True), "a.b[:,2:4]"),
    ],
)
def test_view_names(view, name):
    assert view.name == name
    assert parse_view(name) == view
    assert parse_view("a.b") is None


def test_views_and_aliases():
    matrix = np.arange(72, dtype=np.float32).reshape(12, 6)
    store = WeightStore.of({"w": matrix, "b": matrix[:, 0]})
    store.aliases["tied"] = "w"
    rows = [2, 3, 8, 9]
    np.testing.assert_array_equal(store.get("w[2:4/6]"), matrix[rows])
    np.testing.assert_array_equal(store.get("b[2:4/6]"), matrix[rows, 0])
    np.testing.assert_array_equal(store.get("tied[2:4]"), matrix[2:4])
    np.testing.assert_array_equal(store.get("w[:,1:3]"), matrix[:, 1:3])
    np.testing.assert_array_equal(store.get("w[:,1:2/3]"), matrix[:, [1, 4]])
    for name in ("w[2:4/6]", "b[2:4/6]", "w[:,1:3]", "w[:,1:2/3]", "tied"):
        assert name in store
        assert store.shape(name) == store.get(name).shape
    assert store.names() == ["w", "b"]
    assert "other" not in store
    with pytest.raises(InputError, match="no such weight at other"):
        store.get("other")


def test_safetensors_dtypes_and_shards(tmp_path):
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)
    tensors = {str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in kinds}
    tensors["scalar"] = torch.tensor(2.5)
    paths = []
    for i, (name, tensor) in enumerate(tensors.items()):
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({name: tensor}, paths[-1])
    source = SafetensorsSource(paths)
    assert source.names() == list(tensors)
    for name, tensor in tensors.items():
        want = tensor.float() if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(source.read(name), want.numpy())
        assert source.shape(name) == tuple(tensor.shape)
        assert source.read(name).dtype == (np.int64 if "int" in name else np.float32)
    assert source.dtype("torch.bfloat16") == "bfloat16"


def test_reading_one_tensor_does_not_read_the_file(tmp_path):
    path = tmp_path / "big.safetensors"
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    rest = 1 << 36  # bytes, a hole in the file
    header["hole"] = {"dtype": "U8", "shape": [rest], "data_offsets": [16, 16 + rest]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.eye(2, dtype=np.float32).tobytes())
        file.truncate(file.tell() + rest)
    np.testing.assert_array_equal(SafetensorsSource([path]).read("w"), np.eye(2))


def test_rows_are_those_of_the_whole(tmp_path):
    """Of every kind of checkpoint, by ranges and by indices."""
    torch.manual_seed(0)
    tensors = {str(kind): torch.randn(9, 5).to(kind) for kind in (torch.float32, torch.bfloat16)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.bin")
    arrays = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    sources = (
        SafetensorsSource([tmp_path / "a.safetensors"]),
        TorchSource([tmp_path / "a.bin"]),
        MemorySource(arrays),
    )
    picks = (slice(2, 5), slice(7, 40), slice(None), np.array([8, 0, 8]))
    for source in sources:
        store = WeightStore(source, {name: name for name in arrays}, {"b": arrays["torch.float32"]})
        store.aliases["tied"] = "torch.float32"
        for name in (*arrays, "b", "tied", "torch.float32[1:6]"):
            for rows in picks[:3] if "[" in name else picks:
                np.testing.assert_array_equal(store.rows(name, rows), store.get(name)[rows])
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    with pytest.raises(InputError, match=r"cannot be read \(the file ends before it\) at .*again"):
        for name in arrays:
            sources[0].rows(name, slice(None))
