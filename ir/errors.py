"""The errors a user may see: one line that says what, where and what to do."""

from __future__ import annotations

from morendo.ir.printable import one_line


class MorendoError(Exception):
    """A mistake or a limit that the user can act on; the CLI prints it as one line.

    Names and values in it come from files, too: its texts are made one printable line each.

    Args:
        message: what is wrong, with the value got and the value needed.
        where: the weight, layer or file it was found in.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        self.message = one_line(message)
        self.where = one_line(where)
        self.hint = one_line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        text = f"{self.message} at {self.where}" if self.where else self.message
        return f"{text}; {self.hint}" if self.hint else text


class CompileError(MorendoError):
    """The model cannot be compiled as asked."""


class ArtifactError(MorendoError):
    """An artifact is missing, damaged or made for another machine."""


class InputError(MorendoError):
    """A model, text or option given by the user cannot be used."""


class Cancelled(MorendoError):
    """`cancel` or `close` ended what was running."""
