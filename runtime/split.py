"""Two machines for one text: one reads prompts, the other goes on from what the first remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from morendo.ir.errors import ArtifactError, InputError, MorendoError
from morendo.runtime.artifact import GRAPH, WEIGHTS, read_manifest, read_plan
from morendo.runtime.executor import Executor, Ids
from morendo.runtime.make_executor import emulation_of, make_executor
from morendo.runtime.sampling import Sampler
from morendo.runtime.verify import check_files


class Remembering(Executor, Protocol):
    """An executor whose text another one can go on from."""

    def text(self) -> bytes:
        """What it remembers; see mr_text in runtime/c/morendo.h."""
        ...

    def set_text(self, text: bytes) -> None:
        """Remember what `text` gave instead."""
        ...


def split_executor(near: Any, manifest: dict[str, Any], far: Path, threads: int) -> SplitExecutor:
    """An executor whose prompts are read by the artifact `far`, all else by `near`.

    Args:
        near: of the artifact with `manifest`.
        threads: of `far`; 0: all CPUs.

    Raises:
        InputError: when `near` cannot go on from another's text, or the model drops tokens of it.
        ArtifactError: when the two do not compute the same model with the same weights.
    """
    try:
        if not hasattr(near, "set_text"):
            raise InputError("the reference executor reads its prompts itself")
        other = read_manifest(far)
        check_files(far, other)
        for name in (WEIGHTS, GRAPH):
            mine, its = (m["files"].get(name, {}).get("sha256") for m in (manifest, other))
            if mine != its:
                raise ArtifactError(
                    f"it cannot read prompts for another artifact (its {name} is not the same)",
                    where=str(far),
                    hint=f"compile the other one with --weights-of {far}",
                )
        if read_plan(far).pruned:
            raise InputError(
                "a model that drops tokens of prompts cannot hand its text over",
                where=str(far),
                hint="compile it without --prune-tokens, or leave --prefill-on out",
            )
        reader = _open_reader(far, other, threads)
    except BaseException:
        near.close()
        raise
    return SplitExecutor(near, reader, emulation_of(other))


def _open_reader(far: Path, manifest: dict[str, Any], threads: int) -> Any:
    """The executor of `far`; what it lacks is said of it and not of the artifact that answers."""
    try:
        return make_executor(far, manifest, threads=threads)
    except MorendoError as error:
        if error.where:
            raise
        raise type(error)(error.message, where=str(far), hint=error.hint) from None


class SplitExecutor:
    """`near`, whose prompts `reader` reads.

    Attributes:
        emulation: what a person should know where an emulator runs the reader, "" elsewhere.
    """

    def __init__(self, near: Remembering, reader: Remembering, emulation: str = "") -> None:
        self._near, self._reader, self.emulation = near, reader, emulation
        self.vocabulary, self.context = near.vocabulary, near.context
        self.levels = near.levels

    @property
    def position(self) -> int:
        return self._near.position

    def prefill(self, ids: Ids) -> np.ndarray:
        if self._near.position:
            self._reader.set_text(self._near.text())
        else:
            self._reader.set_position(0)
        logits = self._reader.prefill(ids)
        self._near.set_text(self._reader.text())
        return logits

    def decode(self, token: int) -> np.ndarray:
        return self._near.decode(token)

    def decode_next(self, token: int, sampler: Sampler) -> int:
        return self._near.decode_next(token, sampler)

    def score(self, ids: Ids) -> np.ndarray:
        return self._near.score(ids)

    def set_position(self, position: int) -> None:
        self._near.set_position(position)

    def set_level(self, level: int) -> None:
        self._near.set_level(level)
        self._reader.set_level(level)

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        return self._near.cache_means(tensor, window)

    def cancel(self) -> None:
        self._near.cancel()
        self._reader.cancel()

    def close(self) -> None:
        self._reader.close()
        self._near.close()
