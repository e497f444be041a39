"""What the page shows, as plain data: stages, kernels, weights, curves.

title, facts        of the whole
stages              number, name, kind, seconds, and of passes spec, counts, missed, size, figures;
                    functions: text numbers by function; files: text numbers by file name;
                    ops: of each function, see `op_graph.py`; graphs: text numbers of these
steps, calls        which calls compute a variable of the last IR, and what is called
measured            figures of variables of the last IR by kind and function, see `measured.py`
figures             the same by function and kind, and what the compilation itself knows
kernels             what `KernelFacts` and `KernelCode` have; files: their names by what they show
weights             matrices as the dump's stage `weights` has them
decode_bytes        by kernel, at every level
times               if measured: function, and its kernels' microseconds
quality             rows of `morendo eval --json`: bits and KL of every level
texts               compressed (see `texts.py`)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morendo.ir.dump import INDEX
from morendo.ir.errors import InputError

from .explorer import last_figures
from .files import read_json
from .from_dump import from_dump
from .measured import read_errors, read_times
from .op_graph import graph_text, ops_of
from .texts import Texts


@dataclass(frozen=True)
class Figures:
    """Files of what was measured, all of them optional.

    Attributes:
        quality: of `morendo eval --json`, for the curve of bits against KL.
        errors: of `morendo debug --json`, of ops.
        times: of `benchmarks/steps.py --json`, of ops.
    """

    quality: Path | None = None
    errors: Path | None = None
    times: Path | None = None


NOTHING = Figures()


def gather(folder: Path, figures: Figures = NOTHING) -> dict[str, Any]:
    """All that is known of a compilation; `texts` are `Texts`.

    Args:
        folder: a dump, or an artifact.
        figures: what was measured besides.

    Raises:
        InputError: when the folder is neither, or a file of it is damaged.
        ArtifactError: when an artifact is damaged.
    """
    quality = _quality(figures.quality) if figures.quality else []
    texts = Texts()
    if (folder / INDEX).exists():
        data = from_dump(folder, texts)
    else:
        from .from_artifact import from_artifact

        data = from_artifact(folder, texts)
    for stage in data["stages"]:
        where = f"stage {stage['number']} ({stage['name']})"
        stage["ops"] = {
            name: ops
            for name, number in stage["functions"].items()
            if (ops := ops_of(texts[number], f"{where}, function {name}"))
        }
    calls, steps = data["calls"], data["steps"]
    measured = read_errors(figures.errors, calls, steps) if figures.errors else {}
    times = read_times(figures.times, calls) if figures.times else None
    if times:
        measured |= times.of_ops(steps)
        data["times"] = {"function": times.function, "kernels": times.of_kernels()}
    return {**data, "measured": measured, "quality": quality, "texts": texts}


def collect(folder: Path, figures: Figures = NOTHING) -> dict[str, Any]:
    """The data of a page, as JSON can hold them; arguments and errors are those of `gather`."""
    data = gather(folder, figures)
    data["figures"] = last_figures(data)
    texts = data["texts"]
    for stage in data["stages"]:
        ops = stage.pop("ops")
        stage["graphs"] = {name: texts.add(graph_text(each)) for name, each in ops.items()}
    return {**data, "texts": texts.compressed()}


def _quality(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path).get("rows")
    if not isinstance(rows, list):
        raise InputError(f"{path} has no rows", hint="write it with `morendo eval --json FILE`")
    return rows
