"""Write docs/models.md from the lists that the tests run.

    python tools/make_models_table.py --write
    python tools/make_models_table.py > docs/models.md

A test compares the document with what this prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

# The lists are in tests/, which nothing installs.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from morendo.float_check import DECODED, PREFILLED, SCORED, TOLERANCE
from morendo.frontend.families import TESTED
from tests.frontend.families import COMPILED, FAMILIES, QUANTIZED
from tests.frontend.refused import MORE_THAN_TEXT, REFUSED

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "models.md"

_PAGE = """\
# Models

No list decides whether a model compiles: its exported graph does. This page says what the tests
run, and is made from their lists by `python tools/make_models_table.py --write`. A family is called
what `model_type` calls it in the `config.json` of Hugging Face.

## What is tested

The graph of each of these {families} families, in float32, has the logits of transformers (within
1e-4, absolute and relative) on a tiny random model ([test](../tests/frontend/test_families.py)).
Some are also compiled to machine code for the CPU that runs the tests
([test](../tests/e2e/test_families.py)): `f32` artifacts differ by less than 1e-4 (times the largest
logit, where that is above 1), 8-bit ones by less than 5 % of the logits' norm. An empty cell means
that no test compiles it so, not that it fails.

{tested}

Two trained models, both of the Llama family, are compiled at more precisions:

- A [tiny llama](../tests/models/tiny_llama) at `f32`, `f16`, 8 and 4 bits
  ([test](../tests/e2e/test_tiny.py)), and with a budget of 2, 3 and 4 bits
  ([test](../tests/calibration/test_promotion.py)).
- SmolLM2-135M-Instruct at `f32`, where it says the same text as transformers, and at 4 bits
  ([test](../tests/e2e/test_smollm2.py)).

So no family but Llama is tested as an artifact of 4 bits or of a budget.
[GGUF files](gguf.md) and [ONNX models](onnx.md) have pages of their own.

## What is refused

Each of these ends in one line that says what it was refused for. A test refuses the families of the
second column ([test](../tests/frontend/test_refused_families.py)); those of the third were refused
for the same reason when they were tried.

{refused}

## Every other family

A family of transformers that is in neither table compiles if its graph consists of what morendo
knows, and a note says that it is not among the tested ones; otherwise it is refused as above. Then,
or whenever you want to be sure:

```sh
morendo compile path/to/model --check
```

`--check` first imports the model and runs its graph in numpy and transformers' own model in torch,
both in float32, on {tokens} random tokens: {scored} scored, {prefilled} prefilled and {decoded}
decoded over one cache. Where a logit differs by more than {tolerance:g} of the largest one, nothing
is compiled. This finds an import or a pass of `--bits f32` that changes the function; what rounding
and machine code cost, [`morendo eval`](quality.md) measures. It takes 4 bytes of memory for each
weight (5 GB for 1.2 billion) and reads GGUF files too. An ONNX model is refused, because
transformers cannot run it.
"""


def page() -> str:
    """The whole document."""
    return _PAGE.format(
        families=len(TESTED),
        tested=_tested(),
        refused=_refused(),
        tokens=SCORED + PREFILLED + DECODED,
        scored=SCORED,
        prefilled=PREFILLED,
        decoded=DECODED,
        tolerance=TOLERANCE,
    )


def _tested() -> str:
    header = ("family", "graph", "artifact, `f32`", "artifact, 8 bits")
    return _table(
        header,
        (
            (f"`{kind}`", *(_variants(kind, names) for names in (FAMILIES, COMPILED, QUANTIZED)))
            for kind in TESTED
        ),
    )


def _variants(kind: str, names: Iterable[str]) -> str:
    """Which models of a family are among those named: `yes` is the usual one."""
    ours = [name for name in FAMILIES if FAMILIES[name][0] == kind]
    return ", ".join(
        "yes" if name == ours[0] else "with " + name.removeprefix(f"{kind}_").replace("_", " ")
        for name in ours
        if name in names
    )


def _refused() -> str:
    rows = [(one.why, _codes([one.kind]), _codes(one.alike)) for one in REFUSED]
    rows.append(("images or sound beside text", _codes(MORE_THAN_TEXT), ""))
    return _table(("why", "tested with", "also, when tried"), rows)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|" for row in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/models.md, not printed")
    if parser.parse_args().write:
        DOCUMENT.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
