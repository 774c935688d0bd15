"""NEFTune: noise on the token vectors, in training alone."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.layers.embeddings import TokenEmbedding

IDS = np.arange(24).reshape(2, 12).astype("int32")


def vectors(layer, **options):
    return ops.convert_to_numpy(layer(IDS, **options))


def test_noise_is_uniform_within_its_bound_and_only_in_training():
    layer = TokenEmbedding(TransformerConfig(30, 12, 1, 2, 64))
    plain = vectors(layer)
    layer.add_noise(5.0, seed=3)
    np.testing.assert_array_equal(vectors(layer), plain)
    first, second = (vectors(layer, training=True) - plain for _ in range(2))
    bound = 5.0 / np.sqrt(12 * 64)
    for noise in (first, second):
        assert np.abs(noise).max() <= bound * 1.0001 and np.abs(noise).max() > 0.97 * bound
        assert abs(noise.mean()) < 0.05 * bound and abs(noise.std() / bound - 3**-0.5) < 0.03
    assert np.abs(first - second).max() > bound
    again = TokenEmbedding(TransformerConfig(30, 12, 1, 2, 64))
    again.add_noise(5.0, seed=3)
    plain = vectors(again)
    np.testing.assert_allclose(vectors(again, training=True) - plain, first, atol=1e-6)
    layer.add_noise(0.0)
    np.testing.assert_array_equal(vectors(layer, training=True), vectors(layer))
    with pytest.raises(ValueError, match="alpha=-1"):
        layer.add_noise(-1)


def test_a_model_trains_with_noise_and_keeps_nothing_of_it():
    model = CausalLM(TransformerConfig(30, 12, 1, 2, 8))
    paths = [w.path for w in model.weights]
    model.transformer.embedding.add_noise(50.0, seed=1)
    model.compile(keras.optimizers.SGD(0.0))  # with a learning rate of 0, the noise is all that differs
    first, second = model.fit(IDS, batch_size=2, epochs=2, verbose=0).history["loss"]
    plain = [model.evaluate(IDS, verbose=0, return_dict=True)["loss"] for _ in range(2)]
    assert len({round(loss, 4) for loss in (first, second, plain[0])}) == 3 and plain[0] == plain[1]
    assert [w.path for w in model.weights] == paths
