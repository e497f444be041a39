"""Damage that a manifest agrees with: what the readers of a file must notice themselves."""

import hashlib
import json
from pathlib import Path


def relist(artifact: Path) -> None:
    """Make the manifest list the files as they are now."""
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(artifact.iterdir())
        if file != path
    }
    path.write_text(json.dumps(manifest))
