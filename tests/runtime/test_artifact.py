"""Artifacts: written whole or not at all, verified, refused in one line when damaged."""

import _ctypes
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest
import toy

from morendo.cli import entry as cli
from morendo.ir.errors import ArtifactError
from morendo.runtime import artifact
from morendo.runtime import verify as verification
from morendo.runtime.executor import CExecutor
from morendo.runtime.interpreter import PythonExecutor
from morendo.runtime.session import Session
from morendo.runtime.verify import verify
from tests.relist import relist


def truncate(path, count=1):
    path.write_bytes(path.read_bytes()[:-count])


def flip(path, place=10):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def edit(path, **changes):
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del manifest[key]
        else:
            manifest[key] = value
    path.write_text(json.dumps(manifest))


def list_also(directory, name, **entry):
    manifest = json.loads((directory / "manifest.json").read_text())
    files = manifest["files"] | {name: {"bytes": 0, "sha256": "0" * 64, **entry}}
    edit(directory / "manifest.json", files=files)


def set_target(path, **changes):
    edit(path, target=toy.toy_manifest()["target"] | changes)


DAMAGES = [
    (lambda d: (d / "weights.bin").unlink(), "weights.bin is missing"),
    (lambda d: (d / "model.so").unlink(), "model.so is missing"),
    (lambda d: (d / "plan.json").unlink(), "plan.json is missing"),
    (lambda d: (d / "manifest.json").unlink(), "is no artifact .it has no manifest.json."),
    (lambda d: shutil.rmtree(d), "does not exist; make one with: morendo compile"),
    (lambda d: truncate(d / "weights.bin"), "weights.bin is damaged .got 1507 bytes, need 1508."),
    (lambda d: flip(d / "plan.json"), "plan.json is damaged .its checksum differs."),
    (lambda d: flip(d / "model.so", 5000), "model.so is damaged .its checksum differs."),
    (lambda d: truncate(d / "manifest.json", 40), "unreadable .Unterminated string"),
    (lambda d: (d / "manifest.json").write_text("[]"), "a manifest is a JSON object"),
    (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "unreadable"),
    (lambda d: edit(d / "manifest.json", version=1), "another version .got 1, need 3."),
    (lambda d: edit(d / "manifest.json", model=None), "model is missing"),
    (lambda d: edit(d / "manifest.json", files=None), "files is missing"),
    (
        lambda d: edit(d / "manifest.json", tokenizer={"stop": [], "add_bos": True}),
        "bos is missing",
    ),
    (lambda d: edit(d / "manifest.json", files={}), "files.plan.json is missing"),
    (lambda d: list_also(d, "../../etc/passwd"), "bad entry '../../etc/passwd' in files"),
    (lambda d: list_also(d, "x", sha256="12"), "bad entry 'x' in files"),
    (lambda d: list_also(d, "x", bytes=2**70), "files.x.bytes must be a count .got 11805916"),
    (lambda d: list_also(d, "x", bytes=True), "files.x.bytes must be a count .got True."),
    (lambda d: list_also(d, "extra"), "extra is missing"),
    (lambda d: (list_also(d, "extra", bytes=4096), (d / "extra").mkdir()), "extra is not a file"),
    (
        lambda d: (d / "chat_template.jinja").touch(),
        "chat_template.jinja is there, but manifest.json does not list it",
    ),
    (
        lambda d: edit(d / "manifest.json", passes=[{"spec": 1, "counts": {}, "missed": {}}]),
        r"passes\[0\].spec must be text .got 1.",
    ),
    (lambda d: edit(d / "manifest.json", options=[]), r"options must be an object .got \[\]."),
    (
        lambda d: edit(d / "manifest.json", options={"chunk": []}),
        "options.chunk must be an integer or a number or text or true or false or null",
    ),
    (
        lambda d: edit(d / "manifest.json", tokenizer={"stop": [1.5], "add_bos": False}),
        r"tokenizer.stop\[0\] must be an integer .got 1.5.",
    ),
    (lambda d: (d / "manifest.json").write_text("[" * 100_000), "unreadable"),
    (
        lambda d: set_target(d / "manifest.json", machine="vax"),
        "for another kind of machine .vax.; compile it for this machine",
    ),
    (
        lambda d: set_target(d / "manifest.json", machine="vax", emulator="qemu-vax"),
        "qemu-vax, which could run it here, is not installed; install the system package qemu-user",
    ),
    (
        lambda d: set_target(d / "manifest.json", machine="vax", emulator="/bin/sh"),
        "target.emulator is none of qemu's .got '/bin/sh'.",
    ),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGES)
def test_damaged_artifacts_are_refused(toy_artifact, damage, match):
    damage(toy_artifact)
    with pytest.raises(ArtifactError, match=match) as caught:
        Session(toy_artifact)
    assert "\n" not in str(caught.value)


