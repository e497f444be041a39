"""Temporary files: a full disk ends in one line, and leaves nothing."""

import tempfile

import pytest

from morendo.codegen.cpu.kernels.token_rows import copy_last_token
from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.codegen.scratch import scratch_folder, write_scratch
from morendo.ir.errors import CompileError
from morendo.targets import find_target


@pytest.mark.parametrize("full", [False, True])
def test_object_files_are_written_by_us(tmp_path, full):
    """LLVM itself would end the process."""
    target = find_target("native")
    function = copy_last_token(target.isa, max_tokens=4, features=64)
    name = function.attrs["global_symbol"]
    if not full:
        (path,) = compile_kernels({name: function}, target.llvm, tmp_path)
        assert path.read_bytes()[:4] == b"\x7fELF"
        return
    (tmp_path / f"{name}.o").symlink_to("/dev/full")
    match = r"temporary files cannot be written \(No space left on device\) at .*; .*set TMPDIR"
    with pytest.raises(CompileError, match=match):
        compile_kernels({name: function}, target.llvm, tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    match = r"temporary files cannot be written \(No such file or directory\) at .*gone; "
    with pytest.raises(CompileError, match=match), scratch_folder():
        pytest.fail("there is no such folder")


def test_the_folder_goes_with_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError), scratch_folder() as folder:
        write_scratch(folder / "a", b"1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
