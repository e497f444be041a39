"""docs/models.md says what the tests run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import make_models_table
from tools.make_models_table import DOCUMENT, main, page


def test_the_document_is_what_the_script_makes() -> None:
    made = DOCUMENT.read_text(encoding="utf-8") == page()
    assert made, "run: python tools/make_models_table.py --write"


def test_the_script_prints_or_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(make_models_table, "DOCUMENT", tmp_path / "models.md")
    monkeypatch.setattr("sys.argv", ["make_models_table.py"])
    main()
    assert capsys.readouterr().out == page()
    monkeypatch.setattr("sys.argv", ["make_models_table.py", "--write"])
    main()
    assert (tmp_path / "models.md").read_text(encoding="utf-8") == page()
