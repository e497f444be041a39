"""The passes with formats of several readings: options, figures, tuning of each reading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from morendo.ir.dialect import NORMS, attrs_of
from morendo.ir.errors import InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import TUNED, calls, readings_of, tuned_mark
from morendo.ir.weight_overlay import tuned_name, untuned_name
from morendo.passes.base import parse_spec
from morendo.passes.pipeline import known_passes
from morendo.passes.quantizer.joint_rounding import reading_weights

from .test_tune_scales import calibrate, passes, with_codes

FORMATS = "normalize,quantize-weights{compact=True,readings=43},"


@pytest.fixture(scope="module")
def calibrated(loaded, prose_windows, tmp_path_factory: pytest.TempPathFactory):
    """The module with codes for 4 and 3 bits, and a context with them."""
    folder = tmp_path_factory.mktemp("readings")
    return calibrate(FORMATS, loaded, prose_windows(6), folder, "{compensation=0}")


def made(module, context) -> dict[tuple[str, WeightFormat], tuple]:
    """Codes and figures of every linear that has several readings."""
    linears = [attrs_of(value) for name, value in calls(module) if name == "linear"]
    keys = [(a["weight"], WeightFormat.parse(a["format"])) for a in linears]
    store = context.weights.codes
    return {key: (store.get(*key), store.figures(*key)) for key in keys if key[1].readings}


def test_codes_of_all_layers_have_scales_and_figures_of_both_readings(calibrated) -> None:
    module, context = calibrated
    assert readings_of(module) == (4, 3)
    found = made(module, context)
    assert len(found) == 28  # of four layers; table and head have one reading
    for (_, fmt), (codes, figures) in found.items():
        assert fmt.name == "q4g32cr43"
        assert len(codes.readings) == 2
        assert not np.array_equal(codes.readings[0].scale, codes.readings[1].scale)
        assert figures["feedback"] < figures["feedback_3"] < 16 * figures["feedback"]


def test_every_reading_below_the_limit_is_tuned_with_norms_of_its_own(
    calibrated, prose_windows, tmp_path: Path
) -> None:
    module, context = calibrated
    context = with_codes(context, tmp_path, tuning=prose_windows(24))
    tuning = "tune-scales{steps=12,below_bits=4}"
    after, report = passes(tuning, module, context)
    figures = report.figures["the reading of 3 bits"]
    assert figures["kl_after"] < figures["kl_before"]
    assert report.counts == {"matrices tuned": 28}
    ((where, why),) = report.misses
    assert where == "the reading of 4 bits"
    assert "nested codes have 4." in why
    before = made(module, calibrated[1])
    for key, (codes, marks) in made(module, context).items():
        old = before[key][0]
        assert np.array_equal(codes.codes, old.codes)
        assert np.array_equal(codes.row_scale, old.row_scale)
        assert not np.array_equal(codes.lower[0].row_scale, old.lower[0].row_scale)
        assert tuned_mark(1) in marks and TUNED not in marks
    norms = [attrs_of(value) for name, value in calls(after) if name in NORMS]
    assert norms
    for norm in norms:
        assert norm["lower_weights"] == [tuned_name(norm["weight"], 1)]
        tuned, plain = (context.weights.get(n) for n in (*norm["lower_weights"], norm["weight"]))
        assert 0 < np.abs(tuned / plain - 1).max() < 0.1
    resumed, report = passes(tuning, module, context)
    assert report.counts == {"matrices tuned before": 28}
    assert [attrs_of(v) for n, v in calls(resumed) if n in NORMS] == norms


def test_fine_scales_and_zeros_are_tuned_at_every_reading(
    loaded, prose_windows, tmp_path: Path
) -> None:
    formats = "normalize,quantize-weights{group_size=64,readings=32},"
    module, context = calibrate(formats, loaded, prose_windows(4), tmp_path, "{compensation=0}")
    context.calibration.tuning = prose_windows(16)
    before = made(module, context)
    _, report = passes("tune-scales{steps=6}", module, context)
    assert report.counts == {"matrices tuned": 56}
    assert list(report.figures) == ["the reading of 3 bits", "the reading of 2 bits"]
    for key, (codes, _) in made(module, context).items():
        assert np.array_equal(codes.codes, before[key][0].codes)
        for mine, old in zip(codes.readings, before[key][0].readings, strict=True):
            assert not np.array_equal(mine.scale, old.scale)


def test_names_of_tuned_vectors_say_the_reading() -> None:
    assert [tuned_name("norm", r) for r in range(3)] == ["norm.tuned", "norm.tuned1", "norm.tuned2"]
    assert [untuned_name(tuned_name("a.b", r)) for r in range(3)] == [("a.b", r) for r in range(3)]
    assert untuned_name("norm") is None
    assert untuned_name("norm.tuned.weight") is None


def test_errors_count_less_the_more_bits_are_missing() -> None:
    assert reading_weights((4, 3)) == (1.0, 0.18)
    assert reading_weights((4, 2)) == (1.0, pytest.approx(0.18**2))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("calibrate-weights{order=channels}", "several readings are rounded group by group"),
        ("calibrate-weights{reading_weights=0.5}", r"one for each reading \(got 0.5, 2 readings"),
        ("calibrate-weights{reading_weights=1/0}", "reading_weights are positive"),
        ("calibrate-weights{reading_weights=1/x}", "reading_weights are positive"),
        ("calibrate-weights{reading_weights=1/inf}", "reading_weights are positive"),
    ],
)
def test_bad_options_of_rounding_are_refused(spec: str, match: str, loaded, calibrated) -> None:
    with pytest.raises(InputError, match=match):
        passes(FORMATS + spec, loaded.module, calibrated[1])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("bits=8,readings=43", "only 4-bit codes have several readings"),
        ("readings=4-3", "only 4-bit codes have several readings"),
        ("readings=34", r"falling numbers of bits from 4 to 2 \(got 3,4\)"),
        ("readings=3", r"falling numbers of bits from 4 to 2 \(got 3\)"),
    ],
)
def test_bad_readings_are_refused_before_a_model_is_loaded(options: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        parse_spec(f"quantize-weights{{{options}}}", known_passes())
