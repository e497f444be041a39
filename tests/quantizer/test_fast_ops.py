"""The rules with torch inside against the numpy evaluator."""

import numpy as np
import pytest

from morendo.ir.evaluate_dialect import DIALECT, State
from morendo.passes.streaming.fast_ops import FAST_RULES

SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)


class Slopes:
    def get(self, name: str) -> np.ndarray:
        return {"slopes": SLOPES}[name]


OPTIONS = ({}, {"window": 5}, {"softcap": 3.0}, {"alibi": "slopes"}, {"window": 3, "softcap": 2.0})


@pytest.mark.parametrize("options", OPTIONS)
def test_attention(options) -> None:
    rng = np.random.default_rng()
    q = rng.normal(size=(1, 17, 4, 8)).astype(np.float32)
    k, v = (rng.normal(size=(1, 17, 2, 8)).astype(np.float32) for _ in range(2))
    attrs = {"scale": 0.3, "window": 0, "softcap": 0.0, "alibi": "", **options}
    state = State(Slopes())
    want = DIALECT["attention"](state, attrs, q, k, v)
    got = FAST_RULES["attention"](state, attrs, q, k, v)
    assert np.allclose(got, want, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_norms_and_rope() -> None:
    rng = np.random.default_rng()
    x = rng.normal(size=(1, 17, 4, 8)).astype(np.float32)
    vectors = {name: rng.normal(size=8).astype(np.float32) for name in ("weight", "bias")}
    vectors["inv_freq"] = rng.random(3).astype(np.float32)
    state = State(vectors)
    for vector in vectors.values():
        vector.setflags(write=False)  # as those of a mapped file, of which torch warns
    norm = {"weight": "weight", "bias": "bias", "eps": 1e-5, "offset": 0.5}
    rope = {"inv_freq": "inv_freq", "scaling": 1.5, "rotary_dim": 6, "interleaved": False}
    positions = np.arange(17)[None]
    for name, attrs, inputs in (
        ("rms_norm", norm, (x,)),
        ("layer_norm", norm, (x,)),
        ("rope", rope, (x, positions)),
        ("rope", {**rope, "interleaved": True}, (x, positions)),
        ("gated", {"activation": "silu"}, (x, x + 1)),
    ):
        want = DIALECT[name](state, attrs, *inputs)
        assert np.allclose(FAST_RULES[name](state, attrs, *inputs), want, atol=1e-5), name
