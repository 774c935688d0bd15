"""fit, evaluate and predict on every kind of data, with any loss; bad data is named."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, Tokenizer, TransformerConfig

VOCABULARY, LENGTH, ROWS = 30, 8, 8
TEXTS = ["to be or not to be", "that is the question", "whether", "tis nobler in the mind", "to suffer"]


def make_model(tokenizer=None, compiled=True, **changes):
    keras.utils.set_random_seed(0)
    vocabulary = tokenizer.vocabulary_size if tokenizer else VOCABULARY
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.1}
    model = CausalLM(TransformerConfig(vocabulary, LENGTH, **sizes, **changes), tokenizer=tokenizer)
    if compiled:
        # XLA on TensorFlow would only make these tests slow.
        model.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=keras.backend.backend() == "jax")
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, kind="char", special_tokens=["<|endoftext|>"])


def rows(count=ROWS, length=LENGTH + 1):
    return np.random.default_rng(count).integers(0, VOCABULARY, (count, length)).astype("int32")


class Batches(keras.utils.PyDataset):
    """A user's PyDataset of (inputs, next tokens)."""

    def __init__(self, x, y=None, size=4):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part] if self.y is None else (self.x[part], self.y[part])


def tf_dataset(*arrays):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0]).batch(4)


def as_kind(kind, ids):
    """(positional arguments, options) of fit and evaluate for the same tokens in another wrapping."""
    x, y = ids[:, :-1], ids[:, 1:]
    return {
        "array": ((ids,), {}),
        "list": ((ids.tolist(),), {}),
        "dict": (({"token_ids": ids},), {}),
        "arrays": ((x, y), {}),
        "weighted": (({"token_ids": x}, y), {"sample_weight": np.ones(y.shape, "float32")}),
        "row_weights": ((x, y), {"sample_weight": np.full(len(y), 2.0, "float32")}),
        "int64": ((ids.astype("int64"),), {}),
        "py_dataset": ((Batches(x, y),), {}),
        "tf_data": ((tf_dataset(x, y),), {}),
        "generator": (((batch for batch in ((x[:4], y[:4]), (x[4:], y[4:])) * 4),), {}),
    }[kind]


KINDS = (
    "array",
    "list",
    "dict",
    "arrays",
    "weighted",
    "row_weights",
    "int64",
    "py_dataset",
    "tf_data",
    "generator",
)


@pytest.fixture(scope="module")
def expected():
    """Loss of an untrained model and of the same after one epoch, by numpy and by plain arrays."""
    model, ids = make_model(), rows()
    logits = ops.convert_to_numpy(model(ids[:, :-1])).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, ids[:, 1:, None], axis=-1).mean()
    return loss, make_model().fit(ids, batch_size=4, shuffle=False, verbose=0).history["loss"][0]


@pytest.fixture(scope="module")
def compiled():
    """One model whose compiled steps are shared, and the weights and optimizer state it began with."""
    model = make_model()
    model.optimizer.build(model.trainable_variables)
    state = [*model.variables, *model.optimizer.variables]
    return model, [(variable, ops.convert_to_numpy(variable).copy()) for variable in state]


@pytest.fixture
def fresh(compiled):
    """The shared model as it began."""
    model, state = compiled
    for variable, value in state:
        variable.assign(value)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_and_fit_read(kind, expected, fresh):
    model = fresh
    arguments, options = as_kind(kind, rows())
    sized = {} if kind in ("py_dataset", "tf_data", "generator") else {"batch_size": 4}
    steps = {"steps": 2} if kind == "generator" else {}
    found = model.evaluate(*arguments, **options, **sized, **steps, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected[0], rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(expected[0]), rel=1e-4)
    arguments, options = as_kind(kind, rows())
    steps = {"steps_per_epoch": 2} if kind == "generator" else {}
    history = model.fit(*arguments, **options, **sized, **steps, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[1], rel=1e-4)
    assert set(history) == {"loss", "perplexity", "accuracy"}


@pytest.mark.parametrize("kind", ["array", "list", "dict", "py_dataset", "tf_data", "generator"])
def test_predict_reads(kind, fresh):
    model, ids = fresh, rows(length=LENGTH)
    wrapped = {
        "array": ids,
        "list": ids.tolist(),
        "dict": {"token_ids": ids},
        "py_dataset": Batches(ids),
        "tf_data": tf_dataset(ids),
        "generator": ((part,) for part in (ids[:4], ids[4:])),
    }[kind]
    found = model.predict(wrapped, verbose=0)
    assert found.shape == (ROWS, LENGTH, VOCABULARY)
    np.testing.assert_allclose(found, ops.convert_to_numpy(model(ids)), atol=1e-5)


