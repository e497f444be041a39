"""Compiling for a second machine with the weights of an artifact: the same bytes in one file.

The graph that the artifact's passes left is lowered again, for the other machine with the layout of
the first, so that weights, and caches of keys and values, lie alike: one machine can read a prompt
and the other answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.codegen.lowering import Options, Program
from morendo.codegen.target import Target
from morendo.frontend import LoadedModel
from morendo.ir.errors import ArtifactError, CompileError, InputError
from morendo.ir.layout import TileLayout
from morendo.ir.text import parse_module
from morendo.provenance import difference
from morendo.runtime.amend import take_over
from morendo.runtime.arguments import as_path
from morendo.runtime.artifact import GRAPH, WEIGHT_LIST, WEIGHTS, ArtifactWriter, read_manifest
from morendo.runtime.verify import check_digests, check_files

if TYPE_CHECKING:
    import tvm

_SHARED = (GRAPH, WEIGHT_LIST, WEIGHTS)
_PLACES = ("names", "rows", "columns", "format", "transposed", "interleaved", "order", "offsets")


@dataclass(frozen=True)
class SharedWeights:
    """The artifact that has them.

    Attributes:
        directory: the artifact.
        manifest: checked, as are the files that are shared.
    """

    directory: Path
    manifest: dict[str, Any]

    @classmethod
    def of(cls, directory: str | Path) -> SharedWeights:
        """Those of an artifact.

        Raises:
            ArtifactError: when it is none, damaged, or one without what this needs.
            InputError: when `directory` is no path.
        """
        directory = as_path(directory)
        manifest = read_manifest(directory)
        check_files(directory, manifest)
        lacking = [n for n in _SHARED if n not in manifest["files"]]
        lacking += [n for n in ("options", "passes", "weights") if n not in manifest]
        if lacking or "layout" not in manifest["target"]:
            raise ArtifactError(
                f"its weights cannot be shared (it has no {(*lacking, 'layout')[0]})",
                where=str(directory),
                hint="compile it again",
            )
        check_digests(directory, manifest, _SHARED)
        return cls(directory, manifest)

    @property
    def context(self) -> int | None:
        """Positions that the model was loaded for."""
        return self.manifest["model"].get("context")

    def fitted(self, machine: Target) -> Target:
        """The target with the layout of these weights.

        Raises:
            CompileError: when its kernels cannot have it.
        """
        layout = TileLayout(**self.manifest["target"]["layout"])
        layout = replace(layout, nibbles=machine.layout.nibbles)  # not where, but whether it can
        try:
            return replace(machine, layout=layout)
        except CompileError as error:
            raise CompileError(
                f"the weights lie in another way than this target can have them ({error.message})",
                where=str(self.directory),
                hint=f"compile for {machine.name} first, then the other with its weights",
            ) from None

    def require_model(self, loaded: LoadedModel) -> None:
        """Refuse another model than the one that was compiled.

        Raises:
            InputError: naming the first weight that differs.
        """
        other = difference(self.manifest["model"].get("digests", {}), loaded.weights)
        if other:
            raise InputError(
                f"the artifact was compiled from another model ({other} is not the same)",
                where=str(self.directory),
            )

    def module(self) -> tvm.IRModule:
        """The graph that its passes left."""
        return parse_module(
            (self.directory / GRAPH).read_text("utf-8"), str(self.directory / GRAPH)
        )

    def options(self, chunk: int) -> Options:
        """What its code was made for, but for the tokens of a prefill call."""
        kept = self.manifest["options"]
        context = kept["context"]
        return Options(min(chunk, context), context, kept["cache_dtype"] == "float16")

    def place(self, program: Program, artifact: ArtifactWriter) -> dict[str, Any]:
        """Put the weights into an artifact in the making; their entries in its manifest.

        Raises:
            CompileError: when the program has weights elsewhere.
        """
        stored = json.loads((self.directory / WEIGHT_LIST).read_text("utf-8"))
        wanted = program.weights.describe()
        size = self.manifest["files"][WEIGHTS]["bytes"]
        if _places(stored) != _places(wanted) or program.weights.nbytes != size:
            raise CompileError(
                "the weights lie in another way than this target needs them",
                where=str(self.directory),
                hint="compile without --weights-of",
            )
        names = (WEIGHTS, WEIGHT_LIST)
        for name in names:
            take_over(self.directory / name, artifact.path / name)
        return {name: self.manifest["files"][name] for name in names}


def _places(listed: dict[str, Any]) -> Any:
    """Where weights.json says that weights are, as JSON has it."""
    matrices = [[each[key] for key in _PLACES] for each in listed["matrices"]]
    return json.loads(json.dumps([matrices, listed["vectors"]]))
