"""A calibration that was interrupted goes on from the last finished layer."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.ir.code_store import CodeStore
from morendo.ir.errors import ArtifactError, CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import quantize
from morendo.progress import Progress
from morendo.resume import kept_codes, kept_folder

from .test_streaming import TINY, prose


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(prose(0, 0.04), encoding="utf-8")  # some windows are not rounded by
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """What comes of a calibration that nothing interrupts."""
    return compile_tiny(tmp_path_factory.mktemp("whole") / "out", text)


def compile_tiny(out: Path, text: Path, notes: Notes | None = None) -> Path:
    options = {"average_bits": 2.6, "calibrate": text, "calibration_windows": 8, "chunk": 32}
    return morendo.compile(TINY, out=out, progress=notes, tuning_steps=8, **options)


def test_an_interrupted_calibration_goes_on(tmp_path, text, whole, monkeypatch) -> None:
    out, put, count = tmp_path / "out", CodeStore.put, 0

    def put_some(self, *arguments) -> None:
        nonlocal count
        count += 1
        if count == 12:  # in the middle of the second layer
            raise KeyboardInterrupt
        put(self, *arguments)

    monkeypatch.setattr(CodeStore, "put", put_some)
    first = Notes()
    with pytest.raises(KeyboardInterrupt):
        compile_tiny(out, text, first)
    assert not out.exists()
    assert len(CodeStore(kept_folder(out))) == 11
    assert "11 rounded matrices are kept" in first.said[-1]

    second = Notes()
    compile_tiny(out, text, second)
    assert "going on with 11 matrices" in second.said[0]
    assert count == 12 + (28 - 11) + 28  # what was missing, then all with tuned scales
    assert not kept_folder(out).exists()
    assert (out / "weights.bin").read_bytes() == (whole / "weights.bin").read_bytes()


def test_tuned_codes_are_not_tuned_again(tmp_path, text, whole, monkeypatch) -> None:
    out = tmp_path / "out"

    def full(*arguments) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(ArtifactError, match="No space left"):
        patched.setattr("morendo.codegen.weight_file.WeightFile.write", full)
        compile_tiny(out, text)
    assert len(CodeStore(kept_folder(out))) == 28
    compile_tiny(out, text)
    assert (out / "weights.bin").read_bytes() == (whole / "weights.bin").read_bytes()


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_damaged_codes_are_named(tmp_path, keep: int) -> None:
    store, fmt = CodeStore(tmp_path), WeightFormat.parse("q4g32c")
    store.put("layer.w", fmt, quantize(np.ones((4, 32), np.float32), fmt))
    store.put_vector("norm", np.ones(4, np.float32))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:keep])
    for read in (lambda: store.get("layer.w", fmt), lambda: store.vector("norm")):
        with pytest.raises(CompileError, match=r"kept are damaged .* at .*; delete its folder"):
            read()


def test_replacing_is_all_or_nothing(tmp_path) -> None:
    store, fmt = CodeStore(tmp_path), WeightFormat.parse("q4g32c")
    old, new = (quantize(np.full((4, 32), value, np.float32), fmt) for value in (1, 2))
    store.put("w", fmt, old, {"error": 1.0})

    def replace() -> None:
        with CodeStore(tmp_path).replacing() as staged:
            staged.put("w", fmt, new, {"error": 2.0})
            staged.put_vector("norm", np.ones(4, np.float32))
            if len(stop):
                raise KeyboardInterrupt

    stop = [True]
    with pytest.raises(KeyboardInterrupt):
        replace()
    assert store.figures("w", fmt) == {"error": 1.0} and store.vector("norm") is None
    stop.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CodeStore, "_recover", lambda self: None)  # interrupted before it moved
        replace()
    assert store.figures("w", fmt) == {"error": 1.0}
    assert CodeStore(tmp_path).figures("w", fmt) == {"error": 2.0}  # what was complete is moved
    assert np.array_equal(store.get("w", fmt).row_scale, new.row_scale)
    assert store.vector("norm") is not None
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".npy", ".npz"]


def test_other_text_starts_anew(tmp_path, text) -> None:
    notes = Notes()
    with pytest.raises(RuntimeError), kept_codes(tmp_path / "out", "one", notes.note) as codes:
        (codes.folder / "w@q4g32.npz").write_bytes(b"")
        raise RuntimeError
    with kept_codes(tmp_path / "out", "two", notes.note) as codes:
        assert not len(codes)
    assert not kept_folder(tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_left_alone(tmp_path) -> None:
    kept_folder(tmp_path / "out").mkdir()
    (kept_folder(tmp_path / "out") / "mine").write_text("")
    with pytest.raises(ArtifactError, match=r"something else is .* remove it"):
        with kept_codes(tmp_path / "out", "key", print):
            pass
    assert (kept_folder(tmp_path / "out") / "mine").exists()


def test_two_compiles_do_not_share_codes(tmp_path) -> None:
    with kept_codes(tmp_path / "out", "one", print) as codes:
        (codes.folder / "w@q4g32.npz").write_bytes(b"")
        with pytest.raises(ArtifactError, match=r"another compile .* give another --out"):
            with kept_codes(tmp_path / "out", "two", print):
                pass
        assert len(codes)
    assert not kept_folder(tmp_path / "out").exists()


def test_codes_that_vanish_are_missed(tmp_path) -> None:
    """Not rounded to nearest instead."""
    fmt, store = WeightFormat("q4", 32), CodeStore(tmp_path)
    assert store.get("w", fmt) is None
    store.put("w", fmt, quantize(np.ones((16, 32), np.float32), fmt))
    next(tmp_path.glob("*.npz")).unlink()
    with pytest.raises(CompileError, match="that were kept are gone"):
        store.get("w", fmt)
