"""Options and economies that the whole suite shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Torch's threads spin between small operations and stall each other on a machine that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

MODELS = Path(__file__).parent / "models"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the IR after in tests/golden"
    )


@pytest.fixture(scope="session", autouse=True)
def _small_models_are_exported_once() -> Iterator[None]:
    """`morendo.compile` loads each model of tests/models once a process.

    Tracing them takes as long as all that follows, and hundreds of tests compile the same one. What
    is loaded is never changed: passes make new modules and lay new weights over the old.
    """
    from morendo import compiler

    load, loaded = compiler.load_model, {}

    def load_once(model: str | Path, context: int | None = None) -> object:
        path = Path(model)
        if path.parent.resolve() != MODELS.resolve():
            return load(model, context)
        if (path, context) not in loaded:
            loaded[path, context] = load(model, context)
        return loaded[path, context]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiler, "load_model", load_once)
        yield
