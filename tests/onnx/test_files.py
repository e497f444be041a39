"""The file, what lies beside it, and folders that hold one."""

import json

import onnx
import pytest
from onnx import helper

from morendo.frontend import load_model
from morendo.frontend.float_model import open_float_model
from morendo.frontend.onnx.importer import import_onnx
from morendo.ir.errors import InputError
from tests.onnx.graphs import WIDTH, Builder


def _refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf at all")
    _refused(path, "not an ONNX model, or one that is cut off")
    path.write_bytes(b"")
    _refused(path, "the ONNX model has no nodes")
    b = Builder()
    data = b.save(b.x, tmp_path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _refused(path, "cut off")


@pytest.fixture
def external(tmp_path):
    """A model whose weights lie in a file beside it."""
    b = Builder()
    path = tmp_path / "model.onnx"
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "weights.bin"}
    onnx.save_model(b.model(b.op("Relu", [b.x])), path, **options)
    return path


def test_external_data_is_mapped_when_it_is_read(external):
    found = import_onnx(external, 64)
    data = external.parent / "weights.bin"
    data.write_bytes(bytes(data.stat().st_size))
    assert not found.weights.get("stored.0").any()


def test_external_data(external):
    data = external.parent / "weights.bin"
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    _refused(external, r"tensor .* ends behind the file .got \d+ bytes, need \d+")
    data.unlink()
    _refused(external, "the file of external data is missing")
    data.write_bytes(whole)
    model = onnx.load_model(external, load_external_data=False)
    for place in ("../weights.bin", "/dev/zero", ""):
        model.graph.initializer[0].external_data[0].value = place
        external.write_bytes(model.SerializeToString())
        _refused(external, "tensor stored.0 lies outside of the model's folder")
    model.graph.initializer[0].external_data[0].value = "weights.bin"
    length = next(e for e in model.graph.initializer[0].external_data if e.key == "length")
    for wrong in ("4", "-4", "many"):
        length.value = wrong
        external.write_bytes(model.SerializeToString())
        _refused(external, r"tensor stored.0 has -?\d+ bytes of external data, need 6144")


def test_folders(tmp_path):
    b = Builder()
    path = b.save(b.x, tmp_path)
    loaded = load_model(tmp_path)
    assert (loaded.name, loaded.architecture, loaded.tokenizer) == ("model.onnx", "onnx", None)
    (note,) = loaded.notes
    assert "no file beside model.onnx says how many tokens" in note
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "n_positions": 99}))
    assert (load_model(tmp_path).architecture, load_model(tmp_path).context) == ("x", 99)
    (tmp_path / "onnx").mkdir()
    moved = path.rename(tmp_path / "onnx" / "model.onnx")
    assert load_model(tmp_path).context == 99
    moved.rename(tmp_path / "a.onnx")
    assert load_model(tmp_path).name == "a.onnx"
    (tmp_path / "b.onnx").write_bytes(b"")
    _refused(tmp_path, "the folder holds 2 .onnx files, none called model.onnx")
    with pytest.raises(InputError, match="transformers cannot run an ONNX model"):
        open_float_model(tmp_path / "a.onnx")


def test_constants_may_be_nodes(tmp_path):
    b = Builder()
    two = helper.make_node("Constant", [], ["two"], value_float=2.0)
    b.nodes.insert(0, two)
    y = b.op("Reshape", [b.op("Mul", [b.x, "two"]), "shape"])
    b.nodes.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[1, -1, WIDTH]))
    found = import_onnx(b.save(y, tmp_path), 64)
    assert found.vocabulary == 24
