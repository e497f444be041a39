"""The C tokenizer through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType

import numpy as np


class CompiledTokenizer:
    """Tables in a folder, opened by the C code of a shared library."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        self.c.mr_error.restype = ctypes.c_char_p
        self.handle = ctypes.c_void_p()
        self._check(self.c.mr_tokenizer_open(str(folder).encode(), ctypes.byref(self.handle)))

    def __enter__(self) -> CompiledTokenizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.c.mr_tokenizer_close(self.handle)

    def encode(self, text: str | bytes) -> list[int]:
        data = text if isinstance(text, bytes) else text.encode()
        ids, count = np.full(len(data) * 16 + 8, -7, np.int32), ctypes.c_int()
        place = ids.ctypes.data_as(ctypes.c_void_p)
        size = ctypes.c_int64(len(data))
        self._check(
            self.c.mr_tokenize(self.handle, data, size, place, len(ids), ctypes.byref(count))
        )
        assert count.value <= len(ids)
        return ids[: count.value].tolist()

    def decode(self, ids: list[int]) -> str:
        given, size = np.array(ids, np.int32), ctypes.c_int64()
        text = ctypes.create_string_buffer(512 * len(ids) + 64)
        place = given.ctypes.data_as(ctypes.c_void_p)
        self._check(
            self.c.mr_detokenize(
                self.handle, place, len(ids), text, ctypes.c_int64(len(text)), ctypes.byref(size)
            )
        )
        assert size.value <= len(text)
        return text.raw[: size.value].decode()

    def _check(self, code: int) -> None:
        if code:
            raise ValueError(self.c.mr_error().decode())
