"""Both executors on the toy model: logits, chunks, positions, levels, limits, generation."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import toy
from toy import CHUNK, CONTEXT, LEVELS, VOCABULARY, toy_logits

import morendo
from morendo.ir.errors import ArtifactError, InputError
from morendo.runtime.session import Session

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 30, 5]  # more than two chunks


@pytest.fixture(params=["c", "python"])
def session(request, toy_artifact):
    with Session(toy_artifact, threads=3, executor=request.param) as opened:
        yield opened


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, len(IDS), CONTEXT])
def test_logits_in_chunks(session, count):
    ids = (IDS * 2)[:count]
    close(session.logits(ids), toy_logits(ids))
    assert session.executor.position == count


def test_prefill_and_decode_continue(session):
    executor = session.executor
    close(executor.prefill(IDS[:6]), toy_logits(IDS)[5])
    close(executor.decode(IDS[6]), toy_logits(IDS)[6])
    close(executor.prefill(IDS[7:]), toy_logits(IDS)[-1])
    executor.set_position(3)
    close(executor.decode(IDS[3]), toy_logits(IDS)[3])
    assert executor.position == 4


@pytest.mark.parametrize("level", range(LEVELS))
def test_levels(session, level):
    session.set_level(level)
    assert session.level == level
    close(session.logits(IDS), toy_logits(IDS, level))


def test_executors_agree_bit_by_bit(toy_artifact):
    with Session(toy_artifact) as c, Session(toy_artifact, executor="python") as python:
        assert np.array_equal(c.logits(IDS), python.logits(IDS))


def test_python_executor_traces_and_poisons(toy_artifact):
    from morendo.runtime.interpreter import PythonExecutor

    seen = []
    executor = PythonExecutor(
        toy_artifact,
        trace=lambda index, step, arrays: seen.append((index, step.note, arrays[-1].shape)),
        poison=True,
    )
    close(executor.prefill(IDS[:5]), toy_logits(IDS[:5])[-1])
    executor.close()
    assert [index for index, _, _ in seen] == [0, 1, 2, 3] * 2
    assert seen[4] == (0, "embed_tokens", (1, 5))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.logits([]), "no tokens given .got 0"),
        (
            lambda s: s.logits([0, VOCABULARY]),
            "at place 1 is not in the vocabulary .got id 37",
        ),
        (lambda s: s.logits([-1]), "the token at place 0 is not in the vocabulary .got id -1"),
        (lambda s: s.logits([2**31]), "must fit 32 bits"),
        (lambda s: s.logits([0.5]), "must be a list of integers"),
        (lambda s: s.logits([0] * (CONTEXT + 1)), "prompt too long .got 20, context 19."),
        (lambda s: s.executor.decode(VOCABULARY), "the token at place 0 is not in the vocabulary"),
        (lambda s: s.executor.set_position(1), "position out of range .got 1, need 0 to 0."),
        (lambda s: s.set_level(LEVELS), "level out of range .got 3, need 0 to 2."),
        (lambda s: s.set_level(-1), "level out of range"),
        (
            lambda s: s.generate([0] * (CONTEXT + 1)),
            "prompt too long .got 20, context 19.; shorten",
        ),
        (lambda s: s.generate([]), "the prompt is empty"),
        (lambda s: s.generate("text"), "this artifact has no tokenizer; use token ids"),
        (lambda s: s.generate([1], chat=True), "chat needs a text"),
        (lambda s: s.generate([1], max_tokens=-1), "max_tokens must be 0 or more"),
        (lambda s: s.generate([1], top_p=0.0), "top_p must be"),
        (lambda s: s.set_level("a"), "level must be a whole number .got 'a'."),
        (lambda s: s.set_level(2**32), "level must fit 32 bits .got 4294967296."),
        (lambda s: s.set_level(True), "level must be a whole number .got True."),
        (lambda s: s.executor.decode(2**32), "token ids? must fit 32 bits"),
        (lambda s: s.executor.set_position(0.5), "position must be a whole number .got 0.5."),
        (lambda s: s.stream([1], max_tokens=1.5), "max_tokens must be a whole number .got 1.5."),
        (lambda s: s.generate([1], seed="a"), "seed must be a whole number .got 'a'."),
        (lambda s: s.generate([1], stop=""), "a stop text must not be empty"),
        (lambda s: s.stream([1], stop=["a", ""]), "a stop text must not be empty"),
        (lambda s: s.stream([1], stop=[1, 1.5]), "stop must be texts or token ids .got 1.5."),
        (lambda s: s.generate([1], stop=None), "stop must be texts or token ids .got None."),
        (lambda s: s.generate([1], stop=[True]), "stop must be texts or token ids .got True."),
    ],
)
def test_wrong_calls(session, call, match):
    with pytest.raises(InputError, match=match):
        call(session)


def test_a_failed_call_changes_nothing(session):
    session.executor.prefill(IDS)
    with pytest.raises(InputError):
        session.executor.prefill([0] * CONTEXT)
    assert session.executor.position == len(IDS)


def greedy(ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(np.argmax(toy_logits(ids)[-1])))
    return ids


def test_generate_greedy_to_the_length(session):
    want = greedy(IDS, 6)[len(IDS) :]
    assert list(session.generate(IDS, max_tokens=6, ignore_eos=True)) == want
    stats = session.stats
    assert (stats.finish, stats.prompt_tokens, stats.decode_tokens) == ("length", len(IDS), 5)
    assert stats.bytes_per_token == (VOCABULARY + 1) * 5 * 4  # and a row of embeddings
    assert stats.decode_tokens_per_second > 0
    assert stats.gigabytes_per_second > 0
    assert stats.peak_memory_bytes > 10e6
    assert list(session.generate(IDS, max_tokens=0)) == []


def test_generate_until_the_context_is_full(session):
    ids = list(session.generate(IDS, max_tokens=100, ignore_eos=True))
    assert len(ids) == CONTEXT - len(IDS) + 1  # the last one is never fed back
    assert session.stats.finish == "context"


def test_generate_until_a_stop_token(session):
    want = greedy(IDS, 3)[len(IDS) :]
    stop = want[-1]
    got = list(session.generate(IDS, max_tokens=8, ignore_eos=True, stop=[stop]))
    assert got == want[: want.index(stop)]
    assert session.stats.finish == "stop"


def test_seeds_repeat(session):
    options = {"max_tokens": 8, "temperature": 3.0, "ignore_eos": True}
    first = list(session.generate(IDS, seed=1, **options))
    assert first == list(session.generate(IDS, seed=1, **options))
    assert first != list(session.generate(IDS, seed=2, **options))


def test_the_prompt_counts_as_repeated(session):
    logits = toy_logits(IDS)[-1]
    likeliest = int(np.argmax(logits))
    prompt = [*IDS, likeliest]
    logits = toy_logits(prompt)[-1]
    seen = sorted({*prompt})
    logits[seen] = np.where(logits[seen] < 0, logits[seen] * 50, logits[seen] / 50)
    want = int(np.argmax(logits))
    assert want not in prompt
    options = {"max_tokens": 1, "ignore_eos": True, "repetition_penalty": 50.0}
    assert list(session.generate(prompt, **options)) == [want]


def test_closed_session(toy_artifact):
    for executor in ("c", "python"):
        session = Session(toy_artifact, executor=executor)
        session.close()
        session.close()
        with pytest.raises(InputError, match="this session is closed"):
            session.logits([1])


def test_sessions_side_by_side(toy_artifact):
    with Session(toy_artifact, threads=1) as one, Session(toy_artifact, threads=4) as four:
        one.executor.prefill(IDS[:5])
        four.executor.prefill(IDS)
        close(one.executor.decode(IDS[5]), toy_logits(IDS)[5])


def test_a_generation_ends_when_another_text_begins(toy_artifact):
    with Session(toy_artifact) as session:
        first = session.generate(IDS, max_tokens=4, ignore_eos=True)
        next(first)
        session.logits([1, 2])
        with pytest.raises(InputError, match="another call on this session began a new text"):
            next(first)
        assert len(list(session.generate(IDS, max_tokens=4, ignore_eos=True))) == 4


def test_threads_out_of_range(toy_artifact):
    with pytest.raises(InputError, match="threads out of range .got -1, need 0 to 256."):
        Session(toy_artifact, threads=-1)


@pytest.mark.parametrize("threads", [2.5, "2", None])
def test_threads_of_another_type(toy_artifact, threads):
    with pytest.raises(InputError, match=f"threads must be a whole number .got {threads!r}."):
        Session(toy_artifact, threads=threads)


def test_an_artifact_that_is_no_path():
    with pytest.raises(InputError, match="an artifact is given by its path .got 5."):
        morendo.load(5)  # pyright: ignore[reportArgumentType]


def test_unknown_executor(toy_artifact):
    with pytest.raises(InputError, match="unknown executor"):
        Session(toy_artifact, executor="fpga")  # pyright: ignore[reportArgumentType]


def test_a_recompiled_artifact_is_loaded_anew(toy_artifact, toy_library):
    with Session(toy_artifact) as before:
        toy.write_toy(toy_artifact, toy_library, toy.toy_manifest())
        with Session(toy_artifact) as after:
            assert np.array_equal(before.logits(IDS), after.logits(IDS))
            mapped = Path("/proc/self/maps").read_text().splitlines()
            mapped = [line for line in mapped if "model.so" in line]
            ours = {line.split()[4] for line in mapped if f"{toy_artifact.parent}/" in line}
            assert len(ours) == 2  # inodes


def test_kernel_refusal_names_the_step(tmp_path):
    plan = toy.toy_plan()
    steps = list(plan.functions["decode"])
    steps[3] = dataclasses.replace(steps[3], args=(*steps[3].args[:2], 4, *steps[3].args[3:]))
    plan = dataclasses.replace(plan, functions={**plan.functions, "decode": tuple(steps)})
    out, library = tmp_path / "bad", tmp_path / "model.so"
    toy.link_toy(library, plan)
    toy.write_with_plan(out, library, plan)
    for executor in ("c", "python"):
        with Session(out, executor=executor) as session:
            session.executor.prefill([1])
            with pytest.raises(Exception, match="kernel head failed .*lm_head.*expected a row"):
                session.executor.decode(1)


@pytest.mark.parametrize("executor", ["c", "python"])
def test_kernels_may_read_scalars_from_memory(tmp_path, executor):
    plan = toy.state_plan()
    toy.link_toy(tmp_path / "model.so", plan)
    toy.write_with_plan(tmp_path / "a", tmp_path / "model.so", plan)
    with Session(tmp_path / "a", executor=executor) as session:
        for level in range(LEVELS):
            session.set_level(level)
            close(session.logits(IDS), toy_logits(IDS, level))
            session.executor.set_position(7)
            close(session.executor.decode(IDS[7]), toy_logits(IDS, level)[7])
            session.executor.set_position(0)


@pytest.mark.parametrize("executor", ["c", "python"])
def test_plan_and_library_must_belong_together(toy_library, tmp_path, executor):
    plan = dataclasses.replace(toy.toy_plan(), arena_bytes=1 << 20)
    toy.write_with_plan(tmp_path / "a", toy_library, plan)
    with pytest.raises(ArtifactError, match="plan.json and model.so do not belong together"):
        Session(tmp_path / "a", executor=executor)


def test_a_library_of_other_kernels_than_its_plan(tmp_path):
    plan = dataclasses.replace(toy.toy_plan(), kernels=("embed", "append", "mix", "tail"))
    toy.link_toy(tmp_path / "model.so", plan)
    toy.write_with_plan(tmp_path / "a", tmp_path / "model.so", plan)
    with pytest.raises(ArtifactError, match="the plan and model.so do not belong together"):
        Session(tmp_path / "a")


def test_one_cpu_for_two_threads(toy_artifact):
    cpus = os.sched_getaffinity(0)
    with Session(toy_artifact, threads=2) as session:
        os.sched_setaffinity(0, {min(cpus)})
        try:
            for _ in range(50):
                close(session.logits(IDS), toy_logits(IDS))
        finally:
            os.sched_setaffinity(0, cpus)
