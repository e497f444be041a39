"""`morendo verify`: whether an artifact is whole, and one number that tells which one it is."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from morendo.progress import make_progress
from morendo.terminal import paint, size

_DESCRIPTION = """\
Compare every file of an artifact with the checksums in its manifest, and print one SHA-256 that
stands for all of it (that of the manifest, which lists the others).

An artifact's model.so is a program: `run`, `eval` and mr_open execute it with your rights. The
checksums show damage; whether the artifact is the one that somebody made shows only a digest that
you got from them by another way: give it with --sha256, before the first run.

Opening an artifact compares sizes and the small files; only this command reads all weights."""

_EPILOG = """\
examples:
  morendo verify my-model                    print the digest, to publish it with the artifact
  morendo verify my-model --sha256 5f2c...   exit code 0 if it is that artifact, else 1"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `verify`."""
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="check every byte of an artifact, and print its digest",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", type=Path, metavar="DIR", help="an artifact directory")
    parser.add_argument("--sha256", type=_digest, metavar="H", help="the digest that it must have")
    parser.add_argument("--quiet", "-q", action="store_true", help="no progress and no summary")
    parser.set_defaults(run=_verify)


def _digest(text: str) -> str:
    digest = text.strip().lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise argparse.ArgumentTypeError("a SHA-256 has 64 hexadecimal digits")
    return digest


def _verify(arguments: argparse.Namespace) -> int:
    from morendo.ir.errors import ArtifactError
    from morendo.runtime.artifact import read_manifest
    from morendo.runtime.verify import unlisted_files, verify

    manifest = read_manifest(arguments.artifact)
    files = manifest["files"]
    with make_progress(quiet=arguments.quiet) as progress:
        with progress.task("check files", len(files)) as advance:
            digest = verify(arguments.artifact, advance)
    if arguments.sha256 not in (None, digest):
        raise ArtifactError(
            f"this is another artifact (got {digest}, need {arguments.sha256})",
            where=str(arguments.artifact),
            hint="do not run it unless you trust where it comes from",
        )
    print(digest)
    for name in unlisted_files(arguments.artifact, manifest):
        text = f"note: {name} is not listed and not part of the digest"
        print(paint(text, "yellow", sys.stderr), file=sys.stderr)
    if not arguments.quiet:
        total = size(sum(entry["bytes"] for entry in files.values()))
        print(f"{len(files)} files, {total}: as the manifest lists them", file=sys.stderr)
    return 0
