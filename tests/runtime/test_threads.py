"""Sessions among threads, signals and forks: who waits, who is refused, what ends early."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import toy
from toy import LEVELS, VOCABULARY, toy_logits

from morendo.ir.errors import Cancelled, InputError, MorendoError
from morendo.runtime.session import Session

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
SLOW_CONTEXT = 40_000  # each token of the toy looks at all before it: seconds for a whole context
LONG = [1] * SLOW_CONTEXT


@pytest.fixture(scope="module")
def slow_artifact(tmp_path_factory):
    """The toy model with a context so long that a prefill takes a while."""
    folder = tmp_path_factory.mktemp("slow")
    plan = toy.toy_plan(context=SLOW_CONTEXT)
    toy.link_toy(folder / "model.so", plan)
    toy.write_with_plan(folder / "slow", folder / "model.so", plan)
    return folder / "slow"


@contextmanager
def again_and_again(action):
    """`action` happens every 50 ms in another thread, however late the block gets to its call."""
    end = threading.Event()

    def act():
        while not end.wait(0.05):
            action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def until_it_runs():
    time.sleep(0.05)


@pytest.mark.parametrize("executor", ["c", "python"])
@pytest.mark.parametrize("method", ["prefill", "score"])
def test_a_long_call_is_cancelled_within_a_step(slow_artifact, executor, method):
    with Session(slow_artifact, threads=1, executor=executor) as session:
        start = session.executor.prefill([1, 2]).copy()
        with (
            again_and_again(session.executor.cancel),
            pytest.raises(Cancelled, match="cancelled before .* step"),
        ):
            getattr(session.executor, method)(LONG[2:])
        assert session.executor.position == 2
        session.executor.cancel()  # nothing runs, nothing happens
        session.executor.set_position(0)
        assert np.array_equal(session.executor.prefill([1, 2]), start)


@pytest.mark.parametrize("executor", ["c", "python"])
def test_cancelling_a_session_ends_its_text(slow_artifact, executor):
    with Session(slow_artifact, threads=1, executor=executor) as session:
        tokens = session.generate([1], max_tokens=5, ignore_eos=True)
        next(tokens)
        session.cancel()
        with pytest.raises(Cancelled, match="the generation was cancelled"):
            next(tokens)
        assert len(list(session.generate([1], max_tokens=5, ignore_eos=True))) == 5
        with again_and_again(session.cancel), pytest.raises(Cancelled):
            session.logits(LONG)


def test_a_signal_handler_runs_during_a_long_call(slow_artifact):
    with Session(slow_artifact, threads=1) as session:
        for handler, error in (
            (lambda *_: session.cancel(), Cancelled),
            (signal.default_int_handler, KeyboardInterrupt),
        ):
            before = signal.signal(signal.SIGINT, handler)
            try:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
                with pytest.raises(error):
                    session.logits(LONG)
            finally:
                signal.signal(signal.SIGINT, before)
        assert session.logits([1, 2]).shape == (2, VOCABULARY)


@contextmanager
def handler_of_a_timer(handler, first: float, every: float = 0.0):
    """`handler` runs in the main thread after `first` seconds, and then `every` so many."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, first, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_handlers_that_raise_nothing_leave_a_long_call_alone(slow_artifact):
    ids = LONG[:8_000]
    with Session(slow_artifact, threads=1) as session:
        want, times = session.executor.prefill(ids).copy(), []
        session.executor.set_position(0)
        with handler_of_a_timer(lambda *_: times.append(time.monotonic()), 0.001, 0.001):
            start = time.monotonic()
            got = session.executor.prefill(ids).copy()
            end = time.monotonic()
    assert np.array_equal(got, want)
    inside = [each for each in times if start < each < end]
    assert len(inside) > 1 and np.diff(inside).max() < 0.5


@pytest.mark.parametrize("executor", ["c", "python"])
def test_a_handler_may_close_the_session_that_computes(slow_artifact, executor):
    session = Session(slow_artifact, threads=1, executor=executor)
    with handler_of_a_timer(lambda *_: session.close(), 0.1), pytest.raises(Cancelled):
        session.executor.prefill(LONG)
    with pytest.raises(InputError, match="this session is closed"):
        session.executor.prefill([1])


