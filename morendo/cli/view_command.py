"""`morendo view`: one page that shows what the compiler did."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.ir.printable import printable
from morendo.terminal import size

from .parser import whole_number

if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler

_DESCRIPTION = """\
Write one HTML file that shows a compilation: the passes with what they counted, missed, took and
saved; the IR of every function beside that of another pass, with the differences; kernels as TIR
and as assembly; weights with the bits of their groups. It needs no network, any browser opens it.

DIR is a dump (`morendo compile MODEL --dump-ir DIR`) or an artifact, which shows less: it has the
IR after the last pass alone, and no histograms of weights. In the page, j and k step through the
passes, g shows the graph, and / searches.

With --model-explorer the graphs of all passes are written for Google's Model Explorer instead
(pip install "morendo[model-explorer]" has it), with figures of the ops in files beside it."""

_EPILOG = """\
examples:
  morendo compile ./model --dump-ir ir --out my-model
  morendo view ir                                    writes ir/view.html
  morendo view ir -o page.html --quality eval.json   with a curve of bits against KL
  morendo view my-model --serve                      show an artifact at http://127.0.0.1:8777
  morendo view ir --model-explorer graphs.json       for `model-explorer graphs.json`"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `view`."""
    parser = commands.add_parser(
        "view",
        parents=[common],
        help="write a page that shows what the compiler did",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a dump or an artifact")
    add("--out", "-o", type=Path, metavar="FILE", help="default: view.html, in a dump")
    add(
        "--quality",
        type=Path,
        metavar="FILE",
        help="figures that `morendo eval --json FILE` wrote, shown as a curve",
    )
    add(
        "--errors",
        type=Path,
        metavar="FILE",
        help="lines that `morendo debug --json` printed, shown at the ops",
    )
    add(
        "--times",
        type=Path,
        metavar="FILE",
        help="seconds that benchmarks/steps.py --json FILE wrote, shown at the ops",
    )
    add(
        "--model-explorer",
        type=Path,
        metavar="FILE",
        help="write graphs for Model Explorer, and files of figures beside FILE; no page",
    )
    add("--serve", action="store_true", help="show it at a local address, write nothing")
    add("--port", type=whole_number(0, 65535), default=8777, help="for --serve (default: 8777)")
    parser.set_defaults(run=_view, refuse=parser.error)


def _view(arguments: argparse.Namespace) -> int:
    from morendo.ir.errors import InputError
    from morendo.progress import make_progress
    from morendo.view import Figures, collect, gather, write_page

    if arguments.model_explorer and (arguments.serve or arguments.out):
        arguments.refuse("--model-explorer writes no page: leave out --out and --serve")
    if arguments.model_explorer and not _can_hold_files(arguments.model_explorer):
        arguments.refuse(f"--model-explorer needs a file's name (got '{arguments.model_explorer}')")
    if not arguments.folder.is_dir():
        raise InputError(
            f"there is no folder {arguments.folder}", hint="name a dump or an artifact"
        )
    figures = Figures(arguments.quality, arguments.errors, arguments.times)
    with make_progress() as progress, progress.task("read"):
        data = (gather if arguments.model_explorer else collect)(arguments.folder, figures)
        if problem := data["facts"].get("not shown"):
            progress.note(f"note: not shown are {problem}")
    if arguments.model_explorer:
        return _explore(data, arguments.model_explorer)
    page = write_page(data)
    if arguments.serve:
        return _serve(page, arguments.port)
    out = arguments.out or _place(arguments.folder)
    out.write_text(page, encoding="utf-8")
    print(f"wrote {printable(str(out))}: {size(len(page))}; open it in a browser")
    return 0


def _can_hold_files(place: Path) -> bool:
    """Whether it could be a file in a folder that is there."""
    return bool(place.name) and place.parent.is_dir() and not place.is_dir()


def _explore(data: dict[str, Any], out: Path) -> int:
    from morendo.view import write_explorer

    graphs, *node_data = map(printable, map(str, write_explorer(data, out)))
    print(f"wrote {graphs} and figures of its ops: {', '.join(node_data) or 'none'}")
    paths = f" --node_data_paths {','.join(node_data)}" if node_data else ""
    print(f"open it: model-explorer {graphs}{paths}")
    return 0


def _place(folder: Path) -> Path:
    """Beside an artifact, not in it: its files are listed in its manifest."""
    from morendo.ir.dump import INDEX

    if (folder / INDEX).exists():
        return folder / "view.html"
    return folder.absolute().with_name(f"{folder.absolute().name}.view.html")


def _serve(page: str, port: int) -> int:
    from http.server import ThreadingHTTPServer

    with ThreadingHTTPServer(("127.0.0.1", port), handler_of(page)) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
        server.serve_forever()
    return 0


def handler_of(page: str) -> type[BaseHTTPRequestHandler]:
    """What answers requests: the page at /, nothing else, and only under a local name."""
    from http.server import BaseHTTPRequestHandler

    content = page.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").partition(":")[0]
            found = self.path == "/" and host in ("127.0.0.1", "localhost")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests for one page are no news."""

    return Handler
