"""Sessions: text or token ids in, logits or text out, from an artifact."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np

from morendo.ir.errors import ArtifactError, Cancelled, InputError
from morendo.ir.plan import Plan
from morendo.runtime.arguments import as_int32, as_integer, as_path
from morendo.runtime.artifact import read_manifest, read_plan
from morendo.runtime.executor import Ids, as_ids
from morendo.runtime.make_executor import emulation_of, make_executor
from morendo.runtime.sampling import Sampler, SamplingSettings
from morendo.runtime.schedule import Levels, Schedule, find_schedule
from morendo.runtime.split import SplitExecutor, split_executor
from morendo.runtime.stats import Stats
from morendo.runtime.step_cost import StepCost
from morendo.runtime.stop_texts import before_text, cut_before, split_stop
from morendo.runtime.tokenizer import Message, Tokenizer
from morendo.runtime.turns import require_process
from morendo.runtime.verify import check_files, check_sizes, start_verification

T = TypeVar("T")


class Session:
    """A model opened from an artifact; `close` it or use `with`.

    It has one KV cache and so follows one text: a new `generate` or `logits` ends a generation
    that is still running, which then raises InputError. Open a session for each text at a time.
    Calls of several threads wait for each other; `cancel` ends what runs. A session belongs to the
    process that opened it: in a fork, which has none of its threads, every call raises InputError.

    Args:
        directory: the artifact.
        threads: 0 means one for each CPU that this process may use.
        executor: "c" is the fast one, "python" the reference that can be traced (`.executor`).
        verify: compare the weights with their checksum too, not only with their size.
        prefill_on: an artifact that reads prompts in this one's place: that whose weights this one
            was compiled with, or the other way round.

    Attributes:
        sampling: the model's own settings, from its generation configuration; greedy without one.
        emulation: what a person should know where an emulator runs the model, "" elsewhere.
    """

    def __init__(
        self,
        directory: str | Path,
        threads: int = 0,
        executor: Literal["c", "python"] = "c",
        verify: bool = False,
        prefill_on: str | Path | None = None,
    ) -> None:
        start = time.perf_counter()
        self.directory, threads = as_path(directory), as_int32("threads", threads)
        self.manifest = read_manifest(self.directory)
        self.emulation = emulation_of(self.manifest)
        check_files(self.directory, self.manifest)
        wait = start_verification(self.directory, self.manifest, whole=verify)
        self.tokenizer = Tokenizer(self.directory, self.manifest["tokenizer"])
        wait()
        self.executor = make_executor(self.directory, self.manifest, executor, threads)
        if prefill_on is not None:
            self.executor = split_executor(
                self.executor, self.manifest, as_path(prefill_on), threads
            )
        self.vocabulary = self.executor.vocabulary
        self.context = self.executor.context
        self._check_sizes()
        self.sampling = _own_sampling(self.manifest, self.directory)
        self._level = self._used_level = 0
        self._lock, self._turn, self._cancelled = threading.Lock(), 0, 0
        self._process = os.getpid()
        self._stats = Stats(load_seconds=time.perf_counter() - start)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what runs, wait for it, give back memory and threads. Later calls, and those that
        wait in other threads, raise InputError.
        """
        self.executor.close()

    def cancel(self) -> None:
        """End what runs, within a step: the generation or `logits` raises Cancelled where it is.

        For other threads and for signal handlers. Nothing happens if nothing runs.
        """
        self._cancelled = self._turn
        self.executor.cancel()

    @property
    def prefill_emulation(self) -> str:
        """As `emulation`, of the artifact that reads prompts for this one."""
        return self.executor.emulation if isinstance(self.executor, SplitExecutor) else ""

    @cached_property
    def plan(self) -> Plan:
        """The plan, read when first asked for."""
        return read_plan(self.directory)

    @property
    def stats(self) -> Stats:
        """What the last `generate` did and took."""
        stats = self._stats  # completed after the fact: the first token need not wait for it
        counts = stats.levels.counts or {self._level: 1}
        stats.bytes_per_token = self.step_cost.mean_bytes(counts)
        stats.bits_per_weight = self.step_cost.mean_bits(counts)
        return stats

    @cached_property
    def step_cost(self) -> StepCost:
        """What a decode step reads at each level."""
        return StepCost.of(self.plan)

    @property
    def level(self) -> int:
        """The precision level of the next calls; 0 is the most precise."""
        return self._level

    def set_level(self, level: int) -> None:
        """Choose the precision level of the next calls."""
        self.executor.set_level(level)
        self._level = self._used_level = level

    @property
    def levels(self) -> int:
        """How many precision levels there are."""
        return self.executor.levels

    def schedule(self, name: str) -> Schedule | None:
        """A schedule of the artifact: static, entropy, learned, fixed:L, or None for "off"."""
        return find_schedule(self.directory, name, self.levels)

    @property
    def has_chat_template(self) -> bool:
        """`encode_chat` works: the model comes with a template for conversations."""
        return self.tokenizer.has_chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return self.tokenizer.encode(text)

    def encode_chat(self, chat: str | Sequence[Message], system: str | None = None) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for its answer."""
        return self.tokenizer.encode_chat(chat, system)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: Ids, prompt: int = 0) -> np.ndarray:
        """Logits of every token of `ids`, float32 [tokens, vocabulary], from an empty cache.

        Args:
            ids: of a text.
            prompt: so many of them are computed as a prompt is, which may drop some on its way;
                the logits are then of the last of these and of every one behind it.
        """
        if not prompt:
            return self._follow(self._next_turn(), lambda: self._restart(self.executor.score, ids))
        turn, given = self._next_turn(), as_ids(ids)
        if not 0 < as_integer("prompt", prompt) <= len(given):
            raise InputError(f"prompt is out of range (got {prompt}, need 0 to {len(given)})")
        last = self._follow(turn, lambda: self._restart(self.executor.prefill, given[:prompt]))[
            None
        ]
        if prompt == len(given):
            return last.copy()
        last = last.copy()
        return np.concatenate(
            [last, self._follow(turn, lambda: self.executor.score(given[prompt:]))]
        )

    def generate(
        self,
        prompt: str | Ids,
        *,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = 0,
        ignore_eos: bool = False,
        stop: str | int | Sequence[str | int] = (),
        chat: bool = False,
        schedule: str | Schedule | None = None,
    ) -> Iterator[int]:
        """Token ids that continue `prompt`, one by one as they are computed.

        Args:
            prompt: text, or token ids that are used as they are.
            max_tokens: most tokens to give; fewer when the context is full.
            temperature, top_k, top_p, min_p, repetition_penalty: as for SamplingSettings; None is
                the model's own, see `sampling`.
            seed: of the draws: the same one draws the same tokens; None differs each time.
            ignore_eos: go on after the model's end-of-text tokens, which are given then.
            stop: texts and token ids, or one of them, that end the generation; the tokens of the
                character that completes one of them are not given.
            chat: put the text into the model's chat template first; without, the text itself goes
                on, also where there is a template. `morendo run` uses templates by default.
            schedule: what chooses the level of each decode step, behind a prefill at level 0: a
                name, as `schedule` takes it, or a schedule. Without one, or with "off", all is
                computed at `level`.
        """
        ids = self._prompt_ids(prompt, chat)
        if as_integer("max_tokens", max_tokens) < 0:
            raise InputError(f"max_tokens must be 0 or more (got {max_tokens})")
        given = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty,
        }  # fmt: skip
        settings = replace(self.sampling, **{k: v for k, v in given.items() if v is not None})
        sampler = Sampler(settings, seed, ids)
        ends, texts = split_stop(stop)
        if not ignore_eos:
            ends |= set(self.manifest["tokenizer"]["stop"])
        levels = self.schedule(schedule) if isinstance(schedule, str) else schedule
        tokens = self._generate(ids, sampler, ends, max_tokens, levels)
        return before_text(tokens, texts, self.tokenizer, self._stopped) if texts else tokens

    def stream(
        self, prompt: str | Ids, *, stop: str | int | Sequence[str | int] = (), **options: Any
    ) -> Iterator[str]:
        """The text that continues `prompt`, in pieces of whole characters.

        Options are those of `generate`; a stop text is left out to its first character. Joined, the
        pieces are the decoded text; a token id decoded alone may be half of a character.
        """
        ends, texts = split_stop(stop)
        tokens = self.generate(prompt, stop=list(ends), **options)
        return cut_before(self.tokenizer.stream(tokens), texts, self._stopped)

    def _check_sizes(self) -> None:
        try:
            check_sizes(
                self.directory, self.manifest, vocabulary=self.vocabulary, context=self.context
            )
        except ArtifactError:
            self.executor.close()
            raise

    def _prompt_ids(self, prompt: str | Ids, chat: bool) -> np.ndarray:
        if isinstance(prompt, str):
            prompt = self.encode_chat(prompt) if chat else self.encode(prompt)
        elif chat:
            raise InputError("chat needs a text (got token ids)")
        ids = as_ids(prompt)
        if not len(ids):
            raise InputError("the prompt is empty")
        if len(ids) > self.context:
            message = f"prompt too long (got {len(ids)}, context {self.context})"
            raise InputError(message, hint="shorten it, or compile with a larger --context")
        return ids

    def _generate(
        self,
        ids: np.ndarray,
        sampler: Sampler,
        ends: set[int],
        max_tokens: int,
        schedule: Schedule | None,
    ) -> Iterator[int]:
        turn = self._next_turn()
        stats = self._stats = Stats(
            self._stats.load_seconds, prompt_tokens=len(ids), sampling=sampler.settings
        )
        start = time.perf_counter()
        level = 0 if schedule else None
        found: Any = self._follow(turn, lambda: self._restart(self.executor.prefill, ids, level))
        levels = schedule and self._follow(turn, lambda: schedule.start(self.executor.cache_means))
        stats.prompt_seconds = time.perf_counter() - start
        decode: Callable[[int], Any] = self.executor.decode
        if not (schedule and schedule.needs_logits):
            decode = partial(self.executor.decode_next, sampler=sampler)
        for count in range(1, max_tokens + 1):
            start = time.perf_counter()
            token = self._follow(turn, lambda x=found: x if isinstance(x, int) else sampler(x))
            stats.decode_seconds += time.perf_counter() - start
            if token in ends:
                stats.finish = "stop"
                return
            yield token
            if self.executor.position == self.context and count < max_tokens:
                stats.finish = "context"
                return
            if count < max_tokens:
                start = time.perf_counter()
                found = self._follow(
                    turn, lambda x=token, y=found: self._decode(decode, x, y, levels)
                )
                stats.decode_tokens += 1
                stats.decode_seconds += time.perf_counter() - start
        stats.finish = "length"

    def _stopped(self) -> None:
        self._stats.finish = "stop"

    def _next_turn(self) -> int:
        """Begin another text; the one before may not go on."""
        self._turn += 1
        return self._turn

    def _follow(self, turn: int, work: Callable[[], T]) -> T:
        """Do a piece of work of the text that began with `turn`, while no other thread does."""
        require_process(self._process)
        with self._lock:
            if turn <= self._cancelled:
                raise Cancelled("the generation was cancelled")
            if turn != self._turn:
                raise InputError(
                    "another call on this session began a new text before this one ended",
                    hint="open a session for each text that runs at the same time",
                )
            return work()

    def _restart(
        self, work: Callable[[Ids], np.ndarray], ids: Ids, level: int | None = None
    ) -> np.ndarray:
        self._use_level(self._level if level is None else level)
        self.executor.set_position(0)
        return work(ids)

    def _decode(
        self, decode: Callable[[int], T], token: int, found: Any, levels: Levels | None
    ) -> T:
        """What `decode` finds behind `token`, which was drawn from `found`: logits, or the token
        itself where the schedule does not look at them.
        """
        level = levels(found) if levels else self._level
        self._use_level(level)
        self._stats.levels.add(level)
        return decode(token)

    def _use_level(self, level: int) -> None:
        if level != self._used_level:
            self.executor.set_level(level)
            self._used_level = level


def load(directory: str | Path, threads: int = 0, prefill_on: str | Path | None = None) -> Session:
    """Open an artifact; `threads` 0 means one for each CPU that this process may use, `prefill_on`
    is another artifact that reads the prompts.
    """
    return Session(directory, threads, prefill_on=prefill_on)


def _own_sampling(manifest: dict[str, Any], directory: Path) -> SamplingSettings:
    try:
        return SamplingSettings(**manifest.get("generation", {}))
    except (InputError, TypeError) as error:
        raise ArtifactError(f"bad generation settings ({error})", where=str(directory)) from None
