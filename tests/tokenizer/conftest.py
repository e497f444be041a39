"""The C tokenizer as a library of its own, and the tables of every family."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from families import trained
from library import CompiledTokenizer

from morendo.codegen.link import RUNTIME_SOURCES, _environment
from morendo.codegen.tokenizer import compile_tokenizer
from morendo.ir.plan import TOKENIZER_TABLES

SOURCES = (
    "tokenizer",
    "tokenize",
    "detokenize",
    "utf8",
    "normalize",
    "nfc",
    "bpe",
    "unigram",
    "error",
)


@pytest.fixture(scope="session")
def tokenizer_library(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "tokenizer.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O2", "-std=c11"]
    command += ["-Wall", "-Wextra", "-Werror", f"-I{RUNTIME_SOURCES}"]
    command += [*(str(RUNTIME_SOURCES / f"{name}.c") for name in SOURCES), "-o", str(out)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def compiled(tokenizer_library, tmp_path_factory):
    """Gives the library's and the compiled tokenizer of a family."""
    opened = {}

    def get(family):
        if family not in opened:
            folder = tmp_path_factory.mktemp(family)
            (folder / TOKENIZER_TABLES).write_bytes(compile_tokenizer(trained(family).to_str()))
            opened[family] = CompiledTokenizer(tokenizer_library, folder)
        return trained(family), opened[family]

    return get
