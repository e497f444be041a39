"""Models in several .gguf files, and files that hold no model."""

from pathlib import Path

import numpy as np
import pytest

from morendo.frontend import load_model
from morendo.frontend.gguf import open_gguf
from morendo.ir.errors import InputError
from tests.frontend.families import make_model
from tests.frontend.tiny_gguf import (
    model_keys,
    model_tensors,
    save_gguf,
    tokenizer_keys,
    write_gguf,
)


def _save_parts(folder: Path, count: int = 3, **changes: dict) -> list[Path]:
    """The tiny llama in parts as gguf-split writes them: the first has all keys."""
    model = make_model("llama")
    tensors = list(model_tensors(model, "llama").items())
    every = model_keys("llama", model.config) | tokenizer_keys(model.config.vocab_size)
    paths = []
    for i in range(count):
        split = {"split.no": i, "split.count": count, "split.tensors.count": len(tensors)}
        keys = (every if i == 0 else {}) | split | changes.get(f"part{i}", {})
        paths.append(folder / f"tiny-{i + 1:05d}-of-{count:05d}.gguf")
        write_gguf(paths[-1], "llama", keys, dict(tensors[i::count]))
    return paths


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return _save_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_part_stands_for_all(parts, number):
    model = make_model("llama")
    loaded = load_model(parts[number])
    assert loaded.tokenizer is not None
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(loaded.weights.get(name), parameter.detach().numpy())


def test_missing_parts(tmp_path):
    paths = _save_parts(tmp_path)
    paths[0].unlink()
    message = r"got 2 of 3 files; missing: tiny-00001-of-00003.gguf\)"
    with pytest.raises(InputError, match=message):
        load_model(paths[1])
    paths[2].unlink()
    with pytest.raises(InputError, match=r"tiny-00001-of-00003.gguf and 1 more"):
        load_model(paths[1])


def test_a_part_with_another_name(parts, tmp_path):
    other = tmp_path / "model.gguf"
    other.write_bytes(parts[1].read_bytes())
    message = r"part 2 of a model in 3 files has another name.*name it \.\.\.-00002-of-00003\.gguf"
    with pytest.raises(InputError, match=message):
        open_gguf(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split.no": 0}, "it says part 1 of 3"),
        ({"split.count": 4}, "it says part 2 of 4"),
        ({"split.tensors.count": 7}, r"the parts have \d+ tensors, it says 7"),
        ({"llama.block_count": 9}, "llama.block_count differs from the first part's"),
        ({"split.no": "one"}, "split.no is 'one', need a number of parts"),
    ],
)
def test_parts_that_disagree(tmp_path, change, message):
    paths = _save_parts(tmp_path, part1=change)
    with pytest.raises(InputError, match=message):
        open_gguf(paths[0])


def test_parts_that_share_a_tensor(tmp_path):
    paths = _save_parts(tmp_path)
    keys = {"split.no": 1, "split.count": 3}
    write_gguf(paths[1], "llama", keys, {"token_embd.weight": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="tensor token_embd.weight is in another part too"):
        open_gguf(paths[0])


def test_files_that_hold_no_model(tmp_path):
    path = tmp_path / "m.gguf"
    save_gguf(make_model("llama"), path, keys={"general.type": "adapter"})
    with pytest.raises(InputError, match="general.type is 'adapter'.*merged"):
        load_model(path)
    write_gguf(path, "llama", {}, {"a": np.ones(3, np.float32)})
    path.write_bytes(path.read_bytes().replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(InputError, match="has no general.architecture"):
        load_model(path)
