"""A model's vocabulary may be larger than its tokenizer's, as padding to a round size makes it."""

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.data.arrays import ArrayDataset


@pytest.fixture
def model():
    config = kerasllm.TransformerConfig(
        vocabulary_size=8, max_sequence_length=8, num_layers=1, num_heads=1, hidden_dim=16
    )
    model = kerasllm.CausalLM(config, kerasllm.Tokenizer.train("abc", kind="char"))
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_bits_per_byte_are_finite(model):
    logs = model.evaluate(["abcabc"], verbose=0, return_dict=True)
    assert np.isfinite(logs["bits_per_byte"])


def test_only_tokens_are_generated(model):
    text = model.generate("a", max_new_tokens=7, sampler="temperature", temperature=50.0, seed=1)
    assert set(text) <= set("abc") and len(text) == 8


def test_ids_of_a_dataset_are_checked(model):
    with pytest.raises(ValueError, match="out of range: 50"):
        model.fit(
            ArrayDataset({"token_ids": np.full((4, 5), 50)}, np.zeros((4, 5), "int32"), batch_size=2),
            verbose=0,
        )


def test_positions_are_checked(model):
    with pytest.raises(ValueError, match="Position out of range: 99"):
        model.predict({"token_ids": np.zeros((1, 2), "int32"), "positions": np.array([[0, 99]])}, verbose=0)
