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
from tests.frontend.families import COMPILED, FAMILIES, LEAST_BITS, PRECISIONS
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
All of them are also compiled to machine code for the CPU that runs the tests
([test](../tests/e2e/test_families.py)): at `f32`, where logits differ from those of transformers by
less than 1e-4 (times the largest logit, where that is above 1), and at 8 bits, at 4 bits and with a
budget of 3 bits ({least}), which is calibrated on text that the
model writes and tuned. Those are compared
with transformers' model that holds the rounded weights of the artifact, so that only what is
computed counts, not what rounding costs: the difference is below 5 % of the logits' norm, mostly
2 %, since activations have 8 bits. "always" means by `make test`, "yes" by `make test-all` alone.

{tested}

Two trained models, both of the Llama family, are tested by what they say:

- A [tiny llama](../tests/models/tiny_llama) at `f32`, `f16`, 8 and 4 bits
  ([test](../tests/e2e/test_tiny.py)), and with a budget of 2, 3 and 4 bits
  ([test](../tests/quantizer/test_promotion.py)).
- SmolLM2-135M-Instruct at `f32`, where it says the same text as transformers, and at 4 bits
  ([test](../tests/e2e/test_smollm2.py)).

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
        least=", ".join(f"{bits:g} for `{name}`" for name, bits in LEAST_BITS.items()),
        tokens=SCORED + PREFILLED + DECODED,
        scored=SCORED,
        prefilled=PREFILLED,
        decoded=DECODED,
        tolerance=TOLERANCE,
    )


def _tested() -> str:
    header = ("model", "graph", "`f32`", "8 bits", "4 bits", "budget of 3 bits")
    rows = (
        (_model(name), "always", *(_how_often(name, precision) for precision in PRECISIONS))
        for name in sorted(FAMILIES, key=lambda name: (FAMILIES[name][0], _is_variant(name)))
    )
    return _table(header, rows)


def _model(name: str) -> str:
    """A family, or one of its models that is unlike the usual one."""
    kind = FAMILIES[name][0]
    variant = name.removeprefix(f"{kind}_").replace("_", " ")
    return f"`{kind}` with {variant}" if _is_variant(name) else f"`{kind}`"


def _is_variant(name: str) -> bool:
    kind = FAMILIES[name][0]
    return name != next(other for other in FAMILIES if FAMILIES[other][0] == kind)


def _how_often(name: str, precision: str) -> str:
    return "always" if name in COMPILED[precision] else "yes"


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
