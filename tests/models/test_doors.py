"""Every door of training gives the same answer to the same fault, whatever the data is wrapped in; and after an
error the model is as it was."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from kerasllm import CausalLM, MaskedLM, Seq2SeqLM, TextClassifier, TextEmbedder, TokenClassifier, Tokenizer
from kerasllm import TransformerConfig as Config

VOCABULARY, LENGTH, ROWS, BATCH = 20, 6, 4, 2
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "initializer_range": 0.2}
XLA = keras.backend.backend() == "jax"
TEXTS = ["to be or not", "to be", "that is it", "or not"]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = CausalLM(Config(VOCABULARY, LENGTH, **SIZES))
    model.compile(keras.optimizers.SGD(0.0), jit_compile=XLA)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, kind="wordpiece", vocabulary_size=40)


def arrays():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, VOCABULARY, (2, ROWS, LENGTH)).astype("int32")
    return x, y, np.ones((ROWS, LENGTH), "float32")


class Batches(keras.utils.PyDataset):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def __len__(self):
        return ROWS // BATCH

    def __getitem__(self, index):
        return tuple(part[index * BATCH : (index + 1) * BATCH] for part in self.parts)


def data_loader(parts, as_dict=False):
    """A DataLoader of (x, …), or of ({"token_ids": x}, …)."""
    rows = [
        ({"token_ids": row[0]}, *row[1:]) if as_dict else row for row in zip(*(torch.as_tensor(part) for part in parts))
    ]
    return torch.utils.data.DataLoader(rows, batch_size=BATCH)


def tf_data(parts):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(tuple(parts)).batch(BATCH)


# What fit and evaluate are given.
KINDS = {
    "arrays": lambda parts: parts,
    "a dict": lambda parts: ({"token_ids": parts[0]}, *parts[1:]),
    "PyDataset": lambda parts: (Batches(parts),),
    "tf.data": lambda parts: (tf_data(parts),),
    "generator": lambda parts: (batch_generator(parts),),
    "DataLoader": lambda parts: (data_loader(parts),),
    "DataLoader of dicts": lambda parts: (data_loader(parts, as_dict=True),),
}


def batch_generator(parts):
    yield from (Batches(parts)[step] for step in range(ROWS // BATCH))


def changed(part, value, row=ROWS - 1):
    part = part.copy()
    part[row, 2] = value
    return part


# What is wrong → the data, and the words of the error.
FAULTS = {
    "an id too large": (lambda x, y, w: (changed(x, 25), y), "Token id out of range: 25. The model's vocabulary_size"),
    "a negative id": (lambda x, y, w: (changed(x, -1), y), "Token id out of range: -1"),
    "floats as ids": (lambda x, y, w: (x.astype("float32"), y), "Token ids must be integers. Received: dtype=float32"),
    "a target too large": (lambda x, y, w: (x, changed(y, 25)), "Token id out of range: 25"),
    "a negative target": (
        lambda x, y, w: (x, changed(y, -7)),
        r"out of range: -7.*or -100 for one that does not count",
    ),
    "targets too short": (lambda x, y, w: (x, y[:, 1:]), r"y of shape .*5.*, inputs of shape .*6"),
    "targets a row": (lambda x, y, w: (x, y[:, 0]), "Targets must have the shape"),
    "a weight that is no number": (
        lambda x, y, w: (x, y, changed(w, np.nan)),
        "Weights must be finite and not negative",
    ),
    "a negative weight": (lambda x, y, w: (x, y, changed(w, -1.0)), "Weights must be finite and not negative"),
}
# `evaluate` reads its data as `fit` does, on each backend.
DOORS = ("fit", pytest.param("evaluate", marks=pytest.mark.one_backend))


def given(door, kind, parts):
    """(positional arguments, options) of a door."""
    arguments = KINDS[kind](tuple(parts))
    options = {"verbose": 0}
    if len(arguments) > 1:
        options["batch_size"] = BATCH
    names = ("x", "y", "sample_weight")
    return {**dict(zip(names, arguments)), **options}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_a_fault_has_the_same_words_at_every_door(door, kind, fault, model):
    make, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words):
        getattr(model, door)(**given(door, kind, make(*arrays())))
    assert np.isfinite(ops.convert_to_numpy(model(arrays()[0]))).all()  # The weights are where they were.


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("door", ["train_on_batch", "test_on_batch", "validation_data"])
def test_a_fault_in_one_batch_has_the_same_words(door, fault, model):
    make, words = FAULTS[fault]
    parts = make(*arrays())
    with pytest.raises(ValueError, match=words):
        if door == "validation_data":
            model.fit(*arrays()[:2], validation_data=parts, verbose=0)
        else:
            getattr(model, door)(*parts)


@pytest.mark.parametrize("kind", KINDS)
def test_predict_names_an_id_out_of_range(kind, model):
    x = changed(arrays()[0], 25)
    with pytest.raises(ValueError, match="Token id out of range: 25"):
        model.predict(KINDS[kind]((x,))[0], verbose=0)
    with pytest.raises(ValueError, match="Token id out of range: 25"):
        model.predict_on_batch(x)
    assert model.predict(KINDS[kind]((arrays()[0],))[0], verbose=0).shape == (ROWS, LENGTH, VOCABULARY)


# -100, weights, padding: what counts -----------------------------------------------------------------------


def mean_loss(model, x, y, weights, **inputs):
    """By hand: the mean over what counts."""
    logits = ops.convert_to_numpy(model({"token_ids": x, **inputs})).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_p, np.where(y < 0, 0, y)[..., None], -1)[..., 0]
    weights = np.broadcast_to(weights, y.shape) * (y >= 0)
    return (losses * weights).sum() / weights.sum(), (losses * weights).sum() / (weights > 0).sum(), log_p


def some_ignored():
    x, y, _ = arrays()
    y[:, :2], y[1] = -100, -100
    return x, y


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_minus_100_count_nothing(kind, model):
    x, y = some_ignored()
    wanted = mean_loss(model, x, y, 1.0)[0]
    found = model.evaluate(**given("evaluate", kind, (x, y)), return_dict=True)
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(wanted), rel=1e-5)
    assert model.fit(**given("fit", kind, (x, y))).history["loss"][0] == pytest.approx(wanted, rel=1e-5)


def test_labels_of_minus_100_in_one_batch(model):
    model.evaluate(*arrays()[:2], verbose=0)  # On TensorFlow the step was compiled for another batch.
    x, y = some_ignored()
    wanted = mean_loss(model, x, y, 1.0)[0]
    assert model.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(wanted, rel=1e-5)
    assert model.train_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(wanted, rel=1e-5)


def test_labels_of_minus_100_as_in_transformers(model):
    from transformers.loss.loss_utils import ForCausalLMLoss

    x, y = some_ignored()
    logits = torch.tensor(ops.convert_to_numpy(model(x)))
    theirs = ForCausalLMLoss(logits, None, VOCABULARY, shift_labels=torch.tensor(y).long())
    assert model.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("weights", ["a row", "a column", "a token", "zero"])
def test_weights(weights, model):
    x, y, _ = arrays()
    rng = np.random.default_rng(1)
    shape = {"a row": (ROWS,), "a column": (ROWS, 1), "a token": (ROWS, LENGTH), "zero": (ROWS, LENGTH)}[weights]
    given = rng.uniform(0.5, 2, shape).astype("float32") * (weights != "zero")
    found = model.evaluate(x, y, sample_weight=given, batch_size=BATCH, verbose=0, return_dict=True)["loss"]
    full = given[:, None] if given.ndim == 1 else given
    assert found == pytest.approx(0.0 if weights == "zero" else mean_loss(model, x, y, full)[0], rel=1e-5)
    with pytest.raises(ValueError, match=r"one for each target.*Received: sample_weight of shape \(4, 5\)"):
        model.evaluate(x, y, sample_weight=np.ones((ROWS, LENGTH - 1)), verbose=0)


def test_padding_counts_nothing_where_no_weights_say_so(model):
    x, y, _ = arrays()
    mask = np.arange(LENGTH) < np.array([[6], [3], [2], [5]])
    inputs = {"token_ids": x, "padding_mask": mask}
    wanted = mean_loss(model, x, y, mask, padding_mask=mask)[0]
    assert model.evaluate(inputs, y, batch_size=BATCH, verbose=0)[0] == pytest.approx(wanted, rel=1e-5)


LOSSES = {
    "by name": lambda: "sparse_categorical_crossentropy",
    "an object": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "divided by weights": lambda: keras.losses.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight"),
    "a function": lambda: lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True),
}


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "by name"])
def test_a_loss_and_metrics_of_the_users_leave_padding_out(loss):
    keras.utils.set_random_seed(0)
    model = CausalLM(Config(VOCABULARY, LENGTH, **SIZES))
    right = keras.metrics.SparseCategoricalAccuracy(name="right")
    weighted = keras.metrics.SparseCategoricalAccuracy(name="weighted")
    options = {"metrics": [right], "weighted_metrics": [weighted], "jit_compile": XLA}
    model.compile(keras.optimizers.SGD(0.0), loss=LOSSES[loss](), **options)
    x, y, _ = arrays()
    mask = np.arange(LENGTH) < np.array([[6], [3], [2], [5]])
    _, wanted, log_p = mean_loss(model, x, y, mask, padding_mask=mask)
    accuracy = ((log_p.argmax(-1) == y) * mask).sum() / mask.sum()
    inputs, options = {"token_ids": x, "padding_mask": mask}, {"batch_size": ROWS, "verbose": 0, "return_dict": True}
    wanted = pytest.approx({"loss": wanted, "right": accuracy, "weighted": accuracy}, rel=1e-5)
    assert model.evaluate(inputs, y, **options) == wanted
    assert model.evaluate(inputs, y, sample_weight=mask.astype("float32"), **options) == wanted
    if loss != "a function":
        assert model.evaluate(inputs, np.where(mask, y, -100), **options) == wanted
    else:
        with pytest.raises(ValueError, match="A loss function of your own sees all targets"):
            model.evaluate(x, np.where(mask, y, -100), **options)


# Missing targets, texts, positional arguments ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_next_tokens_where_there_are_none(kind, model):
    ids = np.concatenate([arrays()[0], arrays()[1][:, :1]], axis=1)
    wanted = model.evaluate(ids[:, :-1], ids[:, 1:], batch_size=BATCH, verbose=0)
    assert model.evaluate(**given("evaluate", kind, (ids,))) == pytest.approx(wanted, rel=1e-5)
    assert model.test_on_batch(ids) == pytest.approx(wanted, rel=1e-5)


def test_texts_in_every_wrapping(tokenizer):
    import tensorflow as tf

    model = CausalLM(Config(tokenizer.vocabulary_size, 16, **SIZES), tokenizer)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=XLA)
    wanted = model.evaluate(TEXTS, verbose=0)
    endless = tf.data.Dataset.from_tensor_slices(TEXTS * 20).shuffle(4).repeat()
    for texts in (
        tf.data.Dataset.from_tensor_slices(TEXTS),
        tf.data.Dataset.from_tensor_slices(TEXTS).batch(4),
        torch.utils.data.DataLoader(TEXTS, batch_size=4),
        (batch for batch in [TEXTS]),
    ):
        assert model.evaluate(texts, verbose=0) == pytest.approx(wanted, rel=1e-5)
    assert model.test_on_batch(TEXTS) == pytest.approx(wanted, rel=1e-5)
    assert model.train_on_batch(TEXTS) == pytest.approx(wanted, rel=1e-5)
    assert model.predict_on_batch(["to be"]).shape == model.predict(["to be"], verbose=0).shape
    assert len(model.fit(endless, steps_per_epoch=2, epochs=2, verbose=0).history["loss"]) == 2
    with pytest.raises(ValueError, match=r"no end.*steps_per_epoch"):
        model.fit(endless, verbose=0)


@pytest.mark.one_backend
def test_texts_are_shuffled_anew_in_each_epoch(tokenizer):
    import tensorflow as tf

    model = TextClassifier(Config(tokenizer.vocabulary_size, 16, causal=False, **SIZES), tokenizer)
    model.compile("sgd")
    seen = []
    texts = tf.data.Dataset.from_tensor_slices((TEXTS * 4, [0, 1] * 8)).shuffle(16, seed=0)
    data = model.as_data(texts, batch_size=16, training=True)
    for _ in range(2):
        seen.append([np.asarray(batch[0]["token_ids"]) for batch in data])
    assert not np.array_equal(seen[0][0], seen[1][0])
    np.testing.assert_array_equal(np.sort(seen[0][0], axis=0), np.sort(seen[1][0], axis=0))


TASKS = {
    "classifier": (TextClassifier, {"num_labels": 3}, "trains on targets too"),
    "token classifier": (TokenClassifier, {"num_labels": 3}, "trains on targets too"),
}


@pytest.mark.parametrize("task", TASKS)
def test_labels_of_minus_100_in_classifiers(task):
    cls, options, missing = TASKS[task]
    model = cls(Config(VOCABULARY, LENGTH, causal=False, **SIZES), **options)
    model.compile(keras.optimizers.SGD(0.0), jit_compile=XLA)
    x = arrays()[0]
    y = np.array([0, -100, 2, 1]) if task == "classifier" else np.where(x % 4 == 3, -100, x % 4)
    wanted, _, log_p = mean_loss(model, x, y, 1.0)
    right = (log_p.argmax(-1) == y).sum() / (y >= 0).sum()
    found = model.evaluate(x, y, batch_size=ROWS, verbose=0, return_dict=True)
    assert found == pytest.approx({"loss": wanted, "accuracy": right}, rel=1e-5)
    for labels, words in ((y + 3, "Label out of range"), (y - 5, "Label out of range"), (None, missing)):
        with pytest.raises(ValueError, match=words):
            model.fit(x, labels, verbose=0)
        with pytest.raises(ValueError, match=words):
            model.train_on_batch(x, labels)
    # A class counts what it is said to, as with weights of the rows; what is not named counts 1.
    table = np.array([1.0, 4.0, 0.5])
    weights = table[np.where(y < 0, 0, y)].astype("float32")
    wanted = mean_loss(model, x, y, weights)[0]
    for data in ((x, y), (tf_data((x, y)).unbatch().batch(ROWS),), (data_loader((x, y)),)):
        found = model.fit(*data, batch_size=ROWS, class_weight={1: 4.0, 2: 0.5}, verbose=0).history["loss"][0]
        if len(data) > 1:
            assert found == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="Label out of range: 3"):
        model.fit(x, y, class_weight={3: 1.0}, verbose=0)


@pytest.mark.one_backend
def test_what_cannot_be_is_said_in_one_sentence(model, tokenizer):
    x, y, _ = arrays()
    raw = CausalLM(Config(VOCABULARY, LENGTH, **SIZES))
    for door in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        with pytest.raises(ValueError, match=rf"not compiled. Call model.compile\(optimizer\) before model.{door}"):
            getattr(raw, door)(x, y)
    for options, words in (
        ({"batch_size": 0}, "`batch_size` must be a whole number from 1 on. Received: batch_size=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"epochs": "3"}, "epochs='3'"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"class_weight": {25: 1.0}}, "Token id out of range: 25"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(x, y, **options, verbose=0)
    with pytest.raises(ValueError, match="leaves no rows to train on"):
        model.fit(x[:1], y[:1], validation_split=0.1, verbose=0)
    for data, words in (
        ([], "nothing to read"),
        (x[:0], "There are no token ids"),
        (3, "Data must be"),
        (None, "Data must be"),
    ):
        with pytest.raises(ValueError, match=words):
            model.fit(data, verbose=0)
        with pytest.raises(ValueError):
            model.predict(data, verbose=0)
    with pytest.raises(ValueError, match=r"hold their own targets and weights.*Received: y beside it"):
        model.fit(Batches((x, y)), y, verbose=0)
    with pytest.raises(ValueError, match="`padding_mask` must have the shape of the tokens"):
        model.fit({"token_ids": x, "padding_mask": np.ones((ROWS, 5), "bool")}, y, verbose=0)
    with pytest.raises(ValueError, match="`class_weight` needs the targets of rows"):
        embedder = TextEmbedder(Config(VOCABULARY, LENGTH, causal=False, dropout=0.1, **SIZES))
        embedder.compile("sgd")
        embedder.fit(x, class_weight={0: 1.0}, verbose=0)
    masked = MaskedLM(Config(VOCABULARY, LENGTH, causal=False, **SIZES))
    masked.compile("sgd")
    with pytest.raises(ValueError, match="no tokenizer"):
        masked.fit(x, verbose=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        masked.fit(Batches((x,)), verbose=0)
    seq2seq = Seq2SeqLM(Config(tokenizer.vocabulary_size, LENGTH, num_encoder_layers=1, **SIZES), tokenizer)
    seq2seq.compile("sgd")
    with pytest.raises(ValueError, match="Sources need targets"):
        seq2seq.fit(TEXTS, verbose=0)
    with pytest.raises(ValueError, match="Sources need targets"):
        seq2seq.train_on_batch(TEXTS)


@pytest.mark.one_backend
def test_callbacks_that_set_the_rate_of_a_schedule():
    model = CausalLM(Config(VOCABULARY, LENGTH, **SIZES))
    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)))
    for callback in (keras.callbacks.ReduceLROnPlateau(), keras.callbacks.LearningRateScheduler(lambda epoch: 0.1)):
        with pytest.raises(ValueError, match=r"sets the learning rate, and the optimizer has a schedule.*Leave"):
            model.fit(*arrays()[:2], callbacks=[callback], verbose=0)
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(*arrays()[:2], validation_split=0.5, callbacks=[keras.callbacks.ReduceLROnPlateau()], verbose=0)


@pytest.mark.one_backend
def test_arguments_stand_where_keras_has_them(model):
    x, y, weights = arrays()
    assert len(model.fit(x, y, BATCH, 2, 0).history["loss"]) == 2
    assert model.evaluate(x, y, BATCH, 0, weights) == model.evaluate(x, y, batch_size=BATCH, verbose=0)
    assert len(model.predict(x, BATCH, 0, 1)) == BATCH


@pytest.mark.one_backend
def test_the_summary_shows_the_blocks(model):
    for expand in (False, True):
        lines = []
        model.summary(expand_nested=expand, print_fn=lines.append)
        assert ("block_0" in "\n".join(lines)) == expand and "transformer" in "\n".join(lines)
    assert not hasattr(model.transformer, "layers")
