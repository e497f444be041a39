"""One compilation that tests of dumps, pages and debugging look at."""

from __future__ import annotations

from pathlib import Path

import pytest

import morendo

TINY = Path(__file__).parent.parent / "models" / "tiny_llama"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(artifact, dump) of the small llama with 4 bits, rounded to nearest."""
    folder = tmp_path_factory.mktemp("inspected")
    artifact, dump = folder / "artifact", folder / "ir"
    morendo.compile(TINY, out=artifact, chunk=32, dump_ir=dump, search_scales=False)
    return artifact, dump
