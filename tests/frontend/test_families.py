"""Every family: import, normalize and evaluate a tiny random model against transformers' own."""

from collections import Counter

import numpy as np
import pytest
import torch

from morendo.frontend import load_model
from morendo.frontend.families import TESTED
from morendo.ir.dialect import attrs_of
from morendo.ir.evaluate import evaluate
from morendo.ir.invariants import calls
from morendo.ir.text import parse_module, print_module
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from tests.frontend.families import FAMILIES, VOCABULARY, save_model

TOKENS = 11  # longer than the sliding windows
# Ops that have to be found, per layer: linears, rotations and gated activations.
PER_LAYER = {
    **dict.fromkeys(("biogpt", "bloom", "gpt2", "gpt2_layer_scales"), (6, 0, 0)),
    **dict.fromkeys(("opt", "opt_plain_norms"), (6, 0, 0)),
    **dict.fromkeys(("apertus", "arcee", "gpt_neox", "jais2", "nemotron"), (6, 2, 0)),
    **dict.fromkeys(("persimmon", "phi", "starcoder2"), (6, 2, 0)),
    "bitnet": (7, 2, 0),
    "gemma4": (9.5, 2, 2),
    "nanochat": (10, 0, 0),
    "codegen": (6, 0, 0),
    "gptj": (8, 0, 0),
    "olmo": (7, 0, 1),
}
# Where generic ops stay that a dialect op could take the place of.
NEARLY = {
    *("apertus", "arcee", "bitnet", "codegen", "gemma4", "gptj", "jais2", "nanochat"),
    *("nemotron", "olmo", "persimmon", "stablelm_head_norms"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_normalized_model_computes_what_transformers_does(family, tmp_path):
    model = save_model(family, tmp_path)
    loaded = load_model(tmp_path)
    context = Context(weights=loaded.weights)
    module = Normalize().apply(loaded.module, context)

    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, TOKENS))
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy()
    got = evaluate(module["main"], [ids, np.arange(TOKENS)[None]], loaded.weights)
    assert abs(want).max() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)

    assert bool(context.report.misses) == (family in NEARLY), context.report.reasons
    counts = Counter(name for name, _ in calls(module))
    linears, ropes, gates = PER_LAYER.get(family, (7, 2, 1))
    layers = 1 if family in ("cohere2", "exaone4", "smollm3") else 2  # with rope
    got = [counts[name] for name in ("linear", "rope", "gated", "attention")]
    assert got == [2 * linears + 1, layers * ropes, 2 * gates, 2]


def test_every_promised_family_is_among_them():
    assert sorted({kind for kind, _ in FAMILIES.values()}) == sorted(TESTED)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "bloom", "llama"])
def test_store_has_what_the_module_names(family, tmp_path):
    save_model(family, tmp_path)
    loaded = load_model(tmp_path)
    store = loaded.weights
    module = Normalize().apply(loaded.module, Context())
    for name, call in calls(module):
        attrs = attrs_of(call)
        assert attrs.get("weight", "lm_head.weight") in store
        if name == "linear":
            shape = attrs["out_features"], attrs["in_features"]
            assert store.shape(attrs["weight"]) == (shape[::-1] if attrs["transposed"] else shape)
            assert store.get(attrs["weight"]).shape == store.shape(attrs["weight"])
            assert not attrs["bias"] or store.get(attrs["bias"]).shape == shape[:1]
    tied = store.aliases.get("lm_head.weight")
    assert (tied is not None) == (family != "phi3")
    assert "lm_head.weight" not in store.names() or not tied


def test_raw_module_means_the_same_as_the_normalized_one(tmp_path):
    save_model("stablelm", tmp_path)
    loaded = load_model(tmp_path)
    module = parse_module(print_module(Normalize().apply(loaded.module, Context())))
    inputs = [np.array([[3, 1, 4, 1, 5]]), np.arange(5)[None]]
    raw, normalized = (evaluate(m["main"], inputs, loaded.weights) for m in (loaded.module, module))
    np.testing.assert_allclose(raw, normalized, atol=1e-5)