def test_strings(tokenizer):
    model = make_model(tokenizer)
    before = model.evaluate(TEXTS, verbose=0, return_dict=True)
    history = model.fit(TEXTS, batch_size=4, epochs=6, validation_data=TEXTS[:2], verbose=0).history
    assert set(history) == {
        f"{v}{m}" for v in ("", "val_") for m in ("loss", "perplexity", "accuracy", "bits_per_byte")
    }
    assert history["loss"][-1] < before["loss"] and len(history["val_loss"]) == 6
    logits = model.predict(["to be", "or"], verbose=0)
    assert logits.shape == (2, 5, tokenizer.vocabulary_size)
    np.testing.assert_allclose(logits[1, :2], model.predict("or", verbose=0)[0], atol=1e-5)


def test_strings_from_tf_data(tokenizer):
    import tensorflow as tf

    model = make_model(tokenizer)
    of_list = model.evaluate(TEXTS, verbose=0, return_dict=True)
    of_pipeline = model.evaluate(tf.data.Dataset.from_tensor_slices(TEXTS), verbose=0, return_dict=True)
    assert of_pipeline == pytest.approx(of_list, rel=1e-5)


def test_evaluate_is_the_sum_of_scores(tokenizer):
    end = tokenizer.end_token_id
    texts = ["to be", "or not", "the"]
    model = make_model(tokenizer)
    found = model.evaluate([[*tokenizer.encode(t), end] for t in texts], verbose=0, return_dict=True)
    scores = np.concatenate(model.score([[*tokenizer.encode(t), end] for t in texts]))
    assert found["loss"] == pytest.approx(-scores.mean(), rel=1e-4)
    of_texts = model.evaluate(texts, verbose=0, return_dict=True)  # the same, packed
    assert of_texts["loss"] == pytest.approx(-scores.mean(), rel=1e-4)
    assert of_texts["bits_per_byte"] == pytest.approx(
        -scores.sum() / np.log(2) / sum(len(t) - 1 for t in texts), rel=1e-4
    )


