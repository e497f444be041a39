"""`morendo eval`: the figures, the cache of the float model's logits, the command."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.cli import entry as cli
from morendo.codegen.packed_matrix import Matrix
from morendo.ir.errors import ArtifactError, InputError, MorendoError
from morendo.ir.formats import WeightFormat
from morendo.quality import compare, cut_windows, evaluate, summarize
from morendo.quality.cache import LogitsCache, cache_directory, model_key
from morendo.quality.dequantized import _put
from morendo.quality.measure import PRUNED
from tests.relist import relist

TINY = Path(__file__).parent / "models" / "tiny_llama"
# English prose that is in the repository: quality is not the point here, lengths are.
TEXT = (Path(__file__).parent.parent / "docs" / "artifact_format.md").read_text(encoding="utf-8")


# Windows


def test_windows_do_not_overlap_and_the_rest_is_left_out():
    windows = cut_windows(list(range(10)), 4)
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows.dtype == np.int32
    assert cut_windows(list(range(10)), 4, limit=1).tolist() == [[0, 1, 2, 3]]


def test_every_window_starts_with_bos_where_the_model_expects_one():
    assert cut_windows(list(range(1, 8)), 4, bos=0).tolist() == [[0, 1, 2, 3], [0, 4, 5, 6]]


def test_a_short_text_is_refused_with_the_lengths():
    with pytest.raises(InputError, match=r"shorter than one window \(got 3 tokens, need 4\)"):
        cut_windows([1, 2, 3], 4)
    with pytest.raises(InputError, match="a window is too short"):
        cut_windows([1, 2, 3], 1)


# Scores


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (21, 57)).astype(np.float32)


def test_scores_are_what_the_definitions_say(logits):
    other = logits + np.random.default_rng(1).normal(0, 1, logits.shape).astype(np.float32)
    targets = np.arange(21)
    p = np.exp(logits.astype(np.float64))
    q = np.exp(other.astype(np.float64))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    scores = compare(other, targets, logits)
    assert np.allclose(scores.loss, -np.log(q[np.arange(21), targets]))
    assert np.allclose(scores.divergence, (p * np.log(p / q)).sum(1))
    assert np.array_equal(scores.agrees, p.argmax(1) == q.argmax(1))


def test_a_model_does_not_diverge_from_itself(logits):
    scores = compare(logits + np.float32(64), np.zeros(21, np.int32), logits)
    assert np.abs(scores.divergence).max() < 1e-11  # 64 costs the logits their last bits
    assert scores.agrees.all()
    assert compare(logits, np.zeros(21, np.int32), logits).divergence.tolist() == [0.0] * 21


def test_tiny_divergences_are_not_lost(logits):
    """To second order KL is half the variance of the change: 1e-10 here, below float32."""
    change = np.float32(2.0**-16) * np.sign(np.random.default_rng(2).normal(size=logits.shape))
    rounded = np.round(logits * 256) / 256  # so that the sum is exact
    got = compare((rounded + change).astype(np.float32), np.zeros(21, np.int32), rounded)
    p = np.exp(rounded.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    variance = (p * change**2).sum(1) - (p * change).sum(1) ** 2
    assert np.allclose(got.divergence, variance / 2, rtol=1e-3, atol=1e-14)


def test_huge_logits_do_not_overflow():
    scores = compare(np.array([[2.0**99, 0, -(2.0**99)]], np.float32), np.array([1]))
    assert scores.loss.tolist() == [2.0**99]
    assert summarize([scores]).perplexity == math.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(bad, logits):
    logits[13, 5] = bad
    with pytest.raises(MorendoError, match=r"not finite \(got .*(nan|inf) for token id 5\)"):
        compare(logits, np.zeros(21, np.int32))


def test_a_summary_weighs_tokens_equally(logits):
    targets = np.zeros(21, np.int32)
    noisy = logits + np.random.default_rng(3).normal(0, 1, logits.shape).astype(np.float32)
    windows = [compare(noisy[i : i + 7], targets[:7], logits[i : i + 7]) for i in (0, 7, 14)]
    whole, parts = summarize([compare(noisy, targets, logits)]), summarize(windows)
    assert parts.tokens == 21
    assert parts.kl_mean == pytest.approx(whole.kl_mean)
    assert parts.kl_p99 == whole.kl_p99
    assert parts.top1 == whole.top1
    assert whole.kl_error is None
    means = [w.divergence.mean() for w in windows]
    assert parts.kl_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))
    alone = summarize([compare(noisy, targets)])
    assert (alone.loss, alone.kl_mean, alone.top1) == (whole.loss, None, None)


# The cache


@pytest.fixture
def ids() -> np.ndarray:
    return np.arange(5, dtype=np.int32)


def window_logits(value: float) -> np.ndarray:
    return np.full((4, 100), value, np.float32)


def test_cached_logits_come_back_exactly(tmp_path, ids):
    cache = LogitsCache(tmp_path, "model")
    assert cache.load(ids) is None
    cache.store(ids, window_logits(0.1))
    assert np.array_equal(cache.load(ids), window_logits(0.1))
    assert cache.load(ids + 1) is None
    assert LogitsCache(tmp_path, "other").load(ids) is None
    assert not list(tmp_path.rglob("*.tmp"))
    assert cache.problem == ""


def test_a_damaged_entry_is_computed_again(tmp_path, ids):
    cache = LogitsCache(tmp_path, "model")
    cache.store(ids, window_logits(0.1))
    (entry,) = tmp_path.rglob("*.npy")
    for content in (b"", b"no array", entry.read_bytes()[:-1]):
        entry.write_bytes(content)
        assert cache.load(ids) is None


def test_the_limit_drops_other_models_first_and_never_its_own(tmp_path, ids):
    limit = 2 * 4 * 100 * 4 + 300  # two windows and their headers
    old = LogitsCache(tmp_path, "old", limit)
    for i in range(2):
        old.store(ids + i, window_logits(i))
        path = old._path(ids + i)
        os.utime(path, (i, i))
    new = LogitsCache(tmp_path, "new", limit)
    new.store(ids, window_logits(7))
    assert old.load(ids) is None
    assert old.load(ids + 1) is not None
    new.store(ids + 1, window_logits(8))
    new.store(ids + 2, window_logits(9))
    assert [new.load(ids + i) is not None for i in range(3)] == [True, True, False]
    assert "more than the cache's" in new.problem


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, ids):
    (tmp_path / "file").write_text("")
    cache = LogitsCache(tmp_path / "file", "model")
    cache.store(ids, window_logits(0))
    assert "Not a directory" in cache.problem
    assert cache.load(ids) is None


def test_the_key_follows_the_files(tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    first = model_key(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert model_key(tmp_path) == first
    weights.write_bytes(b"12345")
    assert model_key(tmp_path) != first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "morendo" / "logits"


def test_key_of_a_model_in_parts(tmp_path):
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    parts[0].write_bytes(b"one")
    first = model_key(parts[0])
    parts[1].write_bytes(b"two")
    assert model_key(parts[0]) != first


# Weights


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_split_undoes_load(transposed, interleaved):
    rng = np.random.default_rng(0)
    rows = (40, 40) if interleaved else (40, 24, 7)
    names = tuple("abc"[: len(rows)])
    store = {
        n: rng.normal(size=(r, 32)).astype(np.float32) for n, r in zip(names, rows, strict=True)
    }
    if transposed:
        store = {name: weight.T for name, weight in store.items()}
    matrix = Matrix(names, rows, 32, WeightFormat("f32"), transposed, interleaved)
    parts = matrix.split(matrix.load(store))
    assert all(np.array_equal(part, store[n]) for part, n in zip(parts, names, strict=True))


@pytest.mark.parametrize("name", ["w", "w[2:5]", "w[0:1/3]", "w[:,2:4]", "w[:,1:2/2]"])
def test_a_view_is_put_back_where_it_came_from(name):
    from morendo.ir.weight_views import parse_view

    whole = np.arange(36, dtype=np.float32).reshape(6, 6)
    view = parse_view(name)
    part = whole if view is None else view.apply(whole)
    put = _put(np.array(whole), -part, name)
    changed = np.array(whole)
    changed[np.isin(whole, part)] *= -1
    assert np.array_equal(put, changed)
    with pytest.raises(InputError, match="another shape than the reference's"):
        _put(whole, part[:, :-1], name)


# The whole


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    return morendo.compile(TINY, out=tmp_path_factory.mktemp("eval") / "tiny", chunk=32)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    """Compiled before `cached` empties the cache, the C compiler's as well."""
    out = tmp_path_factory.mktemp("pruned") / "tiny"
    return morendo.compile(TINY, out=out, chunk=32, prune_tokens=0.2)


