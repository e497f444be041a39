"""What the library says of its model's texts is what it was linked with."""

import ctypes

import pytest
import toy
from c_sampling import COptions

from morendo.chat_form import apply_form
from morendo.codegen.link import link_model
from morendo.codegen.model_tables import ModelTables
from morendo.codegen.text_facts import TextFacts

BLANKS = "".join(filter(str.isspace, map(chr, range(0x10000))))


def opened(path):
    library = ctypes.CDLL(str(path))
    library.mr_error.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def library(toy_library):
    return opened(toy_library)


@pytest.fixture(scope="module")
def library_of(tmp_path_factory):
    def link(**facts):
        out = tmp_path_factory.mktemp("library") / "model.so"
        link_model([], ModelTables(text=TextFacts(**facts)), out, toy.TOOLCHAIN)
        return opened(out)

    return link


def chat(library, said: str, system: str | None = None, room: int | None = None):
    """The result, the number of bytes, and what was written of 0xAA before."""
    given, size, text = said.encode(), ctypes.c_int64(-1), ctypes.create_string_buffer(4096)
    ctypes.memset(text, 0xAA, len(text))
    room = len(text) if room is None else room
    code = library.mr_chat(
        None if system is None else system.encode(), given, ctypes.c_int64(len(given)),
        text, ctypes.c_int64(room), ctypes.byref(size),
    )  # fmt: skip
    return code, size.value, text.raw.rstrip(b"\xaa")


def test_beginning_and_ends(library):
    assert library.mr_begin_id() == 0
    assert [id for id in range(-2, 50) if library.mr_is_end(id)] == [1, 7]


def test_sampling_of_the_makers(library):
    sampling = COptions()
    library.mr_default_sampling(ctypes.byref(sampling))
    assert (sampling.temperature, sampling.top_k) == (0.5, 3)
    assert (sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("system", [None, "", "Be brief", f"{BLANKS}two  words{BLANKS}"])
@pytest.mark.parametrize("said", ["", " ", "Hi", f"{BLANKS}a\0 b\n\N{WAVING HAND SIGN}{BLANKS}"])
def test_chats_are_those_of_the_form(library, said, system):
    wanted = apply_form(toy.CHAT, said, system).encode()
    assert library.mr_has_chat() == 1
    assert chat(library, said, system) == (0, len(wanted), wanted)
    assert chat(library, said, system, room=0) == (0, len(wanted), b"")
    assert chat(library, said, system, room=4) == (0, len(wanted), wanted[:4])


def test_models_without_chats(library_of):
    library = library_of()
    assert (library.mr_begin_id(), library.mr_has_chat(), library.mr_is_end(-1)) == (-1, 0, 0)
    assert chat(library, "Hi") == (1, 0, b"")
    assert library.mr_error() == b"this model has no chats"
    library = library_of(missing_chat="the template does what it likes")
    assert chat(library, "Hi") == (1, 0, b"")
    assert library.mr_error() == b"the template does what it likes"


def test_chats_without_system_messages(library_of):
    library = library_of(chat=toy.ChatForm((" u ", "e")))
    assert chat(library, " Hi ") == (0, 8, b" u  Hi e")
    assert chat(library, "Hi", "Be brief") == (1, 0, b"")
    assert library.mr_error() == b"this model's chats have no system message; give none"
