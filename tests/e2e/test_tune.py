"""`morendo tune` on the small llama: what it finds is written, or nothing is."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import morendo
from morendo.cli import entry as cli
from morendo.ir.errors import InputError
from morendo.runtime.artifact import SCHEDULE
from morendo.runtime.verify import verify
from morendo.tuning import read_prompts, tune
from morendo.tuning.answers import Model
from morendo.tuning.bound import Bound

PROMPTS = [f"{start} {end}" for start in ("Once upon a time", "One day") for end in
           ("a dog", "the sun", "a big red ball", "Tom and Lily")]  # fmt: skip
OPTIONS = {"max_tokens": 16, "threads": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Of what is measured; kernels are kept where they always are."""
    monkeypatch.setattr("morendo.tuning.store.user_cache", lambda: tmp_path / "cache")


@pytest.fixture
def artifact(compile_tiny, tmp_path):
    return Path(shutil.copytree(compile_tiny(bits=4), tmp_path / "artifact"))


@pytest.mark.parametrize("metric", ["rouge-l", "top1", "kl"])
def test_what_is_found_keeps_the_bound(artifact, metric):
    bound = {"rouge-l": 0.5, "top1": 0.85, "kl": 0.9}[metric]
    tuned = tune(artifact, PROMPTS, quality=bound, metric=metric, learned=True, **OPTIONS)
    assert set(tuned.figures) == {"top", *tuned.schedules}
    assert {"static", "learned"} <= set(tuned.schedules)
    top = tuned.figures["top"]["tuning"]
    assert top.quality == 1
    for kind in tuned.schedules:
        mean = tuned.figures[kind]["tuning"].mean
        assert Bound(bound, 0.8).least(mean) >= bound
        assert tuned.figures[kind]["tuning"].bytes <= top.bytes
    assert tuned.figures["static"]["tuning"].bytes < top.bytes
    verify(artifact)
    written = json.loads((artifact / SCHEDULE).read_text())
    evidence = written["evidence"]["static"]
    assert (evidence["metric"], evidence["quality"], evidence["tuning_prompts"]) == (
        metric,
        bound,
        4,
    )
    assert evidence["held_out"]["bytes"] == tuned.figures["static"]["held_out"].bytes
    with morendo.load(artifact) as session:
        for kind, schedule in tuned.schedules.items():
            assert session.schedule(kind) == schedule


def test_figures_are_those_of_answers(artifact):
    """The mean bytes that the evidence has are what sessions say of the same answers."""
    tuned = tune(artifact, PROMPTS, quality=0.5, **OPTIONS)
    read = steps = 0.0
    with morendo.load(artifact, threads=1) as session:
        for prompt in PROMPTS[::2]:
            list(session.generate(prompt, max_tokens=16, temperature=0.0, schedule="static"))
            read += session.stats.bytes_per_token * session.stats.decode_tokens
            steps += session.stats.decode_tokens
    figures = tuned.figures["static"]["tuning"]
    assert figures.steps == steps
    assert figures.bytes == pytest.approx(read / steps)


def test_a_search_goes_on_where_it_ended(artifact, monkeypatch):
    answers = []
    whole = Model.answer

    def answer(self, prompt, schedule):
        answers.append(schedule)
        if len(answers) == 11:
            raise KeyboardInterrupt
        return whole(self, prompt, schedule)

    monkeypatch.setattr(Model, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        tune(artifact, PROMPTS, quality=0.5, **OPTIONS)
    assert not (artifact / SCHEDULE).exists()
    first = tune(artifact, PROMPTS, quality=0.5, **OPTIONS)
    count = len(answers)
    assert tune(artifact, PROMPTS, quality=0.5, **OPTIONS).figures == first.figures
    assert len(answers) == count  # the schedules of the artifact do not count
    again = tune(artifact, PROMPTS, quality=0.5, cached=False, **OPTIONS)
    assert again.figures == first.figures
    assert len(answers) - count == count - 1  # all but the interrupted one


def test_kinds_that_were_there_stay(artifact):
    tune(artifact, PROMPTS, quality=0.5, learned=True, **OPTIONS)
    before = json.loads((artifact / SCHEDULE).read_text())
    tune(artifact, PROMPTS, quality=0.6, **OPTIONS)
    after = json.loads((artifact / SCHEDULE).read_text())
    assert after["learned"] == before["learned"]
    assert after["evidence"]["learned"]["quality"] == 0.5
    assert after["evidence"]["static"]["quality"] == 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quality": 0.0}, "a quality is above 0 and at most 1 .got 0.0."),
        ({"confidence": 0.4}, "a confidence is 0.5 or more and below 1 .got 0.4."),
        ({"confidence": 1.0}, "a confidence is 0.5 or more and below 1 .got 1.0."),
        ({"metric": "bleu"}, "unknown metric .got bleu, need rouge-l, top1, kl."),
        ({"max_tokens": 1}, "an answer has 2 tokens or more"),
        ({"max_tokens": 5000}, "prompt 1 and its answer do not fit into the context .got"),
        (
            {"quality": 1.0, "metric": "kl"},
            r"no static schedule keeps a quality of 1 with a confidence of 0\.8 \(the best found "
            r"keeps 0\.\d+, on average 0\.\d+, at .* a token instead of .*\); give a lower",
        ),
    ],
)
def test_mistakes_leave_the_artifact_alone(artifact, options, said):
    before = verify(artifact)
    with pytest.raises(InputError, match=said):
        tune(artifact, PROMPTS, **{"quality": 0.5, **OPTIONS, **options})
    assert verify(artifact) == before


