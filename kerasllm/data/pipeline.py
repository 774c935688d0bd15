"""From a source of text to training and validation batches, in one call."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kerasllm.data.dataset import TokenDataset
from kerasllm.data.rows import Rows
from kerasllm.data.shards import TokenShards, build_shards, tokenize
from kerasllm.data.sources import Source, source_files, source_fingerprint
from kerasllm.objectives.named import build
from kerasllm.tokenizers import Tokenizer

MEMORY_BYTES = 64 << 20


def from_text(
    source: Source,
    tokenizer: Tokenizer,
    objective: str | Callable[[Rows], tuple] = "causal",
    sequence_length: int = 128,
    batch_size: int = 16,
    validation_fraction: float = 0.1,
    seed: int = 0,
    packing: str = "stream",
    cache_dir: str | os.PathLike | None = None,
    column: str | None = None,
    shuffle: bool = True,
    steps_per_epoch: int | None = None,
) -> tuple[TokenDataset, TokenDataset | None]:
    """Datasets for `model.fit(train, validation_data=validation)`.

    The last part of the tokens is for validation (nanoGPT's split of tiny Shakespeare), or the last documents
    with `packing="documents"`. The validation set keeps its order and counts every next token once.

    Args:
        source, column: the text; see `read_texts`.
        tokenizer: a `Tokenizer`. Its end token, if it has one, follows each document.
        objective: what the model learns to predict: `"causal"` (the next token), `"masked"`, `"whole_word"`, `"span"`,
            `"prefix"`, `"fim"`, `"replaced"`, `"generated"` or `"next_sentence"`, with the tokenizer's special tokens;
            or an objective of `kerasllm.objectives`, or any function of `Rows`.
        sequence_length: tokens that the model reads in a row; for `"span"` the encoder's. An objective that changes
            the length (it has a `row_length`) gets rows of another one.
        batch_size: rows in a batch.
        validation_fraction: part of the text kept for validation, in [0, 1). With 0 there is no validation
            set.
        seed: of the order of the training rows.
        packing: `"stream"` or `"documents"`; see `TokenDataset`.
        cache_dir: folder for token shards. `None` keeps texts below 64 MB, and iterables, in memory, and puts
            the shards of others under `$XDG_CACHE_HOME/kerasllm` (by default `~/.cache/kerasllm`). Shards are
            built once.
        shuffle: permute the training rows.
        steps_per_epoch: training batches in an epoch, one pass over the rows when left out.

    Returns:
        `(train, validation)`, two `TokenDataset`s; `validation` is `None` if `validation_fraction` is 0.

    Raises:
        ValueError: unknown objective, a special token that it needs and the tokenizer lacks, an argument out of range,
            or too little text: the message names the lengths.

    Example:

    ```python
    tokenizer = kerasllm.Tokenizer.train(kerasllm.data.read_texts("builtin:pydoc"))
    train, validation = kerasllm.data.from_text("builtin:pydoc", tokenizer, sequence_length=64)
    ```
    """
    objective = build(objective, tokenizer)
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            "`validation_fraction` must be in [0, 1): the part of the text that is not for training. "
            f"Received: validation_fraction={validation_fraction}"
        )
    if sequence_length > 0 and hasattr(objective, "row_length"):
        sequence_length = objective.row_length(sequence_length)
    shards = _shards(source, tokenizer, cache_dir, column)
    options = {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "packing": packing,
        "objective": objective,
        "pad_token_id": tokenizer.pad_token_id or 0,
    }
    stop = len(shards)
    if validation_fraction:
        stop = _split(shards, validation_fraction, by_document=packing == "documents")
    train = _dataset("training", shards.slice(0, stop), shuffle=shuffle, seed=seed, drop_remainder=True, **options)
    if not validation_fraction:
        return train, None
    return train, _dataset("validation", shards.slice(stop, len(shards)), shuffle=False, **options)


def _split(shards: TokenShards, validation_fraction: float, by_document: bool) -> int:
    """Where the validation tokens start."""
    position = int(len(shards) * (1 - validation_fraction))
    documents = shards.document_offsets
    if by_document and len(documents) > 1:
        return int(documents[max(1, np.abs(documents - position).argmin())])
    return position


def _dataset(part: str, shards: TokenShards, **options) -> TokenDataset:
    try:
        return TokenDataset(shards, **options)
    except ValueError as error:
        raise ValueError(f"The {part} part: {error}") from None


def _shards(
    source: Source, tokenizer: Tokenizer, cache_dir: str | os.PathLike | None, column: str | None
) -> TokenShards:
    if cache_dir is None:
        files = source_files(source)
        is_remote = isinstance(source, str) and source.startswith("hf:")
        if not is_remote and sum(file.stat().st_size for file in files or []) < MEMORY_BYTES:
            return tokenize(source, tokenizer, column)
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kerasllm"
    key = f"{source_fingerprint(source, column)} {tokenizer.fingerprint} {tokenizer.end_token_id}"
    key += "".join(f" {token_id}" for token_id in tokenizer.text_start_ids)
    directory = Path(cache_dir) / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return build_shards(source, tokenizer, directory, column=column)
