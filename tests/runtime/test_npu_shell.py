"""The shell that an app calls over FastRPC, on this machine, with a toy model behind it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from morendo.codegen.link import RUNTIME_SOURCES
from morendo.runtime.artifact import read_plan
from morendo.runtime.executor import CExecutor
from morendo.targets.hexagon import target

SHELL = Path(target.__file__).parent / "fastrpc" / "shell.c"


class Shell:
    """Calls it as the skeleton does."""

    def __init__(self, library: Path, folder: Path) -> None:
        out = folder / "shell.so"
        command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-Wall", "-Wextra", "-Werror"]
        folders = [f"-I{RUNTIME_SOURCES}", f"-I{Path(__file__).parent}"]
        command += ["-shared", "-fPIC", *folders, str(SHELL), str(library), "-o", str(out)]
        subprocess.run([*command, f"-Wl,-rpath,{library.parent}"], check=True)
        self.library = ctypes.CDLL(str(out))
        self.handle = ctypes.c_uint64()
        assert self.call("open", b"uri", ctypes.byref(self.handle), handle=False) == 0

    def call(self, name: str, *arguments, handle: bool = True) -> int:
        first = (self.handle,) if handle else ()
        return getattr(self.library, f"morendo_npu_{name}")(*first, *arguments)

    def reason(self) -> str:
        text = ctypes.create_string_buffer(256)
        assert self.call("reason", text, len(text)) == 0
        return text.value.decode()


@pytest.fixture
def shell(toy_library: Path, tmp_path: Path):
    made = Shell(toy_library, tmp_path)
    yield made
    assert made.call("close") == 0


def test_an_app_decodes_as_a_session_does(shell: Shell, toy_artifact: Path) -> None:
    vocabulary, levels = ctypes.c_int32(), ctypes.c_int32()
    numbers = ctypes.byref(vocabulary), ctypes.byref(levels)
    assert shell.call("start", str(toy_artifact).encode(), 1, *numbers) == 0
    near = CExecutor(toy_artifact, threads=1)
    plan = read_plan(toy_artifact)
    assert (vocabulary.value, levels.value) == (plan.vocabulary, plan.levels)
    logits = np.full(vocabulary.value, np.nan, np.float32)
    where = logits.ctypes.data_as(ctypes.c_void_p)
    ids = np.array([1, 2, 3], np.int32)
    given = ids.ctypes.data_as(ctypes.c_void_p), len(ids)
    assert shell.call("prefill", *given, where, len(logits)) == 0
    np.testing.assert_array_equal(logits, near.prefill(ids))
    for level in (levels.value - 1, 0):
        near.set_level(level)
        assert shell.call("decode", 2, level, where, len(logits)) == 0
        np.testing.assert_array_equal(logits, near.decode(2))
    size = ctypes.c_int32()
    assert shell.call("text", None, 0, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert shell.call("text", text, len(text), ctypes.byref(size)) == 0
    assert text.raw == near.text()
    assert shell.call("rewind", 1) == 0
    near.set_position(1)
    assert shell.call("decode", 3, 0, where, len(logits)) == 0
    np.testing.assert_array_equal(logits, near.decode(3))
    assert shell.call("decode", 3, 99, where, len(logits)) == 1
    assert "99" in shell.reason()
    assert shell.call("start", str(toy_artifact).encode(), 1, *numbers) == 1
    assert shell.reason() == "the session has been started"
    assert shell.call("decode", 3, 0, where, len(logits) - 1) == 1
    assert shell.reason() == "logits of a token are expected"


def test_what_has_not_begun_is_refused(shell: Shell, tmp_path: Path) -> None:
    room = ctypes.create_string_buffer(64)
    calls = {"prefill": (room, 1, room, 8), "decode": (1, 0, room, 8), "rewind": (0,)}
    calls["text"] = (room, 8, room)
    for name, arguments in calls.items():
        assert shell.call(name, *arguments) == 1
        assert shell.reason() == "start the session first"
    number = ctypes.byref(ctypes.c_int32())
    assert shell.call("start", str(tmp_path / "none").encode(), 1, number, number) == 1
    assert "none" in shell.reason()
