"""Times of a compilation as a table, and its statistics as lines of JSON."""

import json

from morendo.compile_stats import json_lines, print_times
from morendo.progress import Progress, Spent

SPENT = [
    Spent("load", 0, 2.0),
    Spent("normalize", 1, 0.5),
    Spent("quantize-weights", 1, 0.25),
    Spent("passes", 0, 1.0),
    Spent("link", 0, 4.0),
]


def test_progress_notes_what_work_took():
    progress = Progress()
    with progress.task("outer"):
        progress.took("inside", 1.5)
        with progress.task("inner"):
            pass
    with progress.task("next"):
        pass
    found = [(s.title, s.depth) for s in progress.spent]
    assert found == [("inside", 1), ("inner", 1), ("outer", 0), ("next", 0)]
    assert progress.spent[0].seconds == 1.5


def test_times_are_a_table_with_the_parts_below_the_whole():
    lines = print_times(SPENT, 8.0).splitlines()
    titles = [line[: line.index(".") - 1].rstrip(" 0123456789") for line in lines[-7:]]
    assert titles == [
        "load",
        "passes",
        "  normalize",
        "  quantize-weights",
        "link",
        "the rest",
        "all",
    ]
    assert lines[-6].split() == ["passes", "1.00", "12", "%"]
    assert lines[-2].split() == ["the", "rest", "1.00", "12", "%"]


def test_statistics_are_lines_of_json(compiled):
    lines = [json.loads(line) for line in json_lines(compiled[0], SPENT, 8.0).splitlines()]
    events = [line["event"] for line in lines]
    assert [e for i, e in enumerate(events) if e not in events[:i]] == [
        "time", "pass", "weights", "artifact",
    ]  # fmt: skip
    assert lines[1] == {"event": "time", "task": "passes", "depth": 0, "seconds": 1.0}
    whole = lines[-1]
    assert whole["bytes"] == sum(
        p.stat().st_size for p in compiled[0].iterdir() if p.name in whole["files"]
    )
    assert sum(line["bytes"] for line in lines if line["event"] == "weights") > 0
