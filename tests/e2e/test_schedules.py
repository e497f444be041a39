"""Schedules of a compiled model: the executable says what a session says, token by token."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import morendo
from morendo.ir.plan import row_caches
from morendo.runtime.amend import amend_artifact
from morendo.runtime.artifact import SCHEDULE, WEIGHTS
from morendo.runtime.schedule import Entropy, Fall, Layer, Learned, describe_schedules
from morendo.runtime.verify import verify

PROMPT = "Once upon a time"
TOKENS = 24


@pytest.fixture(scope="module")
def artifact(compile_tiny, tmp_path_factory):
    """The small llama, and schedules that switch within a few tokens."""
    out = tmp_path_factory.mktemp("scheduled") / "artifact"
    shutil.copytree(compile_tiny(bits=4), out)
    with morendo.load(out) as session:
        cache = max(row_caches(session.plan))
        session.executor.prefill([1])
        width = len(session.executor.cache_means(cache, 1))
    rng = np.random.default_rng(0)
    rows = tuple(map(tuple, rng.integers(-50000, 50000, (3, width)).tolist()))
    falls = (Fall(((2, 1),)), Fall(((3, 2), (9, 4))), Fall(((1, 3),)))
    schedules = {
        "static": Fall(((3, 1), (8, 3), (15, 4))),
        "entropy": Entropy(Fall(((2, 4),)), 1500),
        "learned": Learned(cache, 16, (Layer(rows, (0, 0, 0)),), falls),
    }
    text = json.dumps(describe_schedules(schedules, 5, {}))
    amend_artifact(out, {SCHEDULE: text.encode()})
    return out


def call(artifact, *words):
    return subprocess.run([artifact / "run", *words], capture_output=True, env={}, check=False)


@pytest.mark.parametrize("name", ["static", "entropy", "learned", "fixed:2", "fixed:0", "off"])
def test_the_executable_follows_the_same_schedule(artifact, name):
    with morendo.load(artifact) as session:
        pieces = session.stream(PROMPT, max_tokens=TOKENS, schedule=name, ignore_eos=True)
        answer = "".join(pieces).encode()
        stats = session.stats
    words = ["--max-tokens", str(TOKENS), "--schedule", name, "--stats", "--ignore-eos"]
    done = call(artifact, PROMPT, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == answer + b"\n"
    said = done.stderr.decode()
    assert f"levels   {stats.levels}\n" in said
    mean = re.search(r"([\d.]+) kB a token, ([\d.]+) bits a weight", said)
    assert mean is not None
    assert float(mean[1]) == pytest.approx(stats.bytes_per_token / 1e3, abs=0.06)
    assert float(mean[2]) == pytest.approx(stats.bits_per_weight, abs=0.006)


def test_means_are_of_decode_steps(artifact):
    with morendo.load(artifact) as session:
        cost = session.step_cost
        list(session.generate(PROMPT, max_tokens=11, ignore_eos=True, schedule="static"))
        read = cost.level_bytes
        assert session.stats.levels.counts == {0: 2, 1: 5, 3: 3}
        want = (2 * read[0] + 5 * read[1] + 3 * read[3]) / 10
        assert session.stats.bytes_per_token == pytest.approx(want)
        rows = json.loads((artifact / "weights.json").read_text())["matrices"]
        weights = sum(sum(m["rows"]) * m["columns"] for m in rows)
        assert session.stats.bits_per_weight == pytest.approx(8 * want / cost.weights)
        assert cost.weights <= weights  # a table that is not the head is not multiplied with


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--schedule", "slow"], 1, "unknown schedule (got slow, need static, entropy, learned"),
        (["--schedule", "fixed:5"], 1, "out of range (got 5, need 0 to 4)"),
        (["--schedule", "static", "--level", "0"], 2, "not allowed with argument --level"),
    ],
)
def test_mistakes_are_one_line(artifact, words, code, said):
    done = call(artifact, "a", *words)
    assert done.returncode == code
    assert said in done.stderr.decode()
    assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_amended_artifacts_are_whole(artifact, compile_tiny, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(compile_tiny(bits=4), plain)
    (plain / "notes.txt").write_text("mine")
    before, inode = verify(plain), (plain / WEIGHTS).stat().st_ino
    amend_artifact(plain, {SCHEDULE: (artifact / SCHEDULE).read_bytes()})
    after = verify(plain)
    assert before != after
    assert (plain / WEIGHTS).stat().st_ino == inode  # not copied
    assert (plain / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in (plain / "manifest.json").read_text()
    amend_artifact(plain, {SCHEDULE: (artifact / SCHEDULE).read_bytes()})
    assert verify(plain) == after
