"""The rules with torch inside against the numpy evaluator."""

import numpy as np
import pytest

from morendo.ir.evaluate_dialect import DIALECT, State
from morendo.passes.calibration.fast_ops import FAST_RULES

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
