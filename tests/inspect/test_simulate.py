"""`morendo simulate`: the model of a machine's time, on numbers that can be done by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from morendo.cli.entry import main
from morendo.ir.errors import InputError
from morendo.runtime import session
from morendo.runtime.artifact import read_plan
from morendo.runtime.stats import LevelRuns, Stats
from morendo.simulate import (
    Answer,
    DeviceDescription,
    LinearWork,
    StepWork,
    float16_work,
    plan_work,
    predict,
    predict_run,
    read_device,
    run,
)
from morendo.targets.hexagon import target

DESCRIBED = Path(target.__file__).parent / "npu.toml"
TEXT = """
name = "toy"
sources = "made up"
bandwidth = 40
clock = 1.5
cycles_per_packet = 2.05
vector_units = 6
on_chip_bytes = 8388608
call_microseconds = 0
elements_per_packet = 0.5
[products]
2 = 40
3 = 30
4 = 20
8 = 60
many = 70.5
float16 = 32
attention = 4
"""


def device(**changes) -> DeviceDescription:
    """A machine that reads 10^9 bytes and makes 10^9 packets a second on each of two units."""
    products = {"4": 10, "2": 20, "many": 40, "float16": 5, "attention": 2}
    one = DeviceDescription("toy", "made up", 1.0, 2.0, 2.0, 2, 4000, 0.0, products, 1.0)
    return dataclasses.replace(one, **changes)


WORK = StepWork((LinearWork({"4": 5e6, "2": 5e6}, 3e6, 1000),), 1e5, 200, 100)


def step(**changes) -> float:
    """Seconds of one decode step behind 9 positions."""
    return predict(device(**changes), lambda _: WORK, Answer(9, 2, 8)).decode


def test_a_step_takes_as_long_as_the_slower_of_memory_and_packets():
    attention = 64 * 200 / 2 / 1e9 / 2  # of 10 positions, a chunk on two units
    others = 1e-4 + attention  # elements on one unit
    assert step() == pytest.approx(3e-3 + others)  # 0.75 M packets on two units take less
    packets = 5e6 / 10 + 5e6 / 20
    assert step(cycles_per_packet=20.0) == pytest.approx(packets * 1e-8 / 2 + 1e-3 + 10 * attention)


def test_what_does_not_fit_beside_the_units_is_read_first():
    assert step(on_chip_bytes=3999) - step() == pytest.approx(7.5e5 * 1e-9 / 2)


def test_the_call_is_added_to_every_step():
    assert step(call_microseconds=50.0) - step() == pytest.approx(5e-5)


def test_a_prompt_is_read_in_chunks_by_the_kernels_of_many_tokens():
    work = StepWork((LinearWork({"4": 4e6}, 1e6, 10),), 0, 0, 0)
    found = predict(device(), lambda _: work, Answer(10, 2, 8))
    first, second = 8 * 4e6 / 40 / 2e9, 2 * 4e6 / 40 / 2e9
    assert found.prefill == pytest.approx(max(first, 1e-3) + max(second, 1e-3))
    assert (found.steps, found.nbytes, found.memory_bound) == (1, 1e6, 1.0)
    assert found.tokens_per_second == pytest.approx(1e3)
    assert found.seconds == found.prefill + found.decode


def test_float16_reads_two_bytes_a_weight():
    half = float16_work(WORK, cache_item_bytes=1)
    (linear,) = half.linears
    assert (linear.weights, linear.nbytes) == ({"float16": 1e7}, 2e7)
    assert linear.piece_bytes == pytest.approx(2e7 * 1000 / 3e6)
    assert half.cached_bytes == 200


@pytest.fixture
def artifact(compiled: tuple[Path, Path]) -> Path:
    """One with levels, for this machine."""
    return compiled[0]


def test_the_work_of_a_plan_is_that_of_its_levels(artifact: Path):
    plan = read_plan(artifact)
    works = [plan_work(plan, level) for level in range(plan.levels)]
    steps = [step for step in plan.functions["decode"] if step.weights]
    for level, work in enumerate(works):
        assert sum(each.nbytes for each in work.linears) == sum(s.reads[level] for s in steps)
        assert sum(each.count for each in work.linears) == sum(s.weights for s in steps)
    bits = [{kind for each in work.linears for kind in each.weights} for work in works]
    assert "4" in bits[0]
    assert "2" in bits[-1]
    assert works[0].cached_bytes == plan.cache_bytes / plan.context
    attended = sum("attention" in plan.kernels[step.kernel] for step in plan.functions["decode"])
    assert attended and works[0].attended % (2 * attended) == 0


def test_the_command_compares_levels(artifact: Path, tmp_path: Path, capsys):
    described = tmp_path / "npu.toml"
    described.write_text(TEXT)
    asked = ["simulate", str(artifact), "--npu", str(described), "--tokens", "9"]
    assert main(asked) == 0
    assert "A model, not a measurement" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found)[:2] == ["float16", "level 0"]
    read = [one["nbytes"] for one in found.values()]
    assert read == sorted(read, reverse=True)
    assert len(set(read)) > 2


def test_stats_of_an_emulated_run_predict_the_machine(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    stats = Stats(prompt_tokens=3, decode_tokens=3, levels=LevelRuns([[0, 1], [1, 2]]))
    assert predict_run(artifact, stats) is None  # no machine is described
    described = tmp_path / "npu.toml"
    described.write_text(TEXT)
    monkeypatch.setattr(run, "described_machine", lambda artifact: described)
    assert predict_run(artifact, Stats(prompt_tokens=3)) is None
    plan = read_plan(artifact)
    works = [plan_work(plan, level) for level in (0, 0, 1, 1)]
    expected = predict(read_device(described), works.__getitem__, Answer(3, 4, plan.chunk))
    assert predict_run(artifact, stats) == (read_device(described), expected)
    monkeypatch.setattr(session, "emulation_of", lambda manifest: "qemu runs it here, slowly")
    asked = ["run", str(artifact), "a", "--max-tokens", "4", "--ignore-eos", "--stats"]
    assert main(asked) == 0
    assert re.search(
        r"predicted for toy: [\d.]+ tokens/s, [\d.]+ M packets a token, prefill [\d.]+ s .a model",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "describes no machine; describe one: --npu FILE.toml"),
        (("--npu", "DESCRIBED", "--prompt", "9999"), r"not fit the context .got 9999 \+ 128 "),
    ],
)
def test_what_cannot_be_simulated_is_refused(artifact: Path, options, message, capsys):
    options = [str(DESCRIBED) if each == "DESCRIBED" else each for each in options]
    assert main(["simulate", str(artifact), *options]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock = 1.5", "", "the description lacks clock at "),
        ("clock = 1.5", "clock = 1.5\nclocks = 2", "has an unknown clocks"),
        ("clock = 1.5", "clock = 0", "bad clock .got 0, need a number above 0"),
        ("clock = 1.5", "clock = true", "bad clock .got True, need a number"),
        ("clock = 1.5", "clock = inf", "bad clock .got inf, need a number"),
        ("vector_units = 6", "vector_units = 1.5", "bad vector_units .got 1.5, need a whole"),
        ("many = 70.5", 'many = "x"', r"bad products.many .got 'x', need a number above 0"),
        ("clock = 1.5", "clock =", "this is no TOML file: "),
        ('name = "toy"', "name = 3", "bad name .got 3, need a text"),
    ],
)
def test_a_bad_description_is_refused(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "npu.toml"
    assert old in TEXT
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_device(path)


def test_a_description_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(InputError, match=f"description cannot be read .{why}.*--npu"):
            read_device(path)


def test_the_description_of_a_target_is_one() -> None:
    assert target.make("hexagon:v73").described == DESCRIBED
    assert read_device(DESCRIBED).vector_units > 1


def test_weights_that_nobody_measured_are_refused():
    with pytest.raises(InputError, match="toy has no products for 5 .got 4, 2, "):
        device().products_of("5")
