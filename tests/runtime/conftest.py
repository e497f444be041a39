"""The toy model, linked once, and its artifact."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import toy


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy-library") / "model.so"
    toy.link_toy(out)
    return out


@pytest.fixture
def toy_artifact(toy_library, tmp_path) -> Path:
    out = tmp_path / "toy"
    toy.write_toy(out, toy_library, toy.toy_manifest())
    return out
