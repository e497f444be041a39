"""What was measured, on disk: a search that was interrupted goes on where it ended."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from morendo.codegen.build_cache import user_cache
from morendo.runtime.artifact import SCHEDULE


def store_path(manifest: dict[str, Any], facts: dict[str, Any]) -> Path:
    """The file of what is measured of an artifact.

    Args:
        manifest: of the artifact; its files count, but for its schedules.
        facts: what else the figures depend on.
    """
    files = {name: e["sha256"] for name, e in manifest["files"].items() if name != SCHEDULE}
    text = json.dumps([files, facts], sort_keys=True)
    return user_cache() / "tuning" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.jsonl"


class Store:
    """Values by texts, one JSON line for each.

    Args:
        path: the file; it need not exist. None keeps nothing on disk.

    Attributes:
        problem: why values could not be kept on disk; "" when they could.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.problem = path, ""
        self._values: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def get(self, key: str) -> Any:
        """The value, or None."""
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a value; on disk, if that works (see `problem`)."""
        self._values[key] = value
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, value]) + "\n")
        except OSError as error:
            self.problem = f"{error.strerror or error} in {self.path.parent}"

    def _read(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                continue  # the line that an end without warning left
            self._values[key] = value
