"""Measuring an artifact on a text, at every precision level, against the float model.

What makes the figures comparable: the text is tokenized once with the artifact's tokenizer and cut
into windows that do not overlap; every variant sees the same windows, each from an empty cache;
the first token of a window is not scored, since nothing stands before it. The first tokens of each
window may be a prompt, which is not scored either: an artifact computes it as `run` does, and may
drop tokens on the way (`passes/prune_tokens.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import InputError
from morendo.progress import Advance, Progress
from morendo.runtime.session import Session, load

from .scores import Score, TokenScores, compare, cut_windows, summarize

if TYPE_CHECKING:
    from .reference import Reference

PRUNED = (
    "tokens of a prompt are dropped, which a score of all tokens does not see: give --prompt TOKENS"
)
FLOAT, ARTIFACT, WEIGHTS, KERNELS = "float", "artifact", "weights", "kernels"


@dataclass(frozen=True)
class Row:
    """The figures of one variant.

    Attributes:
        kind: "float" (the reference itself), "artifact", "weights" (the artifact's dequantized
            weights in torch against the float model: the error of quantization) or "kernels" (the
            artifact against those: the error of its kernels).
        level: precision level, None for "float".
        bytes_per_token: weights that a decode step reads; None in torch.
    """

    kind: str
    level: int | None
    score: Score
    bytes_per_token: int | None = None


@dataclass
class Report:
    """What `evaluate` measured.

    Attributes:
        artifact, reference: as they were given; reference "" when there was none.
        text_sha256: of the text's UTF-8 bytes.
        text_tokens: tokens of the whole text.
        window: tokens of a window.
        windows: how many were scored.
        prompt: tokens of each window that were a prompt.
        rows: float first, then by level.
        notes: what a reader of the figures should know.
    """

    artifact: str
    reference: str
    text_sha256: str
    text_tokens: int
    window: int
    windows: int
    prompt: int = 0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, perplexities included; null where one is infinite."""
        data = asdict(self)
        for row, plain in zip(self.rows, data["rows"], strict=True):
            value = row.score.perplexity
            plain["score"]["perplexity"] = value if math.isfinite(value) else None
        return data


