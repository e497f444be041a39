"""What integers and dropped tokens cost: activations x pruned tokens x bits of the cache.

    python benchmarks/integers.py MODEL quality --text GLOSSARY.txt
    python benchmarks/integers.py MODEL times --prompts 512,2048,4000

`quality` compiles every combination and scores the tokens behind a prompt, the same for all; it
appends each to results/integers.json, so that an interrupted run goes on, and prints a table.
`times` computes the same prompts with every share of pruned tokens in turn, and prints CPU seconds
of one thread, the best of some rounds: other programs disturb these less than time on the wall.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import morendo
from morendo.quality import evaluate

CACHES, SHARES = ("16", "8", "4"), ("0", "0.05", "0.1", "0.2")
RESULTS = Path("results")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("what", choices=["quality", "times"])
    parser.add_argument("--bits", default="8")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--prompt", type=int, default=768, help="tokens of a window: not scored")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--activations", default="8,4,mixed")
    parser.add_argument("--caches", default=",".join(CACHES))
    parser.add_argument("--shares", default=",".join(SHARES))
    parser.add_argument("--importance", default="first", help="of tokens: first or received")
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--prompts", default="512,2048,4000", help="tokens, for times")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def compiled(options: argparse.Namespace, variant: tuple[str, str, str], folder: Path) -> Path:
    """The artifact of (activations, share, cache)."""
    activations, share, cache = variant
    return morendo.compile(
        options.model,
        bits=int(options.bits),
        out=folder / "-".join(variant),
        context=4096,
        chunk=options.chunk,
        activations=activations if activations == "mixed" else int(activations),
        prune_tokens=float(share),
        prune_importance=options.importance if float(share) else None,
        cache_bits=int(cache),
    )


def quality(options: argparse.Namespace) -> None:
    """Score every combination that results/integers.json does not have yet."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "integers.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    text = options.text.read_text(encoding="utf-8")
    setting = f"{options.bits} {options.window} {options.prompt} {options.windows} {options.chunk}"
    for variant in variants(options):
        measure = [options.importance] * (options.importance != "first" and variant[1] != "0")
        key = " ".join([setting, *variant, *measure])
        if key not in done:
            with TemporaryDirectory() as folder:
                report = evaluate(
                    compiled(options, variant, Path(folder)),
                    text,
                    reference=options.model,
                    window=options.window,
                    windows=options.windows,
                    prompt=options.prompt,
                    levels=[0],
                    threads=options.threads,
                )
            done[key] = report.to_dict()["rows"]
            path.write_text(json.dumps(done, indent=1))
        exact, row = (each["score"] for each in done[key])
        worse = 100 * (row["perplexity"] / exact["perplexity"] - 1)
        print(
            f"| {' | '.join(variant)} | {row['kl_mean']:.4f} ± {row['kl_error']:.4f} "
            f"| {worse:+.2f} % | {100 * row['top1']:.1f} % |",
            flush=True,
        )


def variants(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """(activations, share, cache) in the order of the table."""
    named = (options.activations, options.shares, options.caches)
    yield from itertools.product(*(names.split(",") for names in named))


def times(options: argparse.Namespace) -> None:
    """Prefill with 8-bit activations and each share and cache, all in turn."""
    prompts = [int(tokens) for tokens in options.prompts.split(",")]
    ids = np.random.default_rng(0).integers(10, 1000, max(prompts))
    with TemporaryDirectory() as folder:
        found = [v for v in variants(options) if v[0] == "8"]
        sessions = [morendo.load(compiled(options, v, Path(folder)), threads=1) for v in found]
        print(f"| share | cache | {' | '.join(f'{tokens} tokens' for tokens in prompts)} |")
        best = {(v, tokens): float("inf") for v in found for tokens in prompts}
        for tokens, _ in itertools.product(prompts, range(options.rounds)):
            for variant, session in zip(found, sessions, strict=True):
                session.executor.set_position(0)
                start = time.process_time()
                session.executor.prefill(ids[:tokens])
                spent = time.process_time() - start
                best[variant, tokens] = min(best[variant, tokens], spent)
        for variant in found:
            cells = [f"{best[variant, tokens] * 1e3:.0f} ms" for tokens in prompts]
            print(f"| {variant[1]} | {variant[2]} | {' | '.join(cells)} |")


def main() -> None:
    options = parse_options()
    {"quality": quality, "times": times}[options.what](options)


if __name__ == "__main__":
    main()
