"""save, save_weights and load_model work as for any Keras model; so do dtype policies."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, Tokenizer, TransformerConfig

VOCABULARY, LENGTH = 30, 8


def make_model(tokenizer=None, dtype=None, **changes):
    keras.utils.set_random_seed(0)
    vocabulary = tokenizer.vocabulary_size if tokenizer else VOCABULARY
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.1}
    return CausalLM(TransformerConfig(vocabulary, LENGTH, **sizes, **changes), tokenizer=tokenizer, dtype=dtype)


def compile_model(model, **options):
    model.compile(jit_compile=keras.backend.backend() == "jax", **options)
    return model


def rows(count=8):
    return np.random.default_rng(0).integers(0, VOCABULARY, (count, LENGTH + 1)).astype("int32")


def logits(model):
    return ops.convert_to_numpy(ops.cast(model(rows()[:, :-1]), "float32"))


def test_a_saved_model_is_the_same_and_trains_on(tmp_path):
    model = compile_model(make_model(norm="rms_norm", positions="rotary"), optimizer=keras.optimizers.Adam(1e-2))
    model.fit(rows(), batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, CausalLM) and loaded.config == model.config
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-6)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_allclose(ops.convert_to_numpy(one), ops.convert_to_numpy(other), err_msg=one.path)
    losses = [m.fit(rows(), batch_size=4, shuffle=False, verbose=0).history["loss"] for m in (model, loaded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert loaded.uses_default_loss


def test_a_saved_model_keeps_its_tokenizer_and_its_loss(tmp_path):
    tokenizer = Tokenizer.train("to be or not to be", kind="bpe", vocabulary_size=270)
    model = make_model(tokenizer)
    model.compile(optimizer="sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint and not loaded.uses_default_loss
    assert loaded.generate("to", max_new_tokens=5) == model.generate("to", max_new_tokens=5)


def test_accumulation_survives_saving(tmp_path):
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model = compile_model(make_model(), optimizer=optimizer)
    model.fit(rows(), batch_size=2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.gradient_accumulation_steps == 2
    histories = [m.fit(rows(), batch_size=2, shuffle=False, verbose=0).history["loss"] for m in (model, loaded)]
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-6)


def test_weights_alone(tmp_path):
    model, other = make_model(), make_model()
    other.set_weights([w + 1 for w in other.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(logits(other), logits(model), atol=1e-6)


def test_a_config_is_a_copy():
    model = make_model(gated=True, num_kv_heads=1)
    copy = CausalLM.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    np.testing.assert_allclose(logits(copy), logits(model), atol=1e-6)
    clone = keras.models.clone_model(model)
    assert clone.config == model.config


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_low_precision_trains_and_generates(policy):
    model = make_model(dtype=policy)
    exact = make_model()
    exact.set_weights([np.asarray(w, "float32") for w in model.get_weights()])
    np.testing.assert_allclose(logits(model), logits(exact), atol=0.05)
    compile_model(model, optimizer=keras.optimizers.SGD(1.0))  # Keras's Adam stands still in pure bfloat16
    history = model.fit(rows(), batch_size=8, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[-1] < history[0]
    assert (type(model.optimizer).__name__ == "LossScaleOptimizer") == (policy == "mixed_float16")
    expected = "bfloat16" if policy == "bfloat16" else "float32"
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.trainable_weights} == {expected}
    assert len(model.generate([1, 2], max_new_tokens=3)) == 5


def test_mixed_float16_accumulates():
    model = make_model(dtype="mixed_float16")
    compile_model(model, optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    before = logits(model)
    history = model.fit(rows(), batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all() and np.abs(logits(model) - before).max() > 1e-4


def test_presets_take_a_dtype(tmp_path):
    model = make_model()
    model.save_to_preset(tmp_path)
    mixed = CausalLM.from_preset(tmp_path, dtype="mixed_bfloat16")
    assert mixed.compute_dtype == "bfloat16" and mixed.variable_dtype == "float32"
    np.testing.assert_allclose(logits(mixed), logits(model), atol=0.05)
    half = CausalLM.from_preset(tmp_path, dtype="bfloat16")
    assert half.variable_dtype == "bfloat16"
    half.save_to_preset(tmp_path / "half")
    again = CausalLM.from_preset(tmp_path / "half")
    np.testing.assert_allclose(logits(again), logits(model), atol=0.05)


def test_generate_and_score_within_a_callback():
    """Callbacks see the weights of the step they are called at."""
    model = compile_model(make_model(), optimizer=keras.optimizers.SGD(0.5))
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((self.model.score([[1, 2, 3]])[0].sum(), self.model.generate([1, 2], max_new_tokens=3)))

    model.fit(rows(), batch_size=8, epochs=2, callbacks=[Look()], verbose=0)
    assert seen[0][0] != seen[1][0]
    assert seen[1][0] == pytest.approx(model.score([[1, 2, 3]])[0].sum(), rel=1e-5)
    assert seen[1][1] == model.generate([1, 2], max_new_tokens=3)
