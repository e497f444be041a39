"""Getting a model in: from a checkpoint to raw Relax and a store of its weights."""

from .context import DEFAULT_CONTEXT
from .load import LoadedModel, load_model, write_tokenizer
from .weights import WeightStore

__all__ = ["DEFAULT_CONTEXT", "LoadedModel", "WeightStore", "load_model", "write_tokenizer"]
