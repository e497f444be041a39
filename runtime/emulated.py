"""An artifact for a machine of another kind, run by qemu's user mode.

The artifact's static executable does what `CExecutor` does in this process; runtime/c/run/serve.c
describes the conversation.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np

from morendo.ir.errors import ArtifactError, MorendoError
from morendo.ir.plan import EXECUTABLE
from morendo.runtime.arguments import as_int32
from morendo.runtime.executor import ERRORS, Ids, as_ids
from morendo.runtime.turns import Turns

PACKAGE = "qemu-user"
_WORD = struct.Struct("=2i")


def find_emulator(name: str, machine: str) -> str:
    """The path of an emulator.

    Raises:
        ArtifactError: when it is not installed, or there is none for the machine.
    """
    message = f"this artifact is for another kind of machine ({machine})"
    if not name:
        raise ArtifactError(message, hint="compile it for this machine: --target native")
    found = shutil.which(name)
    if found is None:
        raise ArtifactError(
            f"{message}, and {name}, which could run it here, is not installed",
            hint=f"install the system package {PACKAGE}, or compile with --target native",
        )
    return found


class EmulatedExecutor:
    """A session of the executable in `directory` under an emulator.

    Args:
        directory: the artifact.
        emulator: path of the program of qemu-user. It plays the CPU that the environment's
            QEMU_CPU names, by default one that has everything.
        threads: 0 means all CPUs.
    """

    def __init__(self, directory: Path, emulator: str, threads: int = 0) -> None:
        program = directory / EXECUTABLE
        if not program.exists():
            raise ArtifactError(
                f"the artifact has no executable for {Path(emulator).name} to run",
                where=str(directory),
                hint="compile the model again",
            )
        command = [emulator, str(program), "--serve", str(directory), str(threads)]
        self._turns = Turns()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"QEMU_CPU": "max", **os.environ},
            start_new_session=True,  # Ctrl-C is for Python, which then ends the executable
        )
        try:
            sizes = np.frombuffer(self._receive(), np.int32)
        except MorendoError:
            self.close()
            raise
        self.vocabulary, self.context, self.levels = map(int, sizes)
        self._position = 0

    @property
    def position(self) -> int:
        self._turns.check()
        return self._position

    def prefill(self, ids: Ids) -> np.ndarray:
        return self._append("p", as_ids(ids))

    def decode(self, token: int) -> np.ndarray:
        with self._turns.turn():
            logits = np.frombuffer(self._ask("d", as_int32("a token id", token)), np.float32)
            self._position += 1
            return logits

    def score(self, ids: Ids) -> np.ndarray:
        return self._append("s", as_ids(ids)).reshape(-1, self.vocabulary)

    def set_position(self, position: int) -> None:
        with self._turns.turn():
            self._ask("P", as_int32("position", position))
            self._position = position

    def set_level(self, level: int) -> None:
        with self._turns.turn():
            self._ask("L", as_int32("level", level))

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        numbers = np.asarray([as_int32("tensor", tensor), as_int32("window", window)], np.int32)
        with self._turns.turn():
            return np.frombuffer(self._ask("C", int(numbers[0]), numbers[1:].tobytes()))

    def cancel(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        self._turns.close(self.cancel, self._free)

    def _free(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()

    def _append(self, operation: str, ids: np.ndarray) -> np.ndarray:
        with self._turns.turn():
            logits = np.frombuffer(self._ask(operation, len(ids), ids.tobytes()), np.float32)
            self._position += len(ids)
            return logits

    def _ask(self, operation: str, number: int, data: bytes = b"") -> bytes:
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no reply either
            stream.write(_WORD.pack(ord(operation), number) + data)
            stream.flush()
        return self._receive()

    def _receive(self) -> bytes:
        try:
            code, count = _WORD.unpack(self._read(_WORD.size))
            data = self._read(count)
        except KeyboardInterrupt:  # in the middle of a reply: what follows would be misread
            self._process.kill()
            raise
        if code:
            raise ERRORS.get(code, MorendoError)(data.decode(errors="replace"))
        return data

    def _read(self, count: int) -> bytes:
        stream = self._process.stdout
        assert stream is not None
        data = stream.read(count)
        if len(data) != count:
            status = self._process.wait()
            raise MorendoError(
                f"the emulated model ended (exit status {status})",
                hint="its CPU may lack instructions: QEMU_CPU chooses another one",
            )
        return data
