"""Options of `morendo.compile` that have another type are refused before a model is read."""

import pytest

import morendo
from morendo.ir.errors import CompileError, InputError


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ({"model": 5}, "model must be a text or a path .got 5."),
        ({"out": 5}, "out must be a text or a path .got 5."),
        ({"dump_ir": True}, "dump_ir must be a text or a path .got True."),
        ({"passes": 5}, "passes must be a text or a path .got 5."),
        ({"calibrate": ["a", 5]}, "calibrate must be a text or a path .got 5."),
        ({"context": 2.5}, "context must be an integer .got 2.5."),
        ({"chunk": None}, "chunk is missing"),
        ({"chunk": "a"}, "chunk must be an integer .got 'a'."),
        ({"average_bits": "3"}, "average_bits must be a number .got '3'."),
        ({"size_mb": True}, "size_mb must be a number .got True."),
        ({"prune_importance": 1}, "prune_importance must be text .got 1."),
        ({"search_scales": "no"}, "search_scales must be"),
        ({"prune_importance": "first"}, "no tokens are pruned by their importance .got 'first'."),
        ({"group_size": "a"}, "group_size must be an integer .got 'a'."),
        ({"calibration_windows": "a"}, "calibration_windows must be an integer .got 'a'."),
    ],
)
def test_a_wrong_type_is_refused(option, match, tmp_path):
    with pytest.raises(InputError, match=match):
        morendo.compile(**{"model": "none", "out": tmp_path / "out", **option})


def test_halves_are_refused_where_nothing_multiplies_them(tmp_path):
    with pytest.raises(CompileError, match="no kernels that multiply halves .* at target x86"):
        morendo.compile("none", "x86", out=tmp_path / "out", activations=16)