def test_an_artifact_of_one_level_is_refused(compile_tiny):
    with pytest.raises(InputError, match="the artifact has one precision level"):
        tune(compile_tiny(bits=8), PROMPTS, **OPTIONS)


def test_a_network_needs_a_cache_of_floats(compile_tiny):
    artifact = compile_tiny(bits=4, cache_bits=8)
    with pytest.raises(InputError, match="looks at a cache of floats, .* with --cache-bits 16"):
        tune(artifact, PROMPTS, learned=True, **OPTIONS)


def test_the_command(artifact, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    words = ["tune", str(artifact), "--prompts", str(tmp_path / "p.txt"), "--quality", "0.5"]
    assert cli.main([*words, "--max-tokens", "16", "--learned"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("static: level 0, ")
    assert "\nlearned: one of " in said
    assert "\ntop      " in said
    assert cli.main(["inspect", str(artifact)]) == 0
    shown = capsys.readouterr().out.split("schedules\n")[1].splitlines()
    assert shown[0].split()[:3] == ["static", "level", "0,"]
    assert "rouge-l " in shown[0]
    assert shown[0].endswith(" a token")
    assert cli.main([*words, "--max-tokens", "16", "--prompts", str(tmp_path / "no.txt")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no such file of prompts at ")
    for quality in ("0", "1.5", "much"):
        with pytest.raises(SystemExit):
            cli.main([*words, "--quality", quality])
        need = f"argument --quality: must be above 0 and at most 1 (got {quality})"
        assert need in capsys.readouterr().err


def test_benchmark_prompts_are_in_pairs():
    found = read_prompts(Path(__file__).parents[2] / "benchmarks" / "prompts.txt")
    assert len(found) >= 60
    assert len(found) % 2 == 0
    assert len(set(found)) == len(found)


def test_schedules_side_by_side(artifact, tmp_path, capsys):
    tune(artifact, PROMPTS, quality=0.85, metric="top1", **OPTIONS)
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    words = ["eval", str(artifact), "--schedules", "--prompts", str(tmp_path / "p.txt")]
    picture, figures = tmp_path / "p.svg", tmp_path / "p.json"
    words += ["--max-tokens", "16", "--picture", str(picture), "--json", str(figures)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "4 held-out prompts, against level 0's answers"
    rows = {row["name"]: row for row in json.loads(figures.read_text())}
    assert [line.split()[0] for line in said[2:]] == list(rows)
    assert {"off", "fixed:1", "fixed:4", "static"} <= set(rows)
    top = rows["off"]
    assert (top["rouge_l"], top["top1"], top["kl"]) == (1, 1, pytest.approx(0, abs=1e-12))
    reads = [rows[f"fixed:{level}"]["bytes"] for level in range(1, 5)]
    assert [top["bytes"], *reads] == sorted([top["bytes"], *reads], reverse=True)
    assert rows["fixed:4"]["kl"] > rows["fixed:1"]["kl"] > 0
    assert all(row["tokens_per_second"] > 0 for row in rows.values())
    evidence = json.loads((artifact / SCHEDULE).read_text())["evidence"]["static"]["held_out"]
    assert rows["static"]["top1"] == pytest.approx(evidence["quality"])
    texts = [node.text for node in ElementTree.parse(picture).iter() if node.tag.endswith("}text")]
    assert set(rows) <= set(texts)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--schedules"], 2, "--schedules needs --prompts"),
        ([], 2, "the following arguments are required: --text"),
        (["--schedules", "--prompts", "no.txt"], 1, "there is no such file of prompts at no.txt"),
        (
            ["--schedules", "--prompts", "no.txt", "--picture", "no/p.svg"],
            1,
            "there is no folder no to write p.svg into",
        ),
    ],
)
def test_what_eval_cannot_do(words, code, said, capsys):
    if code == 2:
        with pytest.raises(SystemExit):
            cli.main(["eval", "artifact", *words])
    else:
        assert cli.main(["eval", "artifact", *words]) == code
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
