"""Kept machine code: found again by what it depends on, bounded, never trusted blindly."""

import os

import pytest

from morendo.codegen.build_cache import BuildCache, cache_folder, cache_key


@pytest.fixture
def cache(tmp_path):
    return BuildCache(tmp_path / "build", limit_bytes=1000)


def test_is_made_once(cache):
    made = []

    def make():
        made.append(1)
        return b"code"

    assert cache.get("a", make) == cache.get("a", make) == b"code"
    assert len(made) == 1


def test_keys_tell_all_parts_apart():
    keys = {cache_key("ab", "c"), cache_key("a", "bc"), cache_key("abc"), cache_key("ab", b"d")}
    assert len(keys) == 4
    assert cache_key("ab", "c") == cache_key(b"ab", b"c")


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda _: b""]
)
def test_damaged_entry_is_made_again(cache, spoil):
    cache.store("a", b"code" * 10)
    path = cache.folder / "a"
    path.write_bytes(spoil(path.read_bytes()))
    assert cache.load("a") is None
    assert cache.get("a", lambda: b"new") == b"new"
    assert cache.load("a") == b"new"


def test_longest_unused_make_room(cache):
    for age, key in ((30, "old"), (20, "used"), (10, "young")):
        cache.store(key, bytes(250))
        os.utime(cache.folder / key, (1e9 - age, 1e9 - age))
    assert cache.load("used") is not None  # as of now
    cache.store("new", bytes(600))
    assert sorted(path.name for path in cache.folder.iterdir()) == ["new", "used"]


def test_folder_that_cannot_be_written_costs_nothing_else(tmp_path):
    (tmp_path / "file").write_text("")
    cache = BuildCache(tmp_path / "file" / "build")
    assert cache.get("a", lambda: b"code") == b"code"


def test_folder_follows_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "morendo" / "build"
