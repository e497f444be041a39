"""Models on the Hugging Face hub: the snapshot in the local cache, completed where it has gaps."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from morendo.ir.errors import InputError

from .model_files import SAFETENSORS, listed_names, missing_files, weight_files

_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def fetch(model: str, notes: list[str]) -> Path:
    """The folder with all files of a hub model; the network is asked when some are missing.

    Args:
        model: the hub id.
        notes: gets what the person should know of the copy in the cache.

    Raises:
        InputError: when there is no such model, or files are missing and cannot be fetched.
    """
    folder = _cached(model)
    if folder and not _missing(model, folder) and not _broke_off(model, folder):
        return folder
    try:
        return _download(model)
    except InputError:
        raise
    except Exception as error:  # httpx, OSError and the hub's own types
        if folder and not _missing(model, folder):
            notes.append(
                "a download of this model broke off: if files are missing that cannot be missed "
                f"by their names, `hf download {shlex.quote(model)}` fetches them"
            )
            return folder
        raise _unreachable(model, folder, error) from error


def _unreachable(model: str, folder: Path | None, error: Exception) -> InputError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return InputError(
            "the hub gives this model only to people who accepted its terms",
            where=model,
            hint="accept them on the model's page and run `hf auth login`",
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            "no such file or directory here, and no such public model on the hub",
            where=model,
            hint="give a Hugging Face model directory, a .gguf file or a hub id such as owner/name",
        )
    why = f"the hub cannot be reached ({type(error.__cause__ or error).__name__})"
    if folder is None:
        return InputError(
            f"no such file or directory, and {why}",
            where=model,
            hint="check the name and the network, or give a local directory",
        )
    return InputError(
        f"the model was downloaded in part (missing: {listed_names(_missing(model, folder))}), "
        f"and {why}",
        where=model,
        hint=f"run `hf download {shlex.quote(model)}` with a network, "
        "or give the directory of a whole copy",
    )


def _cached(model: str) -> Path | None:
    """The model's snapshot, whole or not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except IncompleteSnapshotError as error:  # of files that are not needed, perhaps
        return Path(error.snapshot_path)
    except Exception:  # not in the cache, no valid name: the hub says it more clearly
        return None


def _listed(model: str) -> set[str] | None:
    """The files that the hub has, as of the last download; None when that is not known."""
    from huggingface_hub import get_cached_repo_tree

    try:
        return {file.path for file in get_cached_repo_tree(model)}
    except Exception:  # downloaded by another tool, or by an older release
        return None


def _missing(model: str, folder: Path) -> list[str]:
    """What the model needs and its snapshot lacks; a download may have broken off anywhere."""
    listed = _listed(model)
    if listed is None:
        has_tokenizer = any((folder / name).is_file() for name in _TOKENIZERS)
        small = ["config.json"] if has_tokenizer else ["config.json", _TOKENIZERS[0]]
    else:
        small = _small(listed)
    missing = missing_files(folder, small)
    if missing and listed is not None:  # the index may be one of them
        return missing
    return missing + missing_files(folder, weight_files(folder, listed) or [SAFETENSORS])


def _small(listed: Iterable[str]) -> list[str]:
    """Everything but weights; what lies in a folder is of another form of the model."""
    return sorted(
        name for name in listed if "/" not in name and any(fnmatch(name, p) for p in _SMALL_FILES)
    )


def _broke_off(model: str, folder: Path) -> bool:
    """Whether the cache holds a part of a file, and what it is cannot be told."""
    blobs = folder.parent.parent / "blobs"
    return _listed(model) is None and any(blobs.glob("*.incomplete"))


def _download(model: str) -> Path:
    """Fetch what is missing: small files first, since an index tells which shards are needed."""
    from huggingface_hub import snapshot_download

    small = snapshot_download(model, allow_patterns=_SMALL_FILES, ignore_patterns=["*/*"])
    folder, listed = Path(small), _listed(model)
    # Where it reaches nothing the hub's library gives what is there.
    if listed is None or missing_files(folder, _small(listed)):
        raise ConnectionError("the hub did not say or give what the model consists of")
    names = weight_files(folder, listed)
    if missing_files(folder, names):
        snapshot_download(model, allow_patterns=[glob.escape(name) for name in names])
    return folder
