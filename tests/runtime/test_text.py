"""What a session remembers, handed over to another session."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from morendo.ir.errors import InputError
from morendo.runtime.executor import CExecutor
from morendo.runtime.split import SplitExecutor


@pytest.fixture
def pair(toy_artifact: Path):
    made = CExecutor(toy_artifact, threads=1), CExecutor(toy_artifact, threads=1)
    yield made
    for each in made:
        each.close()


def test_a_session_goes_on_from_the_text_of_another(pair: tuple[CExecutor, CExecutor]) -> None:
    first, second = pair
    second.prefill([3, 3, 3, 3])
    first.prefill([1, 2, 3])
    second.set_text(first.text())
    assert second.position == 3
    assert second.text() == first.text()
    np.testing.assert_array_equal(second.decode(2), first.decode(2))


@pytest.mark.parametrize("damage", ["short", "layout", "position", "empty"])
def test_texts_of_other_models_are_refused(damage: str, pair: tuple[CExecutor, CExecutor]) -> None:
    first, second = pair
    first.prefill([1, 2, 3])
    good = first.text()
    text = {
        "short": good[:-1],
        "layout": bytes([good[0] ^ 1]) + good[1:],
        "position": good[:8] + struct.pack("=q", first.context + 1) + good[16:],
        "empty": b"",
    }[damage]
    second.prefill([2])
    before = second.text()
    with pytest.raises(InputError, match=r"the text is of a model with another cache \(\d+ bytes"):
        second.set_text(text)
    assert second.text() == before


def test_one_reads_prompts_and_the_other_goes_on(pair: tuple[CExecutor, CExecutor]) -> None:
    split, alone = SplitExecutor(pair[1], pair[0]), pair[0]
    steps = [split.prefill([1, 2]).copy(), split.decode(3).copy(), split.prefill([2, 1]).copy()]
    alone.set_position(0)
    same = [alone.prefill([1, 2]).copy(), alone.decode(3).copy(), alone.prefill([2, 1]).copy()]
    np.testing.assert_array_equal(steps, same)
    assert split.position == alone.position == 5
