"""A driver for tests: artifacts for GPUs run under the emulator, in processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from morendo.targets.cuda.device_code import complete_source
from tests.cuda.emulated import HERE, emulate


class MockGPU:
    """A GPU that has the kernels of one artifact.

    Args:
        folder: for its libraries.
        dump: what `--dump-ir` wrote of the artifact's compilation.
    """

    def __init__(self, folder: Path, dump: Path) -> None:
        self.folder = folder
        command = ["gcc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC"]
        command += [str(HERE / "mock_driver.c"), "-o", str(folder / "libcuda.so.1"), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.kernels = emulate(
            [_body(path) for path in sorted(dump.rglob("*.cu"))], folder / "k.so"
        )

    def run(self, command: Sequence[object], **settings: object) -> subprocess.CompletedProcess:
        """Run a program that finds this driver; settings as mock_driver.c has them."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.folder),
            "MR_EMULATED_KERNELS": str(self.kernels),
            "MR_MOCK_LOG": str(log),
            **{f"MR_MOCK_{name}": str(value) for name, value in settings.items()},
        }
        return subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, check=False
        )

    def log(self) -> list[str]:
        """What the last run loaded, and the graphs that it launched."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


def _body(path: Path) -> str:
    """The kernels of a dumped source, without what stands before all of them."""
    source = path.read_text()
    header = complete_source("")
    return source[source.index(header) + len(header) :]
