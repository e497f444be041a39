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
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np

from morendo.ir.errors import ArtifactError, MorendoError
from morendo.ir.plan import EXECUTABLE
from morendo.runtime.arguments import as_int32
from morendo.runtime.executor import ERRORS, Ids, Trace, as_ids
from morendo.runtime.sampling import Sampler
from morendo.runtime.turns import Turns

PACKAGE = "qemu-user"
_WORD = struct.Struct("=2i")
_TEXT_HEAD = struct.Struct("=Qq")  # of a text: a digest, and how many tokens it has
_TRACED = -1  # a reply of serve.c that is not the last one
_PATIENCE_SECONDS = 0.2  # of a cancelled request


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


def check_cpu(emulator: str, cpu: str) -> None:
    """Refuse a CPU that the emulator does not know.

    Raises:
        ArtifactError: naming both.
    """
    command = [emulator, "-cpu", cpu, os.devnull]  # fails, but looks for the CPU before
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    if "CPU model" in said:
        raise ArtifactError(
            f"{Path(emulator).name} does not know the CPU to play (got {cpu})",
            hint=f"install a newer {PACKAGE}, compile for an older CPU, or set QEMU_CPU",
        )


class EmulatedExecutor:
    """A session of the executable in `directory` under an emulator.

    Args:
        directory: the artifact.
        emulator: path of the program of qemu-user. It plays the CPU that the environment's
            QEMU_CPU names, else `cpu`.
        threads: 0 means all CPUs.
        cpu: as qemu names it; "max" has everything.
    """

    def __init__(self, directory: Path, emulator: str, threads: int = 0, cpu: str = "max") -> None:
        program = directory / EXECUTABLE
        if not program.exists():
            raise ArtifactError(
                f"the artifact has no executable for {Path(emulator).name} to run",
                where=str(directory),
                hint="compile the model again",
            )
        cpu = os.environ.get("QEMU_CPU", cpu)
        check_cpu(emulator, cpu)
        command = [emulator, "-cpu", cpu, str(program), "--serve", str(directory), str(threads)]
        self._turns = Turns()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for Python, which then cancels what runs
        )
        self._position = 0
        self._trace: Trace | None = None
        # Signal handlers run in Python's main thread: in another one, none cuts a reply in two.
        self._speaker = ThreadPoolExecutor(1, "emulated model")
        try:
            sizes = np.frombuffer(self._result(self._speaker.submit(self._receive)), np.int32)
        except BaseException:
            self.close()
            raise
        self.vocabulary, self.context, self.levels = map(int, sizes)

    @property
    def position(self) -> int:
        self._turns.check()
        return self._position

    def prefill(self, ids: Ids) -> np.ndarray:
        return self._append("p", as_ids(ids))

    def decode(self, token: int) -> np.ndarray:
        with self._turns.turn():
            reply = self._ask("d", as_int32("a token id", token), tokens=1)
            return np.frombuffer(reply, np.float32)

    def decode_next(self, token: int, sampler: Sampler) -> int:
        return sampler(self.decode(token))

    def score(self, ids: Ids) -> np.ndarray:
        return self._append("s", as_ids(ids)).reshape(-1, self.vocabulary)

    def set_position(self, position: int) -> None:
        with self._turns.turn():
            self._ask("P", as_int32("position", position), tokens=position - self._position)

    def set_level(self, level: int) -> None:
        with self._turns.turn():
            self._ask("L", as_int32("level", level))

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        numbers = np.asarray([as_int32("tensor", tensor), as_int32("window", window)], np.int32)
        with self._turns.turn():
            return np.frombuffer(self._ask("C", int(numbers[0]), numbers[1:].tobytes()))

    def text(self) -> bytes:
        """What the session remembers, for `set_text` of another executor (mr_text)."""
        with self._turns.turn():
            return self._ask("G", 0)

    def set_text(self, text: bytes) -> None:
        """Remember what `text` gave instead."""
        with self._turns.turn():
            self._ask("R", len(text), text)
            self._position = _TEXT_HEAD.unpack_from(text)[1]

    def set_trace(self, trace: Trace) -> None:
        with self._turns.turn():
            self._trace = trace
            self._ask("T", 1)

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
        self._speaker.shutdown()

    def _append(self, operation: str, ids: np.ndarray) -> np.ndarray:
        with self._turns.turn():
            reply = self._ask(operation, len(ids), ids.tobytes(), tokens=len(ids))
            return np.frombuffer(reply, np.float32)

    def _ask(self, operation: str, number: int, data: bytes = b"", tokens: int = 0) -> bytes:
        """The reply to a request, which moves the position by `tokens` if it succeeds."""
        request = _WORD.pack(ord(operation), number) + data
        return self._result(self._speaker.submit(self._converse, request, tokens))

    def _converse(self, request: bytes, tokens: int) -> bytes:
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no reply either
            stream.write(request)
            stream.flush()
        reply = self._receive()
        self._position += tokens
        return reply

    def _result(self, reply: Future[bytes]) -> bytes:
        """What the other thread has received. When a signal handler raises something, such as
        Ctrl-C, the request is cancelled and its end awaited; the second time the model is ended.
        """
        try:
            wait([reply])
        except BaseException:
            try:
                self.cancel()
                while wait([reply], timeout=_PATIENCE_SECONDS).not_done:
                    self.cancel()  # the one before may have come before the request began
            except BaseException:
                self._process.kill()
                raise
            raise
        return reply.result()

    def _receive(self) -> bytes:
        code, count = _WORD.unpack(self._read(_WORD.size))
        data = self._read(count)
        while code == _TRACED:
            step, argument = _WORD.unpack(data[: _WORD.size])
            if self._trace:
                self._trace(step, argument, data[_WORD.size :])
            code, count = _WORD.unpack(self._read(_WORD.size))
            data = self._read(count)
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