@pytest.fixture
def cached(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_errors_of_weights_and_kernels_add_up(artifact, cached):
    assert json.loads((artifact / "manifest.json").read_text())["model"]["context"] == 4096
    options = {"reference": TINY, "window": 64, "windows": 4}
    report = evaluate(artifact, TEXT, dequantized=True, **options)
    assert [(row.kind, row.level) for row in report.rows] == [
        ("float", None),
        *((kind, level) for level in range(5) for kind in ("artifact", "weights", "kernels")),
    ]
    by = {(row.kind, row.level): row.score for row in report.rows}
    assert all(score.tokens == 4 * 63 for score in by.values())
    divergences = [by["weights", level].kl_mean for level in range(5)]
    assert divergences == sorted(divergences)
    for level in range(5):
        assert by["kernels", level].kl_mean < 2e-3
        assert by["artifact", level].kl_mean == pytest.approx(divergences[level], rel=0.1)
        assert by["artifact", level].loss == by["kernels", level].loss
    read = [row.bytes_per_token for row in report.rows if row.kind == "artifact"]
    assert read == sorted(read, reverse=True)
    # The second time the float model comes from the disk, and the figures are the same.
    assert len(list(cached.rglob("*.npy"))) == 4
    again = evaluate(artifact, TEXT, levels=[0], **options)
    assert again.rows == report.rows[:2]


def test_the_reference_is_what_transformers_computes(cached):
    import torch
    from transformers import AutoModelForCausalLM

    from morendo.progress import Progress
    from morendo.quality.reference import Reference

    ids = np.random.default_rng(4).integers(2, 512, 50).astype(np.int32)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1].numpy()
    got = Reference(TINY, cached=False, progress=Progress()).logits(ids)
    assert np.abs(got - want).max() < 1e-4
    assert not list(cached.rglob("*"))


