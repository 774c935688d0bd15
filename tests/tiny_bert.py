"""A BERT of a few hundred weights and a tokenizer for it, which the tests of all tasks that read both ways share."""

import keras
import numpy as np

from kerasllm import Tokenizer, TransformerConfig

LENGTH = 16
TEXTS = ["to be or not to be", "that is the question", "whether tis nobler", "in the mind to suffer"]
TOKENIZER = Tokenizer.train(TEXTS, kind="wordpiece", vocabulary_size=80)
VOCABULARY = TOKENIZER.vocabulary_size
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.2}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "norm_position": "post", "pooler": True}


def config(**changes) -> TransformerConfig:
    return TransformerConfig.from_dict(
        {"vocabulary_size": VOCABULARY, "max_sequence_length": LENGTH, **SIZES, **BERT, **changes}
    )


def compiled(model, learning_rate=1e-2, **options):
    """XLA on TensorFlow would only make these tests slow."""
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax", **options)
    return model


def random_ids(*shape):
    return np.random.default_rng(sum(shape)).integers(5, VOCABULARY, shape).astype("int32")


class Batches(keras.utils.PyDataset):
    """A user's PyDataset of batches as they are."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def alone(inputs, row):
    """One row of a padded batch, without its padding."""
    length = int(inputs["padding_mask"][row].sum())
    return {key: value[row : row + 1, :length] for key, value in inputs.items() if key != "padding_mask"}


def assert_same_gradients(found, expected):
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, atol=1e-5, rtol=1e-5, err_msg=path)
