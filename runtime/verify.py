"""Whether the files of an artifact are those that its manifest lists, and fit this machine.

Opening an artifact compares the sizes of all files and the checksums of those that it reads whole;
weights are mapped, and hashing them would read every byte. `verify` does the rest.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Any

from morendo.ir.errors import ArtifactError
from morendo.runtime.artifact import (
    AGAIN,
    CHAT_TEMPLATE,
    LIBRARY,
    MANIFEST,
    PLAN,
    TOKENIZER,
    WEIGHT_LIST,
    WEIGHTS,
    file_digest,
    read_manifest,
)

_USED = (PLAN, WEIGHTS, LIBRARY, TOKENIZER, CHAT_TEMPLATE, WEIGHT_LIST)
_READ_WHOLE = (PLAN, LIBRARY, TOKENIZER, CHAT_TEMPLATE)  # by a session, before its first token


def check_files(directory: Path, manifest: dict[str, Any]) -> None:
    """Raise ArtifactError if a listed file is missing or of another size, or one that would be used
    is not listed.
    """
    for name, entry in manifest["files"].items():
        try:
            status = (directory / name).stat()
        except OSError:
            raise _error(directory, f"{name} is missing") from None
        if not S_ISREG(status.st_mode):
            raise _error(directory, f"{name} is not a file")
        if status.st_size != entry["bytes"]:
            message = f"{name} is damaged (got {status.st_size} bytes, need {entry['bytes']})"
            raise _error(directory, message)
    for name in _USED:
        if name not in manifest["files"] and (directory / name).exists():
            raise _error(directory, f"{name} is there, but {MANIFEST} does not list it")


def start_verification(
    directory: Path, manifest: dict[str, Any], whole: bool = False
) -> Callable[[], None]:
    """Compare checksums in a thread; call the result to wait for the verdict.

    Args:
        whole: of all files, not only of those that a session reads whole.
    """
    names = [name for name in manifest["files"] if whole or name in _READ_WHOLE]
    failures: list[Exception] = []

    def work() -> None:
        try:
            check_digests(directory, manifest, names)
        except ArtifactError as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if failures:
            raise failures[0]

    return wait


def check_digests(
    directory: Path,
    manifest: dict[str, Any],
    names: Iterable[str],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Raise ArtifactError if a file has another checksum than the manifest says.

    Args:
        advance: called after each file, for progress.
    """
    for name in names:
        try:
            digest = file_digest(directory / name)
        except OSError as error:
            raise _error(directory, f"cannot read {name} ({error.strerror})") from None
        if digest != manifest["files"][name]["sha256"].lower():
            raise _error(directory, f"{name} is damaged (its checksum differs)")
        advance()


def verify(directory: str | Path, advance: Callable[[], None] = lambda: None) -> str:
    """Compare every file with the manifest; the SHA-256 of the manifest, which has all the others.

    Raises:
        ArtifactError: when a file is missing, damaged, or used without being listed.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    digest = file_digest(directory / MANIFEST)
    check_files(directory, manifest)
    check_digests(directory, manifest, manifest["files"], advance)
    return digest


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


def _error(directory: Path, message: str) -> ArtifactError:
    return ArtifactError(message, where=str(directory), hint=AGAIN)


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
