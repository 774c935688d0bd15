"""Text in, batches out: sources, token shards, a counted order, a `PyDataset`."""

import importlib

from kerasllm.lazy import submodule

_HOMES = {
    "read_pieces": "sources",
    "read_texts": "sources",
    "Piece": "sources",
    "read_pairs": "pairs",
    "read_conversations": "chat",
    "build_shards": "shards",
    "open_shards": "shards",
    "TokenShards": "shards",
    "permute": "order",
    "batch_rows": "order",
    "CountedDataset": "counted",
    "ArrayDataset": "arrays",
    "TokenDataset": "dataset",
    "from_text": "pipeline",
    "from_conversations": "chat",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    # Loaded on first use: the dataset imports keras, and with it a backend.
    if name not in _HOMES:
        return submodule(__name__, name)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
