"""Cached features: the same training as without, and the frozen part is not run again."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasllm
from kerasllm.data import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.tuning import cache_features

ROWS = np.random.default_rng(0).integers(0, 31, (10, 9)).astype("int32")
LABELS = np.random.default_rng(1).integers(0, 2, 10)
SIZES = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "dropout": 0.0, "attention_dropout": 0.0}


def new_model(cls=kerasllm.CausalLM, **changes):
    keras.utils.set_random_seed(3)
    causal = cls is kerasllm.CausalLM
    config = {"causal": causal, "initializer_range": 0.3, "num_segments": 0 if causal else 2, **SIZES, **changes}
    model = cls(kerasllm.TransformerConfig(31, 16, **config))
    model.freeze("embedding", "first 1")
    return model


def trained(model, data, **options):
    model.compile(keras.optimizers.SGD(0.5))
    history = model.fit(*data, epochs=3, batch_size=4, verbose=0, **options).history
    return history, [ops.convert_to_numpy(v.value) for v in model.weights]


@pytest.mark.parametrize(
    "cls", [kerasllm.CausalLM, pytest.param(kerasllm.TextClassifier, marks=pytest.mark.one_backend)]
)
def test_training_is_what_it_is_without_the_cache(cls, tmp_path):
    data = (ROWS,) if cls is kerasllm.CausalLM else ({"token_ids": ROWS, "segment_ids": ROWS % 2}, LABELS)
    validation = {"validation_data": data}
    history, weights = trained(new_model(cls), data, **validation)
    model = new_model(cls)
    features = cache_features(model, *data, batch_size=4, directory=tmp_path if cls is kerasllm.CausalLM else None)
    assert (tmp_path / "features.f32").exists() == (cls is kerasllm.CausalLM)
    cached_history, cached_weights = trained(model, (features,), **validation)
    assert history["loss"][-1] < history["loss"][0]
    for name, figures in history.items():
        np.testing.assert_allclose(cached_history[name], figures, rtol=1e-5)
    for a, b in zip(weights, cached_weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.one_backend
def test_the_frozen_part_is_run_once(monkeypatch):
    model = new_model()
    block, calls = type(model.transformer.blocks[0]), []
    call = block.call
    monkeypatch.setattr(block, "call", lambda self, *a, **k: calls.append(self.name) or call(self, *a, **k))
    features = cache_features(model, ROWS, batch_size=5)
    ran = calls.count("block_0")
    trained(model, (features,))
    assert ran and calls.count("block_0") == ran and "block_1" in calls


@pytest.mark.one_backend
def test_packed_documents_are_cached_with_their_masks():
    shards = TokenShards.from_arrays([row[: 4 + i % 5] for i, row in enumerate(ROWS)])

    def data():
        return TokenDataset(shards, 9, 2, packing="documents", seed=4)

    model = new_model()
    expected = trained(new_model(), (data(),))
    found = trained(model, (cache_features(model, data()),))
    np.testing.assert_allclose(found[0]["loss"], expected[0]["loss"], rtol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: (m.unfreeze("embedding"), cache_features(m, ROWS)), "The embedding is trained"),
        (lambda m: cache_features(m, ROWS, max_bytes=100), "more than max_bytes=100"),
        (lambda m: cache_features(m, TokenDataset(TokenShards.from_arrays([ROWS.reshape(-1)]), 8, 2)), "each pass"),
        (lambda m: (m.unfreeze(), m.enable_lora(2), cache_features(m, ROWS)), "without adapters"),
        (lambda m: cache_features(m, (row for row in [1])), "arrays or one of our datasets"),
        (lambda m: _unfrozen_after(m), "another part of the model is frozen now"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(new_model())


def _unfrozen_after(model):
    features = cache_features(model, ROWS)
    model.unfreeze("first 1")
    trained(model, (features,))


@pytest.mark.one_backend
def test_models_that_run_more_than_one_text_are_refused():
    config = kerasllm.TransformerConfig.from_name("t5_tiny", vocabulary_size=31, num_heads=2, hidden_dim=8)
    model = kerasllm.Seq2SeqLM(config)
    model.freeze("*")
    with pytest.raises(ValueError, match="one stack"):
        cache_features(model, {"encoder_token_ids": ROWS, "decoder_token_ids": ROWS})
