"""Streams of random tokens: joined they are decode(), and nothing waits longer than it must."""

from functools import partial

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from morendo.ir.errors import InputError
from morendo.runtime.stop_texts import before_text, cut_before
from morendo.runtime.tokenizer import Tokenizer as Runtime

STREAMS = 2000
SPECIAL = ["<s>", "</s>"]
WORDS = ["▁", "▁▁", "▁the", "a", "b.", "é", "日", "\N{REPLACEMENT CHARACTER}", "<0xZZ>", "▁x▁"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = decoders.Replace("▁", " ")
HALF = "\N{REPLACEMENT CHARACTER}"
LLAMA = [SPACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
GGUF = [decoders.ByteFallback(), decoders.Fuse(), SPACE, decoders.Strip(" ", 1, 0)]
DECODERS = {
    "gemma": decoders.Sequence(LLAMA[:-1]),
    "llama": decoders.Sequence(LLAMA),
    "gguf": decoders.Sequence([decoders.Sequence(GGUF[:2]), *GGUF[2:]]),
    "metaspace": decoders.Metaspace(),
    "byte-fallback-metaspace": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    "wordpiece": decoders.WordPiece(prefix="▁"),
    "none": None,
    # These may change what was decoded before: such a text comes in one piece.
    "suffix": decoders.BPEDecoder(suffix="▁"),
    "doubles": decoders.CTC(pad_token="a"),
    "two-characters": decoders.Sequence([decoders.Fuse(), decoders.Replace("▁▁", "#")]),
    "fallback-last": decoders.Sequence([decoders.Fuse(), decoders.ByteFallback()]),
}
THE_USUAL = ("byte-level", "unigram", "llama")
IN_ONE_PIECE = ("suffix", "doubles", "two-characters", "fallback-last")


def add_tokens(library: Tokenizer) -> Tokenizer:
    """Special tokens, and added ones that are not special and have characters of all kinds."""
    library.add_special_tokens(SPECIAL)
    library.add_tokens([AddedToken("<tool> é", normalized=False), AddedToken("  ", lstrip=True)])
    return library


def pieces_tokenizer(kind: str, decoder: str) -> Tokenizer:
    """Of words and bytes, by `kind` of model."""
    names = ["<unk>", *BYTES, *WORDS]
    if kind == "unigram":
        model = models.Unigram([(name, -1.0) for name in names], 0, byte_fallback=True)
    else:
        vocabulary = {name: i for i, name in enumerate(names)}
        model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    library = Tokenizer(model)
    library.normalizer = normalizers.Replace(" ", "▁")
    if DECODERS[decoder] is not None:
        library.decoder = DECODERS[decoder]
    return add_tokens(library)


def bytes_tokenizer() -> Tokenizer:
    """Byte-level: all bytes, and tokens of some bytes that begin and end within characters."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = ["😀", "日本", "é a", " the", HALF]
    spelled = [split.pre_tokenize_str(text)[0][0] for text in texts]
    parts = {text[a:b] for text in spelled for a in range(len(text)) for b in range(a + 1, 9)}
    names = sorted({*alphabet, *parts} - {""})
    library = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    library.pre_tokenizer = split
    library.decoder = decoders.ByteLevel()
    return add_tokens(library)


CASES = {
    "byte-level": bytes_tokenizer,
    "unigram": partial(pieces_tokenizer, "unigram", "llama"),
    **{name: partial(pieces_tokenizer, "bpe", name) for name in DECODERS},
}


def make_runtime(folder, case: str) -> Runtime:
    CASES[case]().save(str(folder / "tokenizer.json"))
    return Runtime(folder, {"bos": None, "eos": None, "add_bos": False})


def random_streams(tokenizer: Runtime, count: int = STREAMS):
    """Lists of ids: some of any tokens, some of whole characters spelled in bytes and cut."""
    random = np.random.default_rng(0)
    size = tokenizer._require().get_vocab_size() + 2  # two ids that no token has
    texts = ["😀😀", "日本語", "éé a", " the x", "ab. "]
    for _ in range(count):
        ids = random.integers(0, size, random.integers(0, 8)).tolist()
        for index in random.integers(0, len(texts), random.integers(0, 4)):
            ids += tokenizer.encode(texts[index])
        ids += random.integers(size - 8, size, random.integers(0, 3)).tolist()
        if random.integers(2):
            random.shuffle(ids)
        yield ids[: random.integers(0, 20)]


@pytest.mark.parametrize("case", CASES)
def test_pieces_joined_are_the_decoded_text(tmp_path, case):
    tokenizer = make_runtime(tmp_path, case)
    for ids in random_streams(tokenizer, STREAMS if case in THE_USUAL else 300):
        pieces = list(tokenizer.stream(ids))
        assert "".join(pieces) == tokenizer.decode(ids), ids
        assert all(pieces)
        if case in IN_ONE_PIECE:
            assert len(pieces) <= 1


def pieces_in_time(tokenizer: Runtime, ids: list[int]) -> list[str]:
    """For each token, the text that was there before the next one was asked for."""
    said, texts = [""], []

    def feed():
        for token in ids:
            yield token
            texts.append(said[0])

    for piece in tokenizer.stream(feed()):
        said[0] += piece
    return texts


def certain(tokenizer: Runtime, ids: list[int]) -> str:
    """What no token that follows can change."""
    library = tokenizer._require()
    if isinstance(library.decoder, decoders.ByteLevel):
        return tokenizer.decode(ids).removesuffix(HALF)
    while ids and library.id_to_token(ids[-1]) in (None, *BYTES, *SPECIAL):
        ids = ids[:-1]
    return tokenizer.decode(ids)


@pytest.mark.parametrize("case", ["byte-level", "unigram", "llama", "gemma", "gguf"])
def test_whole_characters_do_not_wait(tmp_path, case):
    tokenizer = make_runtime(tmp_path, case)
    for ids in random_streams(tokenizer, 200):
        got = pieces_in_time(tokenizer, ids)
        for count, text in enumerate(got, 1):
            assert text.startswith(certain(tokenizer, ids[:count])), ids
            assert tokenizer.decode(ids).startswith(text), ids


def test_bytes_that_are_no_text_are_given_soon_and_cost_little(tmp_path):
    tokenizer = make_runtime(tmp_path, "byte-level")
    wrong, half = (tokenizer._require().token_to_id(letter) for letter in "þð")  # 0xFE, 0xF0
    ids = [wrong, half] * 5000
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids)


def until(text: str, stop: list[str]) -> str:
    """`text` up to that one of `stop` that is complete first."""
    found = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return text[: min(found)[1]] if found else text


@pytest.mark.parametrize("case", ["byte-level", "unigram", "llama", "gemma"])
def test_stop_texts_in_random_streams(tmp_path, case):
    """Nothing of a stop text is shown, and what only began like one is."""
    tokenizer = make_runtime(tmp_path, case)
    random = np.random.default_rng(1)
    for ids in random_streams(tokenizer):
        whole = tokenizer.decode(ids)
        start, end = np.sort(random.integers(0, len(whole) + 1, 2))
        stop = [text for text in (whole[start : start + 4], whole[end:] + "z", "日本") if text]
        stopped = []
        found = partial(stopped.append, True)
        got = "".join(cut_before(tokenizer.stream(ids), stop, found))
        assert got == until(whole, stop), (ids, stop)
        assert bool(stopped) == (got != whole)
        given = list(before_text(iter(ids), stop, tokenizer, found))
        assert given == ids[: len(given)]
        if HALF not in whole:
            assert (given != ids) == bool(stopped)
        before = tokenizer.decode(given)
        if HALF not in whole and given != ids:
            assert not any(text in before for text in stop)
            longer = [tokenizer.decode(ids[:n]) for n in range(len(given) + 1, len(ids) + 1)]
            next_one = next(text for text in longer if whole.startswith(text))
            assert any(text in next_one for text in stop)


def test_ids_that_are_none_are_refused(tmp_path):
    tokenizer = make_runtime(tmp_path, "llama")
    with pytest.raises(InputError, match="token ids must be whole numbers, 0 or more, and fit"):
        list(tokenizer.stream([-1]))
