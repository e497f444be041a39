"""What the machine that compiles can do, for `--target native`."""

from __future__ import annotations

from pathlib import Path


def cpu_flags() -> set[str]:
    """The flags of this machine's CPU as its kernel spells them; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
