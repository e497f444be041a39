"""The command line: `entry.py` is the `morendo` command, each sub-command has a file of its own."""

from .entry import main, make_parser

__all__ = ["main", "make_parser"]
