"""Headers of .gguf files: what is damaged is refused in one line, every tensor type is read."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from morendo.frontend import load_model
from morendo.frontend.gguf import read_header
from morendo.ir.errors import InputError
from tests.frontend.families import make_model
from tests.frontend.tiny_gguf import save_gguf, write_gguf

_KINDS = [kind for kind in Kind if kind.name not in ("F64", "Q8_1", "Q8_K", "Q1_0")]
_KINDS = [kind for kind in _KINDS if not kind.name.startswith("I") or kind.name.startswith("IQ")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    save_gguf(make_model("llama"), path, quantized=Kind.Q8_0)
    return path


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.name)
def test_types(tmp_path, kind):
    """All that gguf dequantizes is accepted, and read as gguf reads it."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 256, (3, 2 * size), np.uint8)
    if kind == Kind.F32:
        stored = np.ones((3, 2), np.float32)
    if kind == Kind.F16:
        stored = np.ones((3, 2), np.float16)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("first", np.ones(5, np.float32))
    writer.add_tensor("second", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_header(tmp_path / "m.gguf").tensors[1]
    assert (info.kind, info.shape) == (kind, (3, 2 * block))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(info.read(), gguf.dequantize(stored, kind))


@pytest.mark.parametrize("kind", [Kind.Q5_0, Kind.Q5_1, Kind.MXFP4])
def test_quantized_by_gguf(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", "llama", {}, {"m.weight": values}, kind)
    got = read_header(tmp_path / "m.gguf").tensors[0].read()
    np.testing.assert_array_equal(got, gguf.dequantize(gguf.quantize(values, kind), kind))
    assert np.abs(got - values).mean() < 0.2


def test_metadata_is_what_gguf_reads(tiny):
    found = read_header(tiny).metadata
    fields = gguf.GGUFReader(tiny).fields
    assert found.keys() == {key for key in fields if not key.startswith("GGUF.")}
    for key, value in found.items():
        want = fields[key].contents()
        assert value == pytest.approx(want) if isinstance(value, float) else value == want
    assert found["llama.attention.layer_norm_rms_epsilon"] == 1e-6  # not 9.99999997e-07


@pytest.mark.parametrize("keep", [2, 20, 200, 2000, -5000, -1])
def test_truncated(tiny, tmp_path, keep):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(InputError, match="GGUF|ends behind the file"):
        load_model(cut)


def test_a_header_that_ends_too_early(tiny, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:20])
    with pytest.raises(InputError, match=r"cannot be read \(it ends too early\)"):
        load_model(cut)


def test_damaged_header(tiny, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    data = tiny.read_bytes()
    for start in range(4, 600, 41):
        damaged.write_bytes(data[:start] + b"\xff" * 8 + data[start + 8 :])
        with pytest.raises(InputError) as caught:
            load_model(damaged)
        assert "\n" not in str(caught.value)


def test_any_damage_to_the_header(tiny, tmp_path):
    """Random bytes anywhere are noticed, or leave a header whose tensors lie in the file."""
    damaged = tmp_path / "damaged.gguf"
    data, random = tiny.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data)
        for at in random.integers(0, 6000, 3):
            changed[at] = random.integers(0, 256)
        damaged.write_bytes(changed)
        said, tensors = "", ()
        try:
            tensors = read_header(damaged).tensors
        except InputError as error:
            said = str(error)
        assert said.isprintable()
        assert all(info.start + info.nbytes <= len(data) for info in tensors)


def test_unsupported_version(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    data = tiny.read_bytes()
    other.write_bytes(data[:4] + struct.pack("<I", 99) + data[8:])
    with pytest.raises(InputError, match=r"unsupported GGUF version \(got 99, need 2 or 3\)"):
        load_model(other)


def _patched(tiny: Path, path: Path, at: int, data: bytes) -> Path:
    """The tiny file with other bytes behind the name of its first tensor."""
    whole = tiny.read_bytes()
    start = whole.index(b"token_embd.weight") + len(b"token_embd.weight") + at
    path.write_bytes(whole[:start] + data + whole[start + len(data) :])
    return path


@pytest.mark.parametrize(("number", "name"), [(99, "of unknown kind"), (26, "I32"), (15, "Q8_K")])
def test_unreadable_tensor_type(tiny, tmp_path, number, name):
    other = _patched(tiny, tmp_path / "m.gguf", 4 + 2 * 8, struct.pack("<I", number))
    message = (
        rf"type {number} \({name}\) is not supported \(tensor token_embd.*supported: F32.*Q5_0"
    )
    with pytest.raises(InputError, match=message):
        load_model(other)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, struct.pack("<I", 9), "token_embd.weight has 9 dimensions, need 1 to 4"),
        (4, struct.pack("<Q", 0), "token_embd.weight is empty"),
        (4, struct.pack("<Q", 31), "rows of 31 values, need a multiple of 32 for Q8_0"),
        (24, struct.pack("<Q", 2**40), "token_embd.weight ends behind the file"),
        (24, struct.pack("<Q", 3200), "tensors token_embd.weight and blk.* overlap"),
    ],
)
def test_a_damaged_tensor_entry(tiny, tmp_path, at, data, message):
    with pytest.raises(InputError, match=message):
        read_header(_patched(tiny, tmp_path / "m.gguf", at, data))


def test_names_that_are_there_twice(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    data = tiny.read_bytes()
    other.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.1.attn_k.weight"))
    with pytest.raises(InputError, match=r"tensor blk\.1\.attn_k\.weight is there twice"):
        read_header(other)
    other.write_bytes(data.replace(b"eos_token_id", b"bos_token_id"))
    with pytest.raises(InputError, match=r"the key tokenizer\.ggml\.bos_token_id is there twice"):
        read_header(other)


def test_texts_that_are_not_utf8(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes().replace(b"gpt2", b"gp\xff2"))
    with pytest.raises(InputError, match=r"a text at byte \d+ is not UTF-8"):
        read_header(other)


def test_names_with_control_characters(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    for name in (b"blk.1.attn_k.weight", b"llama.block_count"):
        other.write_bytes(tiny.read_bytes().replace(name, b"\x1b[31m" + name[5:]))
        with pytest.raises(InputError, match=r"the name at byte \d+ has control characters"):
            read_header(other)


def test_values_of_unknown_type(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    key = b"llama.block_count"
    other.write_bytes(tiny.read_bytes().replace(key + b"\x04", key + b"\x4d"))
    with pytest.raises(InputError, match=r"a value of unknown type 77"):
        read_header(other)


def test_alignment(tmp_path):
    keys = {"general.alignment": 48}
    write_gguf(tmp_path / "m.gguf", "llama", keys, {"a": np.ones(3, np.float32)})
    with pytest.raises(InputError, match=r"general\.alignment is 48, need a power of two"):
        read_header(tmp_path / "m.gguf")
