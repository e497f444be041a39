"""An artifact with some of its files exchanged, such as its schedules; whole at every moment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from morendo.ir.errors import ArtifactError
from morendo.runtime.artifact import create_artifact, read_manifest
from morendo.runtime.verify import check_files, unlisted_files


def amend_artifact(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Exchange or add files of an artifact and list them in its manifest.

    The artifact is written anew beside its place and renamed. Files that stay are hard links, or
    copies where the disk has none, with the checksums that they were given when they were made:
    whoever has the artifact open keeps the old one.

    Args:
        directory: the artifact.
        files: contents by name.

    Raises:
        ArtifactError: when it is damaged or cannot be written; it is then as it was.
    """
    source = Path(directory)
    manifest = read_manifest(source)
    check_files(source, manifest)
    stay = {name: entry for name, entry in manifest["files"].items() if name not in files}
    with create_artifact(source) as writer:
        try:
            for name in stay:
                take_over(source / name, writer.path / name)
            for name, content in files.items():
                (writer.path / name).write_bytes(content)
            writer.finish(manifest, stay)
            for name in unlisted_files(source, manifest):  # a person's own, such as notes
                if name not in files:
                    take_over(source / name, writer.path / name)
        except OSError as error:
            message = f"cannot write the artifact ({error.strerror})"
            raise ArtifactError(message, where=str(source)) from error


def take_over(source: Path, place: Path) -> None:
    """Make `place` a hard link to a file, or a copy where the disk has none; a folder is copied."""
    if source.is_dir():
        shutil.copytree(source, place, symlinks=True)
        return
    try:
        os.link(source.resolve(), place)
    except OSError:
        shutil.copy2(source, place)
