"""Which executor runs an artifact on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError
from morendo.runtime.executor import CExecutor, Executor
from morendo.runtime.verify import runs_here


def emulator_of(manifest: dict[str, Any]) -> str:
    """The program that runs an artifact for another kind of machine, "" when none is needed.

    Raises:
        ArtifactError: when it is not installed.
    """
    if runs_here(manifest):
        return ""
    from morendo.runtime.emulated import find_emulator

    target = manifest["target"]
    return find_emulator(target["emulator"], target["machine"])


def emulation_of(manifest: dict[str, Any]) -> str:
    """What a person should know where an emulator runs an artifact, "" elsewhere."""
    emulator = emulator_of(manifest)
    if not emulator:
        return ""
    machine = manifest["target"]["machine"]
    return f"the artifact is for {machine}, {Path(emulator).name} runs it here, slowly"


def make_executor(
    directory: Path, manifest: dict[str, Any], kind: str = "c", threads: int = 0
) -> Executor:
    """What runs the artifact in `directory`, whose manifest is checked.

    Args:
        kind: "c", or "python" for the reference executor.
        threads: 0: all CPUs.

    Raises:
        InputError: for an unknown kind, and for "python" where an emulator is needed.
        ArtifactError: when the artifact cannot be loaded.
    """
    emulator = emulator_of(manifest)
    if kind == "c" and not emulator:
        return CExecutor(directory, threads)
    if kind == "c":
        from morendo.runtime.emulated import EmulatedExecutor

        cpu = manifest["target"].get("emulated_cpu", "max")
        return EmulatedExecutor(directory, emulator, threads, cpu)
    if kind == "python" and emulator:
        raise InputError(
            "the reference executor needs an artifact for this kind of machine "
            f"(got {manifest['target']['machine']})",
            hint="use the C runtime, or compile with --target native",
        )
    if kind == "python":
        from morendo.runtime.interpreter import PythonExecutor

        return PythonExecutor(directory, threads)
    raise InputError(f"unknown executor (got {kind!r}, need 'c' or 'python')")