def evaluate(
    artifact: str | Path,
    text: str,
    *,
    reference: str | Path | None = None,
    window: int = 512,
    windows: int | None = None,
    prompt: int = 0,
    levels: Sequence[int] | None = None,
    dequantized: bool = False,
    threads: int = 0,
    cached: bool = True,
    any_reference: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure an artifact on a text.

    Args:
        artifact: the directory.
        text: at least one window of it.
        reference: the float model, a Hugging Face directory, hub id or .gguf file; without it
            there is perplexity only.
        window: tokens that are seen at once.
        windows: most windows to score, from the start of the text; all by default.
        prompt: tokens of each window that are computed as a prompt is, and not scored.
        levels: precision levels; all by default.
        dequantized: also score the artifact's weights in torch. Needs the reference.
        threads: of the artifact; 0 means one for each CPU.
        cached: keep the reference's logits on disk (see `cache`).
        any_reference: accept another model than the one that was compiled, with a note.
        progress: shows what is going on; silent by default.

    Raises:
        InputError: for a text, option or reference that does not fit.
        ArtifactError: for a damaged artifact.
        MorendoError: when a model computes NaN or infinity.
    """
    progress = progress or Progress()
    if dequantized and reference is None:
        raise InputError("--dequantized needs a model's structure", hint="give --reference")
    if not 0 <= prompt < window:
        raise InputError(
            f"a window has no room behind the prompt (got {prompt} tokens, need 0 to {window - 1})",
            hint="take a smaller --prompt or a larger --window",
        )
    with load(artifact, threads) as session:
        if session.emulation:
            progress.note(f"note: {session.emulation}")
        chosen = choose_levels(session, levels)
        ids, batches = _windows(session, text, window, windows)
        measure = _Measurement(session, batches, prompt, progress)
        if reference is not None:
            measure.open_reference(reference, cached, dequantized, any_reference)
        rows = measure.run(chosen)
        return Report(
            artifact=str(artifact),
            reference=str(reference or ""),
            text_sha256=sha256(text.encode()).hexdigest(),
            text_tokens=ids,
            window=window,
            windows=len(batches),
            prompt=prompt,
            rows=rows,
            notes=measure.notes(),
        )


def choose_levels(session: Session, wanted: Sequence[int] | None) -> list[int]:
    """The precision levels that are wanted, in order; all of them for None.

    Raises:
        InputError: naming one that the artifact does not have.
    """
    count = session.plan.levels
    if wanted is None:
        return list(range(count))
    for level in wanted:
        if not 0 <= level < count:
            raise InputError(f"no such precision level (got {level}, need 0 to {count - 1})")
    return sorted(set(wanted))


def open_reference(
    session: Session, model: str | Path, cached: bool, any_reference: bool, progress: Progress
) -> tuple[Reference, list[str]]:
    """Open the float model and check that it is the one that was compiled; notes on it."""
    with progress.task("open the float model"):
        from .reference import Reference

        manifest = session.manifest
        context = manifest["model"].get("context", session.context)
        reference = Reference(model, cached, progress, context)
        note = reference.check(manifest, any_reference)
    return reference, [*reference.model.notes, *([note] if note else [])]


def _windows(
    session: Session, text: str, window: int, limit: int | None
) -> tuple[int, NDArray[np.int32]]:
    """(tokens of the text, windows int32 [windows, window])."""
    if window > session.context:
        raise InputError(
            f"the window is longer than the artifact's context "
            f"(got {window}, need at most {session.context})",
            hint="take a smaller --window",
        )
    facts = session.manifest["tokenizer"]
    bos = facts["bos"] if facts["add_bos"] else None
    ids = session.encode(text)[1 if facts["add_bos"] else 0 :]
    return len(ids), cut_windows(ids, window, limit, bos)


class _Measurement:
    """One run: variants by windows, so that no more than a few windows' logits are in memory."""

    def __init__(
        self, session: Session, windows: NDArray[np.int32], prompt: int, progress: Progress
    ) -> None:
        self.session, self.windows, self.progress = session, windows, progress
        self.prompt, self.first = prompt, max(prompt, 1)  # the first token that is scored
        self.reference: Any = None
        self.weights: Any = None
        self.remarks: list[str] = [PRUNED] if session.plan.pruned and not prompt else []
        self.found: dict[tuple[str, int | None], list[TokenScores]] = {}

    def open_reference(
        self, model: str | Path, cached: bool, dequantized: bool, any_reference: bool
    ) -> None:
        """Open the float model and check that it is the one that was compiled."""
        if dequantized:  # what is missing should be said before torch is imported
            from .dequantized import DequantizedWeights

            self.weights = DequantizedWeights(self.session.directory)
        opened = open_reference(self.session, model, cached, any_reference, self.progress)
        self.reference, notes = opened
        self.remarks += notes

    def run(self, levels: list[int]) -> list[Row]:
        """Rows of all variants, float first."""
        # A level's torch model is as large as the float model: then one level at a time.
        groups = [[level] for level in levels] if self.weights else [levels]
        variants = 2 if self.weights else 1
        steps = len(self.windows) * (len(levels) * variants + (self.reference is not None))
        with self.progress.task("score windows", steps) as advance:
            for number, group in enumerate(groups):
                self._score(group, first=number == 0, advance=advance)
        return list(self._rows())

    def notes(self) -> list[str]:
        """What went otherwise than expected."""
        cache = self.reference.cache if self.reference else None
        if cache is None or not cache.problem:
            return self.remarks
        return [
            *self.remarks,
            f"the float model's logits were not all kept on disk: {cache.problem}",
        ]

    def _score(self, levels: list[int], first: bool, advance: Advance) -> None:
        module = None
        if self.weights:
            module = self.reference.with_weights_of(self.weights, levels[0])
        rows = slice(self.first - 1, None)
        for ids in self.windows:
            want = self.reference.logits(ids)[rows] if self.reference else None
            if first and want is not None:
                scores = compare(want, ids[self.first :])
                self._add(FLOAT, None, scores)
                advance()
            for level in levels:
                self.session.set_level(level)
                got = self.session.logits(ids, self.prompt)[:-1]
                self._add(ARTIFACT, level, compare(got, ids[self.first :], want))
                advance()
                if module is not None:
                    self._score_weights(module, level, ids, got, want)
                    advance()

    def _score_weights(
        self, module: Any, level: int, ids: NDArray[np.int32], got: NDArray, want: NDArray | None
    ) -> None:
        from .reference import torch_logits

        exact, targets = torch_logits(module, ids)[self.first - 1 :], ids[self.first :]
        self._add(WEIGHTS, level, compare(exact, targets, want))
        self._add(KERNELS, level, compare(got, targets, exact))

    def _add(self, kind: str, level: int | None, scores: TokenScores) -> None:
        self.found.setdefault((kind, level), []).append(scores)

    def _rows(self) -> Iterator[Row]:
        order = (FLOAT, ARTIFACT, WEIGHTS, KERNELS)
        for kind, level in sorted(
            self.found, key=lambda key: (-1 if key[1] is None else key[1], order.index(key[0]))
        ):
            read = None
            if kind == ARTIFACT and level is not None:
                read = self.session.step_cost.level_bytes[level]
            yield Row(kind, level, summarize(self.found[kind, level]), read)