def set_tokenizer(directory, **changes):
    edit(directory / "manifest.json", tokenizer=toy.toy_manifest()["tokenizer"] | changes)


@pytest.mark.parametrize("read", [Session, verify], ids=["load", "verify"])
@pytest.mark.parametrize(("name", "need"), [("context", toy.CONTEXT), ("vocabulary", 37)])
def test_the_manifest_tells_the_numbers_of_the_plan(toy_artifact, name, need, read):
    set_tokenizer(toy_artifact, **{name: need})
    getattr(read(toy_artifact), "close", lambda: None)()
    set_tokenizer(toy_artifact, **{name: 5120000000000})
    match = rf"differ in tokenizer.{name} .got 5120000000000, need {need}.*; compile or copy"
    with pytest.raises(ArtifactError, match=match):
        read(toy_artifact)


def test_verify_names_files_that_the_manifest_does_not_list(toy_artifact, capsys):
    (toy_artifact / "junk\x1b.txt").touch()
    assert cli.main(["verify", str(toy_artifact), "-q"]) == 0
    said = capsys.readouterr().err
    assert said == "note: junk\\x1b.txt is not listed and not part of the digest\n"


UNVERIFIED = [
    (lambda d: truncate(d / "weights.bin"), "weights.bin is damaged .got 1507 bytes, need 1508."),
    (lambda d: (d / "weights.bin").unlink(), "cannot read .*weights.bin: .*No such file"),
    (lambda d: (d / "plan.json").unlink(), "cannot read .*plan.json"),
    (lambda d: truncate(d / "plan.json", 9), "plan.json"),
    (lambda d: (d / "model.so").write_bytes(b"MZ"), "cannot load model.so .*too short"),
    (lambda d: (d / "model.so").unlink(), "cannot load model.so"),
    (
        lambda d: shutil.copy(_ctypes.__file__, d / "model.so"),
        "model.so is of an older version of morendo .it has no mr_check_cpu.* compile it again",
    ),
]


@pytest.mark.parametrize("executor", [CExecutor, PythonExecutor])
@pytest.mark.parametrize(("damage", "match"), UNVERIFIED)
def test_executors_check_for_themselves(toy_artifact, damage, match, executor):
    damage(toy_artifact)
    with pytest.raises(ArtifactError, match=match) as caught:
        executor(toy_artifact)
    assert "\n" not in str(caught.value)


def test_weights_are_hashed_only_on_demand(toy_artifact, monkeypatch):
    Session(toy_artifact, verify=True).close()
    flip(toy_artifact / "weights.bin")
    match = "weights.bin is damaged .its checksum differs."
    with pytest.raises(ArtifactError, match=match):
        Session(toy_artifact, verify=True)
    with pytest.raises(ArtifactError, match=match):
        verify(toy_artifact)
    hashed = []
    monkeypatch.setattr(
        verification, "file_digest", lambda p: hashed.append(p.name) or artifact.file_digest(p)
    )
    Session(toy_artifact).close()
    assert sorted(hashed) == ["model.so", "plan.json"]


def test_the_digest_stands_for_every_byte(toy_artifact):
    digest = verify(toy_artifact)
    assert digest == hashlib.sha256((toy_artifact / "manifest.json").read_bytes()).hexdigest()
    for file in sorted(toy_artifact.iterdir()):
        content = file.read_bytes()
        flip(file, len(content) // 2)
        try:
            assert verify(toy_artifact) != digest
        except ArtifactError:
            pass  # as it must be for all but the manifest
        else:
            assert file.name == "manifest.json"
        file.write_bytes(content)
    assert verify(toy_artifact) == digest


def test_verify_command(toy_artifact, capsys):
    assert cli.main(["verify", str(toy_artifact)]) == 0
    said = capsys.readouterr()
    digest = said.out.strip()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert "3 files, " in said.err
    assert cli.main(["verify", str(toy_artifact), "--sha256", digest.upper(), "-q"]) == 0
    assert capsys.readouterr() == (digest + "\n", "")
    other = "0" * 64
    assert cli.main(["verify", str(toy_artifact), "--sha256", other]) == 1
    assert f"this is another artifact (got {digest}, need {other})" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["verify", str(toy_artifact), "--sha256", "12"])
    assert "a SHA-256 has 64 hexadecimal digits" in capsys.readouterr().err
    flip(toy_artifact / "weights.bin")
    assert cli.main(["verify", str(toy_artifact), "--sha256", digest]) == 1
    assert "weights.bin is damaged" in capsys.readouterr().err