@pytest.mark.parametrize("executor", ["c", "python"])
def test_a_handler_cannot_compute_in_the_middle_of_a_call(slow_artifact, executor):
    with Session(slow_artifact, threads=1, executor=executor) as session:
        with (
            handler_of_a_timer(lambda *_: session.executor.decode(1), 0.1),
            pytest.raises(InputError, match="is computing, and a signal handler.*; a handler may"),
        ):
            session.executor.prefill(LONG)
        assert session.executor.position == 0
        assert session.executor.prefill([1]).shape == (VOCABULARY,)


@pytest.mark.parametrize("executor", ["c", "python"])
def test_closing_ends_and_refuses_what_other_threads_do(slow_artifact, executor):
    session = Session(slow_artifact, threads=2, executor=executor)
    outcomes = []

    def run(call):
        try:
            call()
        except MorendoError as error:
            outcomes.append(str(error).split(" before ")[0])

    calls = [lambda: session.executor.prefill(LONG), lambda: session.set_level(1)]
    threads = [threading.Thread(target=run, args=(call,)) for call in (*calls, calls[0])]
    for thread in threads:
        thread.start()
        until_it_runs()
    session.close()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["cancelled", "this session is closed", "this session is closed"]


def test_levels_change_between_calls_of_other_threads(toy_artifact):
    want = [toy_logits(IDS, level) for level in range(LEVELS)]
    with Session(toy_artifact, threads=2) as session:
        stop = threading.Event()

        def change():
            while not stop.is_set():
                for level in range(LEVELS):
                    session.set_level(level)

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(200):
                got = session.logits(IDS)
                assert any(np.allclose(got, logits, rtol=1e-5, atol=1e-5) for logits in want)
        finally:
            stop.set()
            thread.join()


FORK = """
import os, sys, threading
from morendo.ir.errors import InputError
from morendo.runtime.session import Session
path, executor = sys.argv[1:]
session = Session(path, threads=3, executor=executor)
before = session.logits([1, 2, 3])
child = os.fork()
if not child:
    calls = [lambda: session.logits([1]), lambda: session.set_level(0),
             lambda: session.executor.position, lambda: next(session.generate([1]))]
    for call in calls:
        try:
            call()
        except InputError as error:
            assert "this session is dead" in str(error) and "; open a session in" in str(error)
        else:
            sys.exit(7)
    session.close()
    with Session(path, threads=3, executor=executor) as own:
        same = (own.logits([1, 2, 3]) == before).all()
    sys.exit(0 if same else 8)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (session.logits([1, 2, 3]) == before).all()
session.close()
"""


@pytest.mark.parametrize("executor", ["c", "python"])
def test_a_session_is_dead_in_a_fork(toy_artifact, executor):
    command = [sys.executable, "-c", FORK, str(toy_artifact), executor]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_in_the_command_ends_a_long_prefill(slow_artifact):
    code = (
        "import sys; from morendo import cli; from morendo.runtime.session import Session\n"
        f"Session.encode = lambda self, text: [1] * {SLOW_CONTEXT}\n"
        "Session.encode_chat = lambda self, text, **options: self.encode(text)\n"
        "Session.stream = lambda self, ids, **options: map(str, self.generate(ids))\n"
        "print('ready', flush=True); sys.exit(cli.main(['run', sys.argv[1], 'x', '--threads=1']))"
    )
    command = [sys.executable, "-c", code, str(slow_artifact)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)  # it starts to compute
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "error: interrupted\n")
    assert time.monotonic() - start < 5


def test_two_threads_on_one_session_are_told_apart(toy_artifact):
    with Session(toy_artifact) as session:
        alone = list(session.generate(IDS, max_tokens=4, ignore_eos=True))
        outcomes = []

        def run():
            try:
                outcomes.append(list(session.generate(IDS, max_tokens=4, ignore_eos=True)))
            except InputError as error:
                outcomes.append(str(error).split(" began")[0])

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert alone in outcomes
    assert all(o in (alone, "another call on this session") for o in outcomes)
