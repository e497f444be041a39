"""Models in .gguf files: header, parts, configuration, tensors and vocabulary."""

from .config import end_ids, read_config
from .header import read_header
from .split import GgufFile, open_gguf, part_paths
from .tensors import GgufSource
from .vocabulary import GgufVocabulary, read_vocabulary, unsaid

__all__ = [
    "GgufFile",
    "GgufSource",
    "GgufVocabulary",
    "end_ids",
    "open_gguf",
    "part_paths",
    "read_config",
    "read_header",
    "read_vocabulary",
    "unsaid",
]
