"""`morendo inspect`: what is in an artifact."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from morendo.terminal import paint, size, table


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `inspect`."""
    parser = commands.add_parser(
        "inspect",
        parents=[common],
        help="show what is in an artifact",
        description="Show an artifact's model, target, weight formats, sizes and passes.",
        epilog="examples:\n  morendo inspect my-model\n"
        "  morendo inspect my-model --json | python3 -m json.tool\n"
        "  morendo inspect my-model --plan | less       every kernel call and its buffers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", type=Path, metavar="DIR", help="an artifact directory")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the manifest, for scripts")
    form.add_argument("--plan", action="store_true", help="the kernel calls of every function")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from morendo.runtime.artifact import read_manifest, read_plan

    if arguments.plan:
        from morendo.runtime.printing import print_plan

        sys.stdout.write(print_plan(read_plan(arguments.artifact)))
        return 0
    manifest = read_manifest(arguments.artifact)
    if arguments.json:
        json.dump(manifest, sys.stdout, indent=1)
        print()
        return 0
    print(_overview(manifest, arguments.artifact))
    return 0


def _overview(manifest: dict[str, Any], artifact: Path) -> str:
    title = paint(str(artifact), "bold", sys.stdout)
    files = [(name, size(entry["bytes"])) for name, entry in manifest["files"].items()]
    return f"{title}\n{table(files)}"