def test_options_that_do_not_fit_are_refused(artifact):
    for options, said in (
        ({"window": 4096}, r"longer than the artifact's context \(got 4096, need at most 512\)"),
        ({"levels": [5]}, r"no such precision level \(got 5, need 0 to 4\)"),
        ({"dequantized": True}, "give --reference"),
    ):
        with pytest.raises(InputError, match=said):
            evaluate(artifact, TEXT, **options)


def test_tokens_behind_a_prompt_are_scored(artifact, pruned, cached):
    """Without pruning they are those that a score of the whole window gives, by another phase."""
    options = {"reference": TINY, "window": 64, "windows": 2, "levels": [0]}
    behind = evaluate(artifact, TEXT, prompt=40, **options)
    assert behind.prompt == 40 and not behind.notes
    assert [row.score.tokens for row in behind.rows] == [2 * 24] * 2
    assert behind.rows[1].score.kl_mean < 0.02
    with pytest.raises(InputError, match="no room behind the prompt .got 64 tokens, need 0 to 63."):
        evaluate(artifact, TEXT, prompt=64, window=64)
    other = evaluate(pruned, TEXT, prompt=40, **options)
    assert not other.notes
    assert other.rows[1].score.kl_mean > behind.rows[1].score.kl_mean
    assert evaluate(pruned, TEXT, window=64, windows=1).notes == [PRUNED]


def test_an_artifact_without_the_list_of_matrices_says_so(artifact):
    from morendo.quality.dequantized import read_matrices

    path = artifact / "weights.json"
    content = path.read_bytes()
    try:
        path.write_text('{"matrices": [{"names": []}], "vectors": []}')
        relist(artifact)
        with pytest.raises(ArtifactError, match="malformed"):
            read_matrices(artifact)
        path.unlink()
        relist(artifact)
        with pytest.raises(ArtifactError, match=r"has no weights.json\).*compile or copy it again"):
            read_matrices(artifact)
    finally:
        path.write_bytes(content)
        relist(artifact)


@pytest.mark.parametrize("change", ["offset", "size", "arrays"])
def test_a_list_of_weights_that_is_wrong_is_refused(artifact, change: str):
    from morendo.quality.dequantized import DequantizedWeights

    path = artifact / "weights.json"
    content = path.read_bytes()
    found = json.loads(content)
    entry = {"names": ["model.norm.weight.tuned"], "sizes": [128], "offset": 1 << 40}
    if change == "arrays":
        found["matrices"][0]["offsets"].pop()
    else:
        entry = {**entry, "sizes": [77], "offset": 0} if change == "size" else entry
        found["vectors"] = [entry]
    try:
        path.write_text(json.dumps(found))
        relist(artifact)
        with pytest.raises((ArtifactError, InputError), match=r"malformed|another shape"):
            DequantizedWeights(artifact).get("model.norm.weight", np.ones(128, np.float32), 0)
    finally:
        path.write_bytes(content)
        relist(artifact)


def test_the_command_prints_a_table_and_writes_figures(artifact, tmp_path, capsys):
    text, figures = tmp_path / "text.txt", tmp_path / "figures.json"
    text.write_text(TEXT, encoding="utf-8")
    words = ["eval", artifact, "--text", text, "--window", "64", "--windows", "2"]
    assert cli.main([*map(str, words), "--json", str(figures)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("126 scored tokens in 2 windows of 64, text of ")
    assert lines[1].split() == ["perplexity", "reads"]
    assert [line.split()[:2] for line in lines[2:]] == [["level", str(i)] for i in range(5)]
    data = json.loads(figures.read_text())
    assert (data["windows"], data["reference"]) == (2, "")
    assert data["rows"][0]["score"]["perplexity"] == pytest.approx(
        math.exp(data["rows"][0]["score"]["loss"])
    )
    assert cli.main([*map(str, words), "--level", "1", "--json", "-"]) == 0
    assert [row["level"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1]


def test_figures_without_a_folder_are_refused_before_measuring(artifact, tmp_path, capsys):
    text, figures = tmp_path / "text.txt", tmp_path / "none" / "figures.json"
    text.write_text("too short: a longer text would be measured")
    words = ["eval", str(artifact), "--text", str(text), "--json", str(figures)]
    assert cli.main(words) == cli.USER_ERROR
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such text at "),
        (b"\xff\xfe", "the text is not UTF-8 (byte 0)"),
        (b"too short", "the text is shorter than one window (got "),
        (b" \n", "the text is empty at "),
    ],
    ids=["missing", "not text", "short", "empty"],
)
def test_a_text_that_cannot_be_used_is_one_line(content, said, artifact, tmp_path, capsys):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert cli.main(["eval", str(artifact), "--text", str(text)]) == cli.USER_ERROR
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
