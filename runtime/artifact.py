"""Artifacts: the directory that compilation leaves and a device runs (docs/artifact_format.md).

It is written next to its final place and renamed when complete, so that there is never half of one.
It is verified when loaded, manifest first, and nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from morendo.ir.errors import ArtifactError
from morendo.ir.plan import Plan

from .lock import locked

VERSION = 2
MANIFEST, PLAN, WEIGHTS, LIBRARY = "manifest.json", "plan.json", "weights.bin", "model.so"
TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"
WEIGHT_LIST = "weights.json"  # what is where in WEIGHTS, for tools; no device reads it
# What a manifest must hold, and of which type; the optional rest is for people to read.
_NEEDED = {
    "model": {"name": str, "architecture": str},
    "target": {"name": str, "triple": str, "features": list},
    "tokenizer": {"stop": list, "add_bos": bool},
}


class ArtifactWriter:
    """An artifact in the making: put files into `path`, then `finish` it with its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished = False

    def finish(self, manifest: dict[str, Any]) -> None:
        """Add version, sizes and checksums of all files to `manifest` and write it."""
        files = {}
        for file in sorted(self.path.iterdir()):
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
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
        manifest = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise ArtifactError(f"unreadable ({error})", where=str(path), hint=_AGAIN) from None
    check_manifest(manifest, str(path))
    return manifest


def read_weight_list(directory: str | Path) -> dict[str, list[dict[str, Any]]]:
    """What `WEIGHT_LIST` says of the stored "matrices" and "vectors".

    Raises:
        ArtifactError: when the artifact was compiled without that list, or it is no such list.
    """
    path = Path(directory) / WEIGHT_LIST
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        read_manifest(directory)  # says so when this is no artifact at all
        raise ArtifactError(
            f"the artifact does not say where its weights are (it has no {WEIGHT_LIST})",
            where=str(directory),
            hint=_AGAIN,
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"unreadable ({error})", where=str(path), hint=_AGAIN) from None
    lists = [found.get(key) for key in ("matrices", "vectors")] if isinstance(found, dict) else []
    if not lists or not all(isinstance(entries, list) for entries in lists):
        raise ArtifactError("malformed (no lists)", where=str(path), hint=_AGAIN)
    return found


def read_plan(directory: str | Path) -> Plan:
    """The checked plan of an artifact."""
    try:
        text = (Path(directory) / PLAN).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"cannot read {PLAN} ({error.strerror})", where=str(directory)
        ) from None
    return Plan.from_json(text)


def check_manifest(manifest: Any, where: str = MANIFEST) -> None:
    """Raise ArtifactError unless `manifest` is one of this version."""
    if not isinstance(manifest, dict):
        raise ArtifactError("a manifest is a JSON object", where=where, hint=_AGAIN)
    version = manifest.get("version")
    if version != VERSION:
        message = f"this artifact is of another version (got {version!r}, need {VERSION})"
        raise ArtifactError(message, where=where, hint=_AGAIN)
    for section, fields in _NEEDED.items():
        content = manifest.get(section)
        for name, kind in fields.items():
            if not isinstance(content, dict) or not isinstance(content.get(name), kind):
                message = f"{section}.{name} is missing or no {kind.__name__}"
                raise ArtifactError(message, where=where, hint=_AGAIN)
    if manifest["tokenizer"]["add_bos"] and not isinstance(manifest["tokenizer"].get("bos"), int):
        raise ArtifactError("tokenizer.bos is missing", where=where, hint=_AGAIN)
    _check_files(manifest.get("files"), where)


def check_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise ArtifactError if a file is missing or truncated."""
    for name, entry in manifest["files"].items():
        try:
            size = (directory / name).stat().st_size
        except OSError:
            message = f"{name} is missing"
            raise ArtifactError(message, where=str(directory), hint=_AGAIN) from None
        if size != entry["bytes"]:
            message = f"{name} is damaged (got {size} bytes, need {entry['bytes']})"
            raise ArtifactError(message, where=str(directory), hint=_AGAIN)


def start_verification(directory: Path, manifest: dict[str, Any]) -> Callable[[], None]:
    """Compare checksums in a thread; call the result to wait for the verdict."""
    failures: list[Exception] = []
    thread = threading.Thread(target=_verify, args=(directory, manifest, failures), daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if failures:
            raise failures[0]

    return wait


def check_host(manifest: dict[str, Any]) -> None:
    """Raise ArtifactError if this machine cannot run the artifact's code."""
    target = manifest["target"]
    need, got = target["triple"].split("-")[0], platform.machine()
    if need != got:
        message = f"this artifact is for another kind of machine (got {got}, need {need})"
        raise ArtifactError(message, hint="compile it for a --target of this machine")
    have = {_plain(flag) for flag in _cpu_flags()}
    missing = [name for name in target["features"] if _plain(name) not in have]
    if missing and have:
        message = f"artifact needs {', '.join(missing)}, this CPU has not"
        raise ArtifactError(message, hint="compile on this machine or with an older --target")


_AGAIN = "compile or copy it again"


def _check_files(files: Any, where: str) -> None:
    good = isinstance(files, dict) and {PLAN, LIBRARY} <= set(files)
    if not good:
        raise ArtifactError(f"files must name {PLAN} and {LIBRARY}", where=where, hint=_AGAIN)
    for name, entry in files.items():
        inside = name not in ("", ".", "..") and "/" not in name and "\0" not in name
        described = (
            isinstance(entry, dict)
            and isinstance(entry.get("bytes"), int)
            and isinstance(entry.get("sha256"), str)
        )
        if not inside or not described:
            raise ArtifactError(f"bad entry {name!r} in files", where=where, hint=_AGAIN)


def _verify(directory: Path, manifest: dict[str, Any], failures: list[Exception]) -> None:
    for name, entry in manifest["files"].items():
        try:
            digest = _sha256(directory / name)
        except OSError as error:
            message = f"cannot read {name} ({error.strerror})"
            failures.append(ArtifactError(message, where=str(directory)))
            return
        if digest != entry["sha256"]:
            message = f"{name} is damaged (its checksum differs)"
            failures.append(ArtifactError(message, where=str(directory), hint=_AGAIN))
            return


def _sha256(path: Path) -> str:
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
    return ArtifactError(f"cannot write the artifact ({error.strerror})", where=str(out), hint=hint)


def _cpu_flags() -> set[str]:
    """What /proc/cpuinfo says the CPU can do; empty if it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _plain(feature: str) -> str:
    """Features are spelled as /proc/cpuinfo does, but with or without underscores and dots."""
    return feature.lstrip("+").replace("_", "").replace(".", "")
