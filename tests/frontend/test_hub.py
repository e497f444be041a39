"""Hub models in the local cache: whole ones are used as they are, others are completed."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from morendo.frontend import hub
from morendo.frontend.locate import locate
from tests.frontend.families import save_model
from tests.frontend.spoil import WEIGHTS, refuses

MODEL = "someone/phi"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has."""
    path = tmp_path_factory.mktemp("hub") / "phi"
    save_model("phi", path)
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.fixture
def snapshot(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot in a cache; there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--someone--phi"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs").mkdir()
    return Path(shutil.copytree(saved, folder / "snapshots" / "abc"))


def shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / FIRST)
    index = {"weight_map": {"a": FIRST, "b": SECOND}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def list_files(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """What the last download says that the hub has."""
    files = [SimpleNamespace(path=name) for name in names]
    monkeypatch.setattr(huggingface_hub, "get_cached_repo_tree", lambda model: files)


def test_a_whole_snapshot_needs_no_network(snapshot):
    notes: list[str] = []
    assert locate(MODEL, notes) == snapshot
    assert not notes


def test_what_is_missing_is_named(snapshot, monkeypatch):
    (snapshot / "tokenizer.json").unlink()
    shard(snapshot)
    refuses(
        MODEL,
        f"downloaded in part (missing: tokenizer.json, {SECOND})",
        "hub cannot be reached",
        f"hf download {MODEL}",
    )
    (snapshot / "config.json").unlink()
    refuses(MODEL, f"missing: config.json, tokenizer.json, {SECOND})")
    list_files(monkeypatch, "config.json", "chat_template.jinja", WEIGHTS, "onnx/config.json")
    refuses(MODEL, "missing: chat_template.jinja, config.json)")


def test_a_snapshot_without_weights(snapshot):
    (snapshot / WEIGHTS).unlink()
    (snapshot / "model.fp16.safetensors").touch()
    refuses(MODEL, f"missing: {WEIGHTS}", "in part")


def test_a_model_without_a_tokenizer_is_whole(snapshot, monkeypatch):
    (snapshot / "tokenizer.json").unlink()
    list_files(monkeypatch, "config.json", WEIGHTS, "consolidated.safetensors")
    assert locate(MODEL, []) == snapshot


def test_parts_of_unknown_files(snapshot):
    (snapshot.parent.parent / "blobs" / "0123.incomplete").touch()
    notes: list[str] = []
    assert locate(MODEL, notes) == snapshot
    assert "a download of this model broke off" in notes[0]
    assert f"hf download {MODEL}" in notes[0]


def test_a_download_is_resumed(saved, snapshot, monkeypatch):
    (snapshot / "tokenizer.json").unlink()
    shard(snapshot)
    asked = []

    def download(model, allow_patterns=None, ignore_patterns=None, local_files_only=False):
        if not local_files_only:
            asked.append(allow_patterns)
            list_files(monkeypatch, "tokenizer.json", f"{WEIGHTS}.index.json", FIRST, SECOND)
            name = SECOND if SECOND in allow_patterns else "tokenizer.json"
            shutil.copy(saved / "tokenizer.json", snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(MODEL, []) == snapshot
    assert asked == [hub._SMALL_FILES, [FIRST, SECOND]]
    assert (snapshot / SECOND).is_file()
    assert locate(MODEL, []) == snapshot
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no route"), ("hub cannot be reached (ConnectionError)", "network")),
        (errors.RepositoryNotFoundError, ("no such public model",)),
        (errors.GatedRepoError, ("accepted its terms", "hf auth login")),
    ],
)
def test_a_hub_that_refuses(monkeypatch, error, words):
    def refuse(*args, **kwargs):
        raise error if isinstance(error, Exception) else error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    refuses("someone/some-model", "someone/some-model", *words)


def test_a_damaged_index_in_the_cache(snapshot):
    shard(snapshot)
    (snapshot / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    refuses(MODEL, "bad name (got '../x.safetensors'")