def test_padding_and_other_documents_are_no_targets():
    ids = rows(2)
    ids[0, 4:] = 0
    mask = np.ones_like(ids, "bool")
    mask[0, 4:] = False
    documents = np.ones_like(ids)
    documents[1, 5:] = 2
    model = make_model()
    scores = [model.score([ids[0, :4]])[0], model.score([ids[1, :LENGTH]])[0]]
    mask[1, LENGTH:] = False  # the context ends there
    found = model.evaluate({"token_ids": ids, "padding_mask": mask}, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(-np.concatenate(scores).mean(), rel=1e-4)
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 0, 1, 2, 3]], "int32") % LENGTH
    packed = {"token_ids": ids[1:], "document_ids": documents[1:], "positions": positions[1:]}
    scores = model.score([ids[1, :5], ids[1, 5:]])
    found = model.evaluate(packed, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(-np.concatenate(scores).mean(), rel=1e-4)


@pytest.mark.parametrize("kind", ["list", "strings"])
def test_validation_split_takes_the_last_rows(kind, tokenizer):
    # Rows of a list: their number counts, not their length.
    data = {"list": list(rows(10)), "strings": [TEXTS[i % 5] for i in range(10)]}[kind]
    model = make_model(tokenizer) if kind == "strings" else make_model()
    history = model.fit(data, validation_split=0.2, batch_size=4, verbose=0).history
    alone = model.evaluate(data[-2:], batch_size=4, verbose=0, return_dict=True)
    assert history["val_loss"][0] == pytest.approx(alone["loss"], rel=1e-4)


def test_batches_of_other_sizes_may_follow():
    model = make_model()
    data = rows(12)
    losses = [model.evaluate(data, batch_size=size, verbose=0, return_dict=True)["loss"] for size in (4, 6, 5)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    for size in (4, 6):
        model.fit(data, batch_size=size, validation_data=data[:4], verbose=0)


# A loss or metrics of the user's ----------------------------------------------------------------------------


class MeanLogit(keras.metrics.Mean):
    """Sees what the model gives a metric: it must be logits."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        assert y_pred.shape[-1] == VOCABULARY
        super().update_state(y_pred)


def test_a_loss_of_the_users_gets_logits(expected):
    model = make_model(compiled=False)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="right"), MeanLogit(name="logit")],
        jit_compile=keras.backend.backend() == "jax",
    )
    found = model.evaluate(rows(), batch_size=4, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected[0], rel=1e-4) and set(found) == {"loss", "right", "logit"}
    history = model.fit(rows(), batch_size=4, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[1], rel=1e-4)
    assert model.predict(rows(length=4), verbose=0).shape == (ROWS, 4, VOCABULARY)


def test_metrics_of_the_users_beside_the_default_loss(expected):
    model = make_model(compiled=False)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="right")],
        jit_compile=keras.backend.backend() == "jax",
    )
    found = model.evaluate(rows(), batch_size=4, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected[0], rel=1e-4)
    assert found["right"] == pytest.approx(found["accuracy"], abs=1e-6)
    history = model.fit(rows(), batch_size=4, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(expected[1], rel=1e-4)


# Each step is compiled once ---------------------------------------------------------------------------------


def test_epochs_and_validation_do_not_compile_anew(monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("Keras runs PyTorch uncompiled")
    model = make_model()
    traces, compute_loss = [], model.compute_loss

    def counted(*arguments, **options):
        traces.append(bool(options.get("training", True)))
        return compute_loss(*arguments, **options)

    monkeypatch.setattr(model, "compute_loss", counted)
    options = {"batch_size": 4, "validation_data": rows(6), "verbose": 0}
    for epochs in (2, 3):
        model.fit(rows(11), epochs=epochs, **options)  # neither divides: the last batches are filled up
        assert traces == [True, False]  # a step of training, a step of validation


# Bad data is named ------------------------------------------------------------------------------------------


def bad_ids(value):
    ids = rows()
    ids[5, 3] = value
    return ids


@pytest.mark.parametrize("value", [VOCABULARY, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_fit_names_an_id_out_of_range(kind, value, fresh):
    model = fresh
    arguments, options = as_kind(kind, bad_ids(value))
    options |= {"py_dataset": {}, "tf_data": {}, "generator": {"steps_per_epoch": 2}}.get(kind, {"batch_size": 4})
    error = ValueError
    if kind == "tf_data":
        import tensorflow as tf

        error = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(error, match=rf"Token id out of range.*vocabulary_size is {VOCABULARY}"):
        model.fit(*arguments, **options, verbose=0)


def test_every_other_door_names_an_id_out_of_range():
    model, ids = make_model(), bad_ids(99)[:, :LENGTH]
    message = f"Token id out of range: 99.*vocabulary_size is {VOCABULARY}"
    for door in (model, model.score, model.trace, lambda x: model.predict(x, verbose=0)):
        with pytest.raises(ValueError, match=message):
            door(ids[5] if door == model.trace else ids)
    with pytest.raises(ValueError, match=message):
        model.predict(Batches(ids), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(bad_ids(99), verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(ids * 0, ids * 0 + 99, verbose=0)


def test_bad_inputs_are_named(tokenizer):
    model, ids = make_model(), rows(length=LENGTH)
    with pytest.raises(ValueError, match=rf"{LENGTH + 1} tokens.*max_sequence_length={LENGTH}"):
        model(rows())
    with pytest.raises(ValueError, match=f"{LENGTH + 2} tokens.*context is {LENGTH}"):
        model.fit(rows(length=LENGTH + 2), verbose=0)
    with pytest.raises(ValueError, match=r"Unknown model input 'attention_mask'.*padding_mask"):
        model({"token_ids": ids, "attention_mask": ids})
    with pytest.raises(ValueError, match="Unknown model input 'segment_ids'"):
        model.fit({"token_ids": ids, "segment_ids": ids}, verbose=0)
    with pytest.raises(ValueError, match="token_ids"):
        model.predict({"padding_mask": ids}, verbose=0)
    with pytest.raises(ValueError, match=r"must be integers.*float"):
        model.fit(ids.astype("float32"), verbose=0)
    with pytest.raises(ValueError, match="shape"):
        model.predict(ids[0], verbose=0)
    with pytest.raises(ValueError, match="rows"):
        model.predict([1, 2, 3], verbose=0)
    with pytest.raises(ValueError, match="one token"):
        model.fit(ids[:, :1], verbose=0)
    with pytest.raises(ValueError, match="empty"):
        model.score([[1, 2], []])
    with pytest.raises(ValueError, match="no tokenizer"):
        model.fit(["text"], verbose=0)
    with pytest.raises(ValueError, match="validation_split"):
        model.fit(rows(), validation_split=1.5, verbose=0)
    with pytest.raises(ValueError, match="more tokens than the model"):
        CausalLM(model.config.replace(vocabulary_size=3), tokenizer=tokenizer)


@pytest.mark.parametrize("ignored", [0, 3])
def test_targets_that_are_the_inputs_are_refused(ignored):
    model, ids = make_model(), rows(length=LENGTH)
    labels = ids.copy()
    labels[:, :ignored] = -100
    with pytest.raises(ValueError, match=r"`y` is `token_ids` itself.*\[:, 1:\]"):
        model.fit(ids, labels, verbose=0)


def test_padding_on_the_left_is_refused_where_positions_are_counted():
    ids, mask = rows(length=LENGTH), np.ones((ROWS, LENGTH), bool)
    mask[2, :3] = False
    with pytest.raises(ValueError, match=r"Row 2 of `padding_mask` begins with padding.*Pad on the right"):
        make_model().predict({"token_ids": ids, "padding_mask": mask}, verbose=0)