def test_damage_that_the_manifest_agrees_with(toy_artifact):
    plan = toy_artifact / "plan.json"
    plan.write_text(plan.read_text().replace('"levels":3', '"levels":2'))
    relist(toy_artifact)
    with pytest.raises(ArtifactError, match=r"plan.json"):
        Session(toy_artifact)


def test_a_file_is_no_artifact(tmp_path):
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(ArtifactError, match="model.gguf is a file, not an artifact"):
        Session(tmp_path / "model.gguf")


def fail_after_a_file(out):
    with artifact.create_artifact(out) as writer:
        (writer.path / "weights.bin").write_bytes(b"1234")
        raise ZeroDivisionError


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_after_a_file(tmp_path / "deep" / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path):
    left = tmp_path / ".a.x1y2z3w4.tmp"
    others = [tmp_path / ".b.x1y2z3w4.tmp", tmp_path / ".a.notes.tmp"]
    for folder in (left, *others):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"")
    with artifact.create_artifact(tmp_path / "a") as first:
        assert not left.exists()
        with artifact.create_artifact(tmp_path / "a"):
            assert first.path.exists()  # at work, so not abandoned
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_without_finish_nothing_appears(tmp_path):
    with artifact.create_artifact(tmp_path / "a") as writer:
        (writer.path / "weights.bin").write_bytes(b"1234")
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced(toy_artifact, toy_library):
    (toy_artifact / "old").write_text("left over")
    toy.write_toy(toy_artifact, toy_library, toy.toy_manifest())
    assert not (toy_artifact / "old").exists()
    assert [path.name for path in toy_artifact.parent.iterdir()] == ["toy"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(toy_artifact.stat().st_mode) == 0o777 & ~umask
    Session(toy_artifact).close()


def test_a_failed_replacement_keeps_the_old_one(toy_artifact):
    with pytest.raises(ZeroDivisionError), artifact.create_artifact(toy_artifact):
        raise ZeroDivisionError
    Session(toy_artifact).close()


def test_an_empty_directory_and_a_link_are_filled(tmp_path, toy_library):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    toy.write_toy(tmp_path / "link", toy_library, toy.toy_manifest())
    assert (tmp_path / "link").is_symlink()
    Session(tmp_path / "empty").close()


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_other_things_are_not_overwritten(tmp_path, kind):
    out = tmp_path / "precious"
    if kind == "file":
        out.write_text("thesis")
    elif kind == "directory":
        out.mkdir()
        (out / "thesis").touch()
    else:
        out.symlink_to("nowhere")
    match = "exists and is no artifact, it will not be overwritten; choose another --out"
    with pytest.raises(ArtifactError, match=match), artifact.create_artifact(out):
        pytest.fail("must be refused before the work begins")


def test_a_file_where_a_folder_has_to_be(tmp_path):
    (tmp_path / "file").touch()
    match = "a file stands where a folder has to be.*choose another --out"
    with (
        pytest.raises(ArtifactError, match=match),
        artifact.create_artifact(tmp_path / "file" / "a"),
    ):
        pytest.fail("must be refused before the work begins")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk(tmp_path, number):
    with (
        pytest.raises(ArtifactError, match="cannot write the artifact .*; free some space"),
        artifact.create_artifact(tmp_path / "a"),
    ):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place():
    with (
        pytest.raises(ArtifactError, match="cannot write the artifact"),
        artifact.create_artifact("/proc/nothing/here"),
    ):
        pytest.fail("must be refused before the work begins")


@pytest.mark.parametrize("executor", [CExecutor, PythonExecutor])
def test_a_cpu_that_lacks_instructions_is_named(tmp_path, executor):
    """Not by the manifest: the library itself knows what its code needs."""
    check = tmp_path / "cpu.c"
    check.write_text("int cpu_has(const char *flag) { return flag[0] != 'w'; }")
    toolchain = dataclasses.replace(toy.TOOLCHAIN, cpu_check=check)
    library = tmp_path / "model.so"
    toy.link_toy(library, None, toolchain, ["fma", "warp_drive"])
    toy.write_toy(tmp_path / "toy", library, toy.toy_manifest())
    with pytest.raises(ArtifactError, match="needs a CPU with warp_drive, which this one has not"):
        executor(tmp_path / "toy")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_of_a_file_are_shown_harmlessly_on_any_terminal(toy_artifact, encoding):
    hostile = {"name": "\x1b[31mred \N{GRINNING FACE}", "architecture": "a\rb"}
    edit(toy_artifact / "manifest.json", model=hostile, weights=[], passes=[])
    done = subprocess.run(
        [sys.executable, "-m", "morendo", "inspect", str(toy_artifact)],
        env={**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C"},
        capture_output=True,
        check=True,
    )
    assert b"\\x1b[31mred \\U0001f600 (a\\rb)" in done.stdout
