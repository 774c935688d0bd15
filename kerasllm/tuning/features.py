"""Feature extraction: what the frozen part of a model makes of the training set, computed once and kept."""

from pathlib import Path

import keras
import numpy as np

from kerasllm.data.counted import CountedDataset
from kerasllm.data.dataset import TokenDataset
from kerasllm.models.transformer import Transformer
from kerasllm.tuning.model_adapters import forget_compiled, state_of

FLOAT32 = 4  # bytes
FILE = "features.f32"


def cache_features(
    model: keras.Model,
    x,
    y=None,
    sample_weight=None,
    batch_size: int = 32,
    shuffle: bool = True,
    directory=None,
    max_bytes: int = 4_000_000_000,
) -> "FeatureDataset":
    """Runs the frozen part of a model once over a training set, for `fit` to start from what it made.

    The frozen part is the embedding and the first blocks, as far as nothing in them is trained. Training is what it
    would be without the cache, up to rounding, but for dropout, which the frozen part then has none of.

    Args:
        model: one of ours, of one stack, with its embedding frozen; see `freeze`.
        x, y, sample_weight: as `fit` takes them: texts or arrays, or one of our datasets, which must give the same
            rows in each pass: no masks that are drawn anew, no shuffled stream.
        batch_size, shuffle: of texts and arrays.
        directory: folder for a memory-mapped file; in memory when left out.
        max_bytes: limit of what is kept: rows × length × hidden_dim × 4 bytes.

    Returns:
        a dataset for `fit`.

    Raises:
        ValueError: the embedding is trained, the model has adapters or another network, the data changes from pass
            to pass, or the features would be larger than the limit.

    Example:
    ```python
    model.freeze("embedding", "first 10")
    features = cache_features(model, texts, labels, batch_size=16)
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(features, epochs=10)
    ```

    Reference: Peters et al. (2019), "To Tune or Not to Tune?", for when features are enough.
    """
    num_blocks = _frozen_blocks(model)
    data = model.as_data(x, y, sample_weight, batch_size, shuffle=shuffle)
    _check_data(data)
    features = _allocate(data, model.config.hidden_dim, directory, max_bytes)
    frozen_part, size = FrozenPart(model.transformer, num_blocks), data.batch_size
    for start in range(0, data.num_rows, size):
        count = min(size, data.num_rows - start)
        rows = np.minimum(np.arange(start, start + size), data.num_rows - 1)  # All batches have one shape.
        features[start : start + count] = frozen_part.predict_on_batch(_inputs(data, rows))[:count]
    model.transformer.feature_blocks = num_blocks
    if "features" not in model.input_keys:
        model.input_keys = (*model.input_keys, "features")
    forget_compiled(model)
    return FeatureDataset(model, data, features)


class FeatureDataset(CountedDataset):
    """A dataset's batches, in its order, with the features of its rows; made by `cache_features`.

    Raises:
        ValueError: from `fit`, the model's frozen part is another one than when the features were made.
    """

    def __init__(self, model, data: CountedDataset, features: np.ndarray):
        self.data, self.features = data, features
        self._model, self._num_blocks = model, model.transformer.feature_blocks
        names = ("shuffle", "seed", "epoch", "start_step", "steps_per_epoch", "rank", "num_ranks", "drop_remainder")
        super().__init__(data.num_rows, data.batch_size, **{name: getattr(data, name) for name in names})

    @property
    def local_batch_size(self) -> int | None:
        return self.data.local_batch_size

    @property
    def digest(self) -> int | None:
        return self.data.digest  # Features may differ in the last bit from machine to machine.

    def read(self, rows, real, pass_index):
        x, *targets = self.data.read(rows, real, pass_index)
        x = x if isinstance(x, dict) else {"token_ids": x}
        rows = rows if len(x["token_ids"]) == len(rows) else rows[real]
        return {**x, "features": np.asarray(self.features[rows])}, *targets

    def on_epoch_begin(self):
        if _frozen_blocks(self._model) < self._num_blocks or self._model.transformer.feature_blocks != self._num_blocks:
            raise ValueError(
                f"The features are of the embedding and the first {self._num_blocks} blocks, and another part of the "
                "model is frozen now. Make them again with cache_features."
            )
        super().on_epoch_begin()


class FrozenPart(keras.Model):
    """The embedding and the first blocks of a model, for their output."""

    def __init__(self, transformer, num_blocks: int):
        super().__init__()
        self.transformer, self.num_blocks = transformer, num_blocks
        # As the model itself is compiled.
        self.compile(jit_compile=True if keras.backend.backend() == "tensorflow" else "auto")

    def call(self, inputs):
        return self.transformer(**inputs, stop=self.num_blocks, training=False)


def _frozen_blocks(model) -> int:
    """How many of the first blocks are frozen, with the embedding below them."""
    from kerasllm.models.language_model import LanguageModel

    if not isinstance(model, LanguageModel) or type(model).call is not LanguageModel.call:
        raise ValueError(
            f"Features are cached for a model that runs one text at once. Received: {type(model).__name__}"
        )
    if not isinstance(model.transformer, Transformer):
        raise ValueError(f"Features are cached for models of one stack. Received: {type(model).__name__}")
    if state_of(model) is not None:
        raise ValueError(
            f"Features are cached for a model without adapters. Adapters: {', '.join(state_of(model).all)}"
        )
    if model.transformer.embedding.trainable_variables:
        raise ValueError(
            'The embedding is trained, so no part below it is fixed: model.freeze("embedding", "first n").'
        )
    count = 0
    for block in model.transformer.blocks:
        if block.trainable_variables:
            break
        count += 1
    return count


def _check_data(data) -> None:
    if not isinstance(data, CountedDataset):
        raise ValueError(
            f"Features are cached of texts, arrays or one of our datasets. Received: {type(data).__name__}"
        )
    moves = isinstance(data, TokenDataset) and data.packing == "stream" and data.shuffle and data.drop_remainder
    rows, real = np.arange(min(data.batch_size, data.num_rows)), np.ones(min(data.batch_size, data.num_rows), bool)
    first, *others = (keras.tree.flatten(data.read(rows, real, pass_index)) for pass_index in range(3))
    if moves or any((a != b).any() for other in others for a, b in zip(first, other)):
        raise ValueError(
            "The data is another in each pass, so there is nothing to keep. Use rows that stay: packing='documents', "
            "or arrays; and an objective that draws nothing at random."
        )


def _inputs(data, rows) -> dict[str, np.ndarray]:
    x = data.read(rows, np.ones(len(rows), bool), 0)[0]
    return x if isinstance(x, dict) else {"token_ids": x}


def _allocate(data, dim: int, directory, max_bytes: int) -> np.ndarray:
    shape = (data.num_rows, _inputs(data, np.arange(1))["token_ids"].shape[1], dim)
    size = int(np.prod(shape)) * FLOAT32
    if size > max_bytes:
        raise ValueError(
            f"The features of {data.num_rows:,} rows take {size:,} bytes, more than max_bytes={max_bytes:,}. Raise it, "
            "with a `directory` to keep them in a file, or use fewer or shorter rows."
        )
    if directory is None:
        return np.empty(shape, "float32")
    Path(directory).mkdir(parents=True, exist_ok=True)
    return np.memmap(Path(directory) / FILE, "float32", "w+", shape=shape)
