"""Artifacts: the directory that compilation leaves and a device runs (docs/artifact_format.md).

It is written next to its final place and renamed when complete, so that there is never half of one.
It is checked when loaded, manifest first (runtime/verify.py), and nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from morendo.ir.errors import ArtifactError
from morendo.ir.plan import LIBRARY, Plan
from morendo.ir.schema import COUNT, mismatch

from .lock import locked

VERSION = 3
MANIFEST, PLAN, WEIGHTS = "manifest.json", "plan.json", "weights.bin"
TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
SCHEDULE = "schedule.json"  # which precision level computes which token, by `morendo tune`
WEIGHT_LIST = "weights.json"  # what is where in WEIGHTS, for tools; no device reads it
GRAPH = "graph.py"  # the IR that became PLAN, for tools; no device reads it
AGAIN = "compile or copy it again"  # the hint where a file is not what it should be
_MANIFEST = {
    "model": {"name": str, "architecture": str, "context?": COUNT, "digests?": {str: str}},
    "target": {
        "name": str,
        "triple": str,
        "machine": str,
        "cpu_flags": [str],
        "needs?": str,
        "emulator": str,
        "emulated_cpu?": str,
        "isa?": str,
        "layout?": {str: (int, bool)},
    },
    "tokenizer": {
        "stop": [int],
        "add_bos": bool,
        "bos?": (int, None),
        "eos?": (int, None),
        "vocabulary?": COUNT,
        "context?": COUNT,
        "special_tokens?": {str: str},
        "chat?": {"system": bool, "problem": str},
    },
    "generation?": {str: (int, float)},
    "options?": {str: (int, float, str, bool, None)},
    "passes?": [{"spec": str, "counts": {str: int}, "missed": {str: int}, "summary?": str}],
    "weights?": [
        {
            "part": str,
            "format": str,
            "pieces": COUNT,
            "weights": COUNT,
            "bytes": COUNT,
            "budgeted?": bool,
        }
    ],
    "files": {PLAN: object, LIBRARY: object},
}
_FILES = {str: {"bytes": COUNT, "sha256": str}}
_MATRIX = {
    "names": [str],
    "rows": [COUNT],
    "columns": COUNT,
    "format": str,
    "transposed": bool,
    "interleaved": bool,
    "order": (COUNT, None),
    "offsets": [COUNT],
    "nbytes": COUNT,
    "figures": [({str: (float, None)}, None)],
}
_WEIGHT_LIST = {
    "matrices": [_MATRIX],
    "vectors": [{"names": [str], "sizes": [COUNT], "offset": COUNT}],
}


class ArtifactWriter:
    """An artifact in the making: put files into `path`, then `finish` it with its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False

    def finish(
        self, manifest: dict[str, Any], known: Mapping[str, dict[str, Any]] | None = None
    ) -> None:
        """Add version, sizes and checksums of all files to `manifest` and write it.

        Args:
            manifest: what else it says.
            known: entries of files that come from another artifact and are not looked at again.
        """
        files = dict(known or {})
        for file in sorted(self.path.iterdir()):
            if file.name not in files:
                files[file.name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        complete = {"version": VERSION, **manifest, "files": files}
        check_manifest(complete)
        text = json.dumps(complete, indent=1, ensure_ascii=False)
        (self.path / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for file in [*self.path.iterdir(), self.path]:
            _fsync(file)
        self.finished = True


@contextmanager
def create_artifact(out: str | Path) -> Iterator[ArtifactWriter]:
    """Write the artifact `out`: it appears, or replaces the artifact there, when the block ends
    after `finish`; an error in the block leaves nothing behind.

    Raises ArtifactError at once if `out` is something else that must not be overwritten.
    """
    out = Path(out).absolute()
    _check_replaceable(out)
    made = _missing_parents(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        staging.chmod(0o777 & ~_umask())
    except OSError as error:
        _remove_empty(made)
        raise _write_error(error, out) from error
    _remove_abandoned(out, staging)
    try:
        with locked(staging):
            writer = ArtifactWriter(staging)
            yield writer
            if writer.finished:
                _move_into_place(staging, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _write_error(error, out) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(made)


def _remove_abandoned(out: Path, staging: Path) -> None:
    """Folders for `out` that a killed process left; others at work have theirs locked."""
    ours = re.compile(re.escape(f".{out.name}.") + r"\w{8}\.tmp")
    for folder in out.parent.iterdir():
        if folder != staging and ours.fullmatch(folder.name):
            with contextlib.suppress(OSError), locked(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The checked manifest of an artifact."""
    directory = Path(directory)
    if not directory.is_dir():
        what = "is a file, not an artifact" if directory.exists() else "does not exist"
        raise ArtifactError(f"{directory} {what}", hint="make one with: morendo compile")
    path = directory / MANIFEST
    if not path.exists():
        message = f"{directory} is no artifact (it has no {MANIFEST})"
        raise ArtifactError(message, hint="make one with: morendo compile")
    try:
        text = path.read_bytes()
    except OSError as error:
        message = f"unreadable ({error.strerror})"
        raise ArtifactError(message, where=str(path), hint=AGAIN) from None
    manifest = _parse_json(text, path)
    check_manifest(manifest, str(path))
    return manifest


def read_weight_list(directory: str | Path) -> dict[str, list[dict[str, Any]]]:
    """What `WEIGHT_LIST` says of the stored "matrices" and "vectors".

    Raises:
        ArtifactError: when the artifact was compiled without that list, or it is no such list.
    """
    path = Path(directory) / WEIGHT_LIST
    text = read_listed(Path(directory), WEIGHT_LIST)
    if text is None:
        raise ArtifactError(
            f"the artifact does not say where its weights are (it has no {WEIGHT_LIST})",
            where=str(directory),
            hint=AGAIN,
        )
    found = _parse_json(text, path)
    wrong = mismatch(found, _WEIGHT_LIST)
    if wrong:
        raise ArtifactError(f"malformed ({wrong})", where=str(path), hint=AGAIN)
    return found


def read_plan(directory: str | Path) -> Plan:
    """The checked plan of an artifact."""
    text = read_listed(Path(directory), PLAN)
    assert text is not None  # no manifest is without it
    return Plan.from_json(text)


def read_listed(directory: Path, name: str) -> bytes | None:
    """A file that was compared with the manifest; None if that does not list it."""
    entry = read_manifest(directory)["files"].get(name)
    if entry is None:
        return None
    try:
        content = (directory / name).read_bytes()
    except OSError as error:
        message = f"cannot read {name} ({error.strerror})"
        raise ArtifactError(message, where=str(directory), hint=AGAIN) from None
    if hashlib.sha256(content).hexdigest() != entry["sha256"].lower():
        message = f"{name} is damaged (its checksum differs)"
        raise ArtifactError(message, where=str(directory), hint=AGAIN)
    return content


def _parse_json(text: bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"unreadable ({error})", where=str(path), hint=AGAIN) from None


def check_manifest(manifest: Any, where: str = MANIFEST) -> None:
    """Raise ArtifactError unless `manifest` is one of this version."""
    if not isinstance(manifest, dict):
        raise ArtifactError("a manifest is a JSON object", where=where, hint=AGAIN)
    version = manifest.get("version")
    if version != VERSION:
        message = f"this artifact is of another version (got {version!r}, need {VERSION})"
        raise ArtifactError(message, where=where, hint=AGAIN)
    wrong = mismatch(manifest, _MANIFEST) or mismatch(manifest["files"], _FILES, "files")
    if not wrong and manifest["tokenizer"]["add_bos"] and manifest["tokenizer"].get("bos") is None:
        wrong = "tokenizer.bos is missing"
    if not wrong and not re.fullmatch(r"(qemu-\w+)?", manifest["target"]["emulator"]):
        wrong = f"target.emulator is none of qemu's (got {manifest['target']['emulator']!r})"
    for name, entry in manifest["files"].items() if not wrong else ():
        inside = name not in ("", ".", "..", MANIFEST) and "/" not in name and "\0" not in name
        if not inside or not re.fullmatch("[0-9a-fA-F]{64}", entry["sha256"]):
            wrong = f"bad entry {name!r} in files"
    if wrong:
        raise ArtifactError(wrong, where=where, hint=AGAIN)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check_replaceable(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    is_ours = out.is_dir() and ((out / MANIFEST).exists() or not any(out.iterdir()))
    if not is_ours:
        message = f"{out} exists and is no artifact, it will not be overwritten"
        raise ArtifactError(message, hint="choose another --out")


def _missing_parents(out: Path) -> list[Path]:
    """The directories that must be made for `out`, innermost first."""
    return list(itertools.takewhile(lambda parent: not parent.exists(), out.parents))


def _remove_empty(directories: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


def _move_into_place(staging: Path, out: Path) -> None:
    out = out.resolve()
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        out.rename(old)  # onto the empty directory just made
        staging.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(out)
    _fsync(out.parent)


def _write_error(error: OSError, out: Path) -> ArtifactError:
    hint = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        message = "cannot write the artifact (a file stands where a folder has to be)"
        return ArtifactError(message, where=str(out), hint="choose another --out")
    return ArtifactError(f"cannot write the artifact ({error.strerror})", where=str(out), hint=hint)
