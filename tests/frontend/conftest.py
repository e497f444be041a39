"""A model that tests of the files may spoil."""

import shutil
from pathlib import Path

import pytest

from .families import save_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    save_model("llama", path)
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model: a llama whose head is tied to its embedding."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))
