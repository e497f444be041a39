"""Artifacts: written whole or not at all, verified, refused in one line when damaged."""

import errno
import json
import os
import shutil
import stat

import pytest
import toy

from morendo.ir.errors import ArtifactError
from morendo.runtime import artifact
from morendo.runtime.executor import CExecutor
from morendo.runtime.interpreter import PythonExecutor
from morendo.runtime.session import Session


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


def set_feature(path):
    target = {"name": "host", "triple": toy.toy_manifest()["target"]["triple"]}
    edit(path, target={**target, "features": ["warp_drive"]})


DAMAGES = [
    (lambda d: (d / "weights.bin").unlink(), "weights.bin is missing"),
    (lambda d: (d / "model.so").unlink(), "model.so is missing"),
    (lambda d: (d / "plan.json").unlink(), "plan.json is missing"),
    (lambda d: (d / "manifest.json").unlink(), "is no artifact .it has no manifest.json."),
    (lambda d: shutil.rmtree(d), "does not exist; make one with: morendo compile"),
    (lambda d: truncate(d / "weights.bin"), "weights.bin is damaged .got 739 bytes, need 740."),
    (lambda d: flip(d / "weights.bin"), "weights.bin is damaged .its checksum differs."),
    (lambda d: flip(d / "model.so", 5000), "model.so is damaged .its checksum differs."),
    (lambda d: truncate(d / "manifest.json", 40), "unreadable .Unterminated string"),
    (lambda d: (d / "manifest.json").write_text("[]"), "a manifest is a JSON object"),
    (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "unreadable"),
    (lambda d: edit(d / "manifest.json", version=1), "another version .got 1, need 2."),
    (lambda d: edit(d / "manifest.json", model=None), "model.name is missing or no str"),
    (lambda d: edit(d / "manifest.json", files=None), "files must name plan.json and model.so"),
    (
        lambda d: edit(d / "manifest.json", tokenizer={"stop": [], "add_bos": True}),
        "bos is missing",
    ),
    (
        lambda d: edit(
            d / "manifest.json", files={"plan.json": {}, "model.so": {}, "../../etc/passwd": {}}
        ),
        "bad entry",
    ),
    (lambda d: set_feature(d / "manifest.json"), "needs warp_drive, this CPU has not; compile on"),
    (
        lambda d: edit(
            d / "manifest.json",
            target={"name": "vax", "triple": "vax-netbsd", "features": []},
        ),
        "for another kind of machine .got .*, need vax.; compile it for",
    ),
]


@pytest.mark.parametrize(("damage", "match"), DAMAGES)
def test_damaged_artifacts_are_refused(toy_artifact, damage, match):
    damage(toy_artifact)
    with pytest.raises(ArtifactError, match=match) as caught:
        Session(toy_artifact)
    assert "\n" not in str(caught.value)


UNVERIFIED = [
    (lambda d: truncate(d / "weights.bin"), "weights.bin is damaged .got 739 bytes, need 740."),
    (lambda d: (d / "weights.bin").unlink(), "cannot read .*weights.bin: .*No such file"),
    (lambda d: (d / "plan.json").unlink(), "cannot read .*plan.json"),
    (lambda d: truncate(d / "plan.json", 9), "plan.json"),
    (lambda d: (d / "model.so").write_bytes(b"MZ"), "cannot load model.so .*too short"),
    (lambda d: (d / "model.so").unlink(), "cannot load model.so"),
]


@pytest.mark.parametrize("executor", [CExecutor, PythonExecutor])
@pytest.mark.parametrize(("damage", "match"), UNVERIFIED)
def test_executors_check_for_themselves(toy_artifact, damage, match, executor):
    damage(toy_artifact)
    with pytest.raises(ArtifactError, match=match) as caught:
        executor(toy_artifact)
    assert "\n" not in str(caught.value)


def test_checksums_can_be_skipped_but_not_sizes(toy_artifact):
    flip(toy_artifact / "weights.bin")
    Session(toy_artifact, verify=False).close()
    truncate(toy_artifact / "weights.bin")
    with pytest.raises(ArtifactError, match="got 739 bytes"):
        Session(toy_artifact, verify=False)


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


def test_features_are_compared_without_underscores(monkeypatch):
    monkeypatch.setattr(artifact, "_cpu_flags", lambda: {"avx512_vnni", "sse4_1"})
    manifest = toy.toy_manifest()
    manifest["target"]["features"] = ["avx512vnni", "+sse4.1"]
    artifact.check_host(manifest)
    manifest["target"]["features"] += ["avx512_bf16"]
    with pytest.raises(ArtifactError, match="needs avx512_bf16, this CPU has not"):
        artifact.check_host(manifest)
