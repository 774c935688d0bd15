"""Token-weighted accumulation: k ragged micro-batches make the update of one batch of all their tokens."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.training.accumulation import token_weighted

MICRO_BATCHES, ROWS, LENGTH = 3, 2, 8
OPTIMIZERS = {
    "sgd": lambda **more: keras.optimizers.SGD(0.1, momentum=0.9, **more),
    "adamw": lambda **more: keras.optimizers.AdamW(1e-2, weight_decay=0.1, epsilon=1e-3, **more),
    "clipped": lambda **more: keras.optimizers.SGD(0.5, global_clipnorm=0.05, **more),
}


def small_model():
    keras.utils.set_random_seed(0)
    config = TransformerConfig(
        vocabulary_size=20,
        max_sequence_length=LENGTH,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        initializer_range=0.1,
    )
    return CausalLM(config)


def ragged_rows():
    """Rows whose micro-batches have very different numbers of tokens that count."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 20, (2, MICRO_BATCHES * ROWS, LENGTH)).astype("int32")
    counts = np.array([8, 8, 1, 0, 3, 7])
    weights = (np.arange(LENGTH) < counts[:, None]).astype("float32")
    return x, y, weights


def trained(optimizer, batch_size, epochs=2):
    model = small_model()
    model.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    x, y, weights = ragged_rows()
    model.fit(x, y, sample_weight=weights, batch_size=batch_size, shuffle=False, epochs=epochs, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_one_batch_of_all_tokens(name):
    make = OPTIMIZERS[name]
    whole = trained(make(), batch_size=MICRO_BATCHES * ROWS)
    parts = trained(make(gradient_accumulation_steps=MICRO_BATCHES), batch_size=ROWS)
    for one, other in zip(whole, parts):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_mean_of_micro_batches_would_differ():
    make = OPTIMIZERS["sgd"]
    x, y, weights = ragged_rows()
    model = small_model()

    def mean_loss(targets, logits):
        return keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)

    # With a loss of the user's, Keras's own averaging of micro-batches stays as it is.
    optimizer = make(gradient_accumulation_steps=MICRO_BATCHES)
    model.compile(optimizer=optimizer, loss=mean_loss, jit_compile=keras.backend.backend() == "jax")
    model.fit(x, y, sample_weight=weights, batch_size=ROWS, shuffle=False, epochs=2, verbose=0)
    whole = trained(make(), batch_size=MICRO_BATCHES * ROWS)
    assert max(np.abs(a - b).max() for a, b in zip(whole, model.get_weights())) > 1e-4


def test_nothing_moves_before_the_last_micro_batch():
    optimizer = token_weighted(keras.optimizers.SGD(1.0, gradient_accumulation_steps=3))
    variable = keras.Variable(np.zeros(1, "float32"))
    for tokens, gradient, expected in ((1.0, 4.0, 0.0), (2.0, 1.0, 0.0), (5.0, 2.0, -2.0), (9.0, 7.0, -2.0)):
        optimizer.batch_tokens = tokens
        optimizer.apply([ops.full((1,), gradient)], [variable])
        assert float(ops.convert_to_numpy(variable)[0]) == pytest.approx(expected)


@pytest.mark.one_backend
@pytest.mark.parametrize(("epochs", "waiting"), [(1, 3), (4, 0)])
def test_batches_that_wait_for_an_update_at_the_end_are_said(epochs, waiting):
    model = small_model()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(ragged_rows()[0], batch_size=ROWS, epochs=epochs, verbose=0)
    found = [str(each.message) for each in said if "gradient_accumulation_steps" in str(each.message)]
    assert [f"the last {waiting} change nothing" in text for text in found] == [True] * bool(waiting)


def test_plain_optimizers_are_untouched():
    optimizer = keras.optimizers.AdamW(1e-3)
    before = type(optimizer)
    assert token_weighted(optimizer) is optimizer and type(optimizer) is before


def test_an_accumulating_optimizer_stays_what_it_is():
    optimizer = keras.optimizers.AdamW(1e-3, gradient_accumulation_steps=2, clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    weighted = token_weighted(optimizer)
    assert isinstance(weighted, keras.optimizers.AdamW) and token_weighted(weighted) is weighted
    assert weighted.clipnorm == 1.0 and weighted._exclude_from_weight_decay_pattern


def test_a_used_optimizer_is_refused():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer.build([keras.Variable(np.zeros(1, "float32"))])
    with pytest.raises(ValueError, match="used already"):
        token_weighted(optimizer)
