"""Whether the files of an artifact are those that its manifest lists, and for this machine.

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
from morendo.ir.plan import EXECUTABLE, LIBRARY, TOKENIZER_TABLES
from morendo.runtime.artifact import (
    AGAIN,
    CHAT_TEMPLATE,
    MANIFEST,
    PLAN,
    SCHEDULE,
    TOKENIZER,
    WEIGHT_LIST,
    WEIGHTS,
    file_digest,
    read_manifest,
    read_plan,
)

_USED = (
    PLAN,
    WEIGHTS,
    LIBRARY,
    EXECUTABLE,
    TOKENIZER,
    TOKENIZER_TABLES,
    CHAT_TEMPLATE,
    WEIGHT_LIST,
    SCHEDULE,
)
_READ_WHOLE = (
    PLAN,
    LIBRARY,
    EXECUTABLE,
    TOKENIZER,
    CHAT_TEMPLATE,
    SCHEDULE,
)  # by a session, before its first token


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


def check_sizes(
    directory: Path, manifest: dict[str, Any], *, vocabulary: int, context: int
) -> None:
    """Raise ArtifactError if the manifest tells other numbers of tokens than the plan has."""
    for name, need in (("vocabulary", vocabulary), ("context", context)):
        got = manifest["tokenizer"].get(name, need)
        if got != need:
            message = f"{MANIFEST} and {PLAN} differ in tokenizer.{name} (got {got}, need {need})"
            raise _error(directory, message)


def unlisted_files(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """Names in the artifact's directory that its manifest does not list; sorted."""
    known = {MANIFEST, *manifest["files"]}
    return sorted(entry.name for entry in directory.iterdir() if entry.name not in known)


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
        ArtifactError: when a file is missing, damaged, or used without being listed, or manifest
            and plan differ.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    digest = file_digest(directory / MANIFEST)
    check_files(directory, manifest)
    check_digests(directory, manifest, manifest["files"], advance)
    plan = read_plan(directory)
    check_sizes(directory, manifest, vocabulary=plan.vocabulary, context=plan.context)
    return digest


def runs_here(manifest: dict[str, Any]) -> bool:
    """Whether the artifact's code is for this kind of machine.

    Whether this CPU has all instructions is for the C runtime to say, when the artifact is opened.
    """
    return manifest["target"]["machine"] == platform.machine()


def _error(directory: Path, message: str) -> ArtifactError:
    return ArtifactError(message, where=str(directory), hint=AGAIN)
