"""TextClassifier and TokenClassifier: pooling, labels by name and number, data of any kind, words and their pieces."""

import keras
import numpy as np
import pytest
from differentiate import weight_gradients
from keras import ops
from tiny_bert import (
    LENGTH,
    TEXTS,
    TOKENIZER,
    VOCABULARY,
    Batches,
    alone,
    assert_same_gradients,
    compiled,
    config,
    random_ids,
)

from kerasllm import TextClassifier, TokenClassifier, Tokenizer
from kerasllm.models.labels import Prediction

NAMES = ["sad", "glad", "mad"]
LABELS = [0, 1, 2, 1]
WORDS = [text.split() for text in TEXTS]
WORD_LABELS = [["verb" if word in ("be", "is", "suffer") else "other" for word in words] for words in WORDS]


def text_model(tokenizer=TOKENIZER, dtype=None, labels=NAMES, num_labels=None, pooling=None, dropout=None, **changes):
    keras.utils.set_random_seed(0)
    truncation = changes.pop("truncation", False)
    options = {"num_labels": num_labels, "pooling": pooling, "dropout": dropout, "truncation": truncation}
    return TextClassifier(config(**changes), tokenizer, labels=labels, dtype=dtype, **options)


def token_model(tokenizer=TOKENIZER, dtype=None, labels=("verb", "other"), truncation=False, **changes):
    keras.utils.set_random_seed(0)
    return TokenClassifier(config(**changes), tokenizer, labels=labels, dtype=dtype, truncation=truncation)


def cross_entropy(model, x, y, weights=None):
    """Summed, of the logits."""
    log_p = ops.log_softmax(model(x))
    found = -ops.take_along_axis(log_p, ops.convert_to_tensor(np.asarray(y, "int32"))[..., None], axis=-1)[..., 0]
    return ops.sum(found if weights is None else found * ops.convert_to_tensor(weights))


def tf_dataset(*arrays, batch=2):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


# What is classified -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [None, "first", "mean", "last"])
@pytest.mark.parametrize("causal", [False, True])
def test_pooling(pooling, causal):
    model = text_model(pooling=pooling, causal=causal, pooler=False)
    logits = model.predict(TEXTS, verbose=0)
    assert logits.shape == (4, 3) and logits.dtype == "float32"
    kernel, bias = model.classifier.get_weights()
    for text, row in zip(TEXTS, logits):
        hidden = ops.convert_to_numpy(model.transformer(np.array([TOKENIZER.encode(f"[CLS] {text} [SEP]")])))[0]
        pooled = {"first": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}
        expected = pooled[pooling or ("last" if causal else "first")] @ kernel + bias
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_the_pooler_is_used_and_trained_where_there_is_one():
    model = text_model()
    ids = np.array([TOKENIZER.encode("[CLS] to be [SEP]")])
    hidden = ops.convert_to_numpy(model.transformer(ids))[0, 0]
    kernel, bias = model.transformer.pooler.get_weights()
    pooled = np.tanh(hidden @ kernel + bias)
    kernel, bias = model.classifier.get_weights()
    np.testing.assert_allclose(model.predict("to be", verbose=0)[0], pooled @ kernel + bias, atol=1e-5)
    for other, trains in ((model, True), (text_model(pooling="mean"), False), (token_model(), False)):
        assert ("transformer/pooler/kernel" in {w.path for w in other.trainable_weights}) == trains


def test_weights_that_are_not_used_do_not_train():
    model = compiled(text_model(tie_embeddings=False, pooling="mean"))
    head = ops.convert_to_numpy(model.transformer.embedding.tokens.reverse_embeddings).copy()
    model.fit(TEXTS, LABELS, verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(model.transformer.embedding.tokens.reverse_embeddings), head)


def test_pairs_have_marks_and_segments():
    x = text_model().as_inputs([("to be", "or not"), "whether"])
    assert TOKENIZER.decode(x["token_ids"][0]) == "[CLS] to be [SEP] or not [SEP]"
    assert x["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0] * 7]
    assert x["padding_mask"].sum(1).tolist() == [7, 3]
    assert "segment_ids" not in text_model(num_segments=0).as_inputs([("to", "be")])


def test_a_tokenizer_without_marks_reads_plain_ids():
    tokenizer = Tokenizer.train(TEXTS, kind="char")
    x = text_model(tokenizer).as_inputs([("to", "be"), "or"])
    assert tokenizer.decode(x["token_ids"][0]) == "tobe" and x["segment_ids"][0].tolist() == [0, 0, 1, 1]


def test_dropout_only_while_training():
    model = text_model(dropout=0.5)
    x = random_ids(2, 6)
    same = [ops.convert_to_numpy(model(x)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert np.abs(ops.convert_to_numpy(model(x, training=True)) - same[0]).max() > 1e-3


# Data of any kind -------------------------------------------------------------------------------------------


def as_kind(kind, model):
    x, y = model.as_inputs(TEXTS), np.array(LABELS, "int32")
    halves = [({key: value[i : i + 2] for key, value in x.items()}, y[i : i + 2]) for i in (0, 2)]
    options = {"batch_size": 2}
    if kind.startswith("tf"):
        kinds = {"tf_data": (x, y), "tf_strings": (TEXTS, LABELS), "tf_names": (TEXTS, [NAMES[i] for i in LABELS])}
        return (tf_dataset(*kinds[kind]),), options if kind != "tf_data" else {}
    return {
        "strings": ((TEXTS, LABELS), options),
        "names": ((TEXTS, [NAMES[i] for i in LABELS]), options),
        "text_array": ((np.array(TEXTS), y), options),
        "arrays": ((x, y), options),
        "weighted": ((x, y), {"sample_weight": np.ones(4), **options}),
        "py_dataset": ((Batches(*halves),), {}),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["strings", "names", "text_array", "arrays", "weighted", "py_dataset", "tf_data", "tf_strings", "tf_names"]
)
def test_evaluate_and_fit_read(kind):
    model = compiled(text_model())
    expected = float(ops.stop_gradient(cross_entropy(model, model.as_inputs(TEXTS), LABELS))) / 4
    right = (model.predict(TEXTS, verbose=0).argmax(-1) == LABELS).mean()
    arguments, options = as_kind(kind, model)
    found = model.evaluate(*arguments, **options, verbose=0, return_dict=True)
    assert found == {"loss": pytest.approx(expected, rel=1e-4), "accuracy": right}
    arguments, options = as_kind(kind, model)
    history = model.fit(*arguments, **options, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0] and history["accuracy"][-1] == 1.0


def test_the_order_of_a_pair_is_learned():
    model = compiled(text_model(labels=["after", "before"]), learning_rate=2e-2)
    pairs = [pair for word in ("be", "or", "not") for pair in (("to", word), (word, "to"))]
    names = ["before", "after"] * 3
    model.fit(pairs, names, epochs=25, verbose=0)
    assert [prediction.label for prediction in model.classify(pairs)] == names


def test_a_last_batch_that_is_not_full_counts_as_it_is():
    model = compiled(text_model())
    whole = model.evaluate(TEXTS, LABELS, verbose=0, return_dict=True)
    parts = model.evaluate(TEXTS, LABELS, batch_size=3, verbose=0, return_dict=True)
    assert parts == pytest.approx(whole, rel=1e-5)
    model.fit(TEXTS, LABELS, batch_size=3, validation_split=0.25, verbose=0)


def test_classify():
    model = text_model()
    logits = model.predict(TEXTS, verbose=0)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = model.classify(TEXTS)
    for row, prediction in zip(p, found):
        assert isinstance(prediction, Prediction) and prediction.label == NAMES[row.argmax()]
        assert prediction.probability == pytest.approx(row.max(), rel=1e-5)
        assert prediction.probabilities == pytest.approx(dict(zip(NAMES, row)), rel=1e-4)
        assert list(prediction.probabilities.values()) == sorted(prediction.probabilities.values(), reverse=True)
    assert model.classify(TEXTS[0]).label == found[0].label
    assert isinstance(model.classify(("to be", "or")), Prediction)
    assert text_model(labels=None).classify("to be").label in (0, 1)


def test_a_loss_of_the_users():
    model = compiled(text_model(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"))
    expected = float(ops.stop_gradient(cross_entropy(model, model.as_inputs(TEXTS), LABELS)))
    assert model.evaluate(TEXTS, LABELS, verbose=0) == pytest.approx(expected, rel=1e-4)


# Words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "char", "unigram"])
def test_the_first_piece_of_a_word_carries_its_label(kind):
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocabulary_size={"char": None, "bpe": 262}.get(kind, 40))
    model = token_model(tokenizer, max_sequence_length=40, vocabulary_size=300)
    words, labels = ["question", "mind"], ["verb", "other"]
    x, y, weights = model.as_data([words], [labels], batch_size=1)[0]
    ids, marked = x["token_ids"][0].tolist(), weights[0].nonzero()[0]
    assert len(marked) == 2 and y[0, marked].tolist() == [0, 1]
    assert len(ids) > 4  # the words are in pieces
    pieces = [tokenizer.decode([ids[i]]).strip() for i in marked]
    assert "question".startswith(pieces[0]) and "mind".startswith(pieces[1]) and all(pieces)
    text = tokenizer.decode([i for i in ids if tokenizer.id_to_token(i) not in tokenizer.special_tokens])
    assert text == "question mind"
    assert model.as_inputs("question  mind")["token_ids"].tolist() == [ids]


def token_data(kind, model):
    dataset = model.as_data(WORDS, WORD_LABELS, batch_size=4)
    x, y, weights = dataset[0]
    if kind == "tf_data":
        return (tf_dataset(x, y, weights),), {}
    return {
        "words": ((WORDS, WORD_LABELS), {}),
        "strings": ((TEXTS, WORD_LABELS), {}),
        "numbers": ((WORDS, [[["verb", "other"].index(n) for n in row] for row in WORD_LABELS]), {}),
        "arrays": ((x, y), {"sample_weight": weights}),
        "py_dataset": ((Batches((x, y, weights)),), {}),
    }[kind]


@pytest.mark.parametrize("kind", ["words", "strings", "numbers", "arrays", "py_dataset", "tf_data"])
def test_token_evaluate_and_fit_read(kind):
    model = compiled(token_model())
    x, y, weights = model.as_data(WORDS, WORD_LABELS, batch_size=4)[0]
    expected = float(ops.stop_gradient(cross_entropy(model, x, y, weights))) / weights.sum()
    right = ((model.predict(TEXTS, verbose=0).argmax(-1) == y) * weights).sum() / weights.sum()
    arguments, options = token_data(kind, model)
    found = model.evaluate(*arguments, **options, batch_size=4, verbose=0, return_dict=True)
    if kind != "tf_data":  # two batches there, whose losses Keras averages by rows
        assert found == {"loss": pytest.approx(expected, rel=1e-4), "accuracy": pytest.approx(right)}
    arguments, options = token_data(kind, model)
    history = model.fit(*arguments, **options, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    found = model.classify(WORDS)
    assert [[p.label for p in row] for row in found] == WORD_LABELS
    assert [p.label for p in model.classify(TEXTS[0])] == WORD_LABELS[0]


@pytest.mark.parametrize("wrapped", [False, True])
def test_padding_counts_nothing(wrapped):
    model = compiled(token_model())
    x = model.as_inputs(TEXTS)
    y = random_ids(*x["token_ids"].shape) % 2
    weights = x["padding_mask"].astype("float32")
    expected = float(ops.stop_gradient(cross_entropy(model, x, y, weights))) / weights.sum()
    right = ((ops.convert_to_numpy(model(x)).argmax(-1) == y) * weights).sum() / weights.sum()
    arguments = (Batches((x, y)),) if wrapped else (x, y)
    found = model.evaluate(*arguments, verbose=0, return_dict=True)
    assert found == {"loss": pytest.approx(expected, rel=1e-4), "accuracy": pytest.approx(right)}


def test_sample_weights_of_texts():
    model = compiled(token_model())
    some = model.evaluate(WORDS[:2], WORD_LABELS[:2], verbose=0)
    weighted = model.evaluate(WORDS, WORD_LABELS, sample_weight=np.array([1, 1, 0, 0]), verbose=0)
    assert weighted == pytest.approx(some, rel=1e-4)


def test_truncation_cuts_words_and_keeps_the_end():
    model = token_model(truncation=True)
    assert model.as_inputs("to be " * 20)["token_ids"][0, -1] == TOKENIZER.end_token_id
    assert len(model.classify("to be " * 20)) == LENGTH - 2
    compiled(model).fit([["to"] * 30, ["be"]], [["other"] * 30, ["verb"]], verbose=0)


def test_truncation_cuts_the_longer_text_of_a_pair():
    x = text_model(truncation=True).as_inputs([("to " * 30, "be or not"), "be " * 40])
    expected = ["[CLS]" + " to" * 10 + " [SEP] be or not [SEP]", "[CLS]" + " be" * 14 + " [SEP]"]
    assert TOKENIZER.decode(x["token_ids"]) == expected


# Padded, packed, paired -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["pooler", "mean", "last"])
def test_padded_pairs_teach_what_they_teach_alone(pooling):
    model = text_model(pooling=pooling)
    x = model.as_inputs([("to be", "or not to be"), "that is the question", ("whether", "tis")])
    of_batch = weight_gradients(model, lambda: cross_entropy(model, x, [0, 1, 2]))
    of_each = weight_gradients(model, lambda: sum(cross_entropy(model, alone(x, i), [i]) for i in range(3)))
    assert_same_gradients(of_batch, of_each)


def test_packed_words_teach_what_they_teach_alone():
    model, sizes = token_model(), (6, 9)
    singles = [(random_ids(1, size), random_ids(1, size) % 2) for size in sizes]
    ids, y = (np.concatenate(parts, axis=1) for parts in zip(*singles))
    positions = np.concatenate([np.arange(size) for size in sizes])[None].astype("int32")
    packed = {"token_ids": ids, "document_ids": np.repeat([1, 2], sizes)[None].astype("int32"), "positions": positions}
    of_packed = weight_gradients(model, lambda: cross_entropy(model, packed, y))
    of_each = weight_gradients(model, lambda: sum(cross_entropy(model, *one) for one in singles))
    assert_same_gradients(of_packed, of_each)


# Files, trace, precision ------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same(tmp_path):
    model = compiled(text_model(pooling="mean", dropout=0.25, truncation=True))
    model.fit(TEXTS, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, TextClassifier) and loaded.labels == NAMES
    assert (loaded.pooling, loaded.dropout, loaded.truncation) == ("mean", 0.25, True)
    np.testing.assert_allclose(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0), atol=1e-6)
    expected = model.evaluate(TEXTS, LABELS, verbose=0, return_dict=True)
    assert loaded.evaluate(TEXTS, LABELS, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    loaded.fit(TEXTS, [NAMES[i] for i in LABELS], verbose=0)


def test_a_saved_token_model_is_the_same(tmp_path):
    model = compiled(token_model())
    model.fit(WORDS, WORD_LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, TokenClassifier) and loaded.labels == ["verb", "other"]
    np.testing.assert_allclose(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0), atol=1e-6)
    loaded.fit(WORDS, WORD_LABELS, verbose=0)


def test_trace():
    model = text_model()
    trace = model.trace(("to be", "or"))
    assert trace.tokens == ["[CLS]", "to", "be", "[SEP]", "or", "[SEP]"] and len(trace.hidden_states) == 2
    np.testing.assert_allclose(trace.logits, model.predict([("to be", "or")], verbose=0), atol=1e-5)
    model = token_model()
    trace = model.trace(["to", "be"])
    assert trace.tokens == ["[CLS]", "to", "be", "[SEP]"]
    np.testing.assert_allclose(trace.logits, model.predict("to be", verbose=0), atol=1e-5)


@pytest.mark.parametrize("make", [text_model, token_model])
def test_mixed_precision(make):
    model, exact = compiled(make(dtype="mixed_bfloat16")), make()
    exact.set_weights(model.get_weights())
    found = model.predict(TEXTS, verbose=0)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, exact.predict(TEXTS, verbose=0), atol=0.05)
    assert len(model.trace("to be").tokens) == 4
    data = (TEXTS, LABELS) if make == text_model else (WORDS, WORD_LABELS)
    losses = model.fit(*data, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, -1])
@pytest.mark.parametrize("kind", ["strings", "arrays", "py_dataset", "tf_data", "tf_strings"])
def test_a_label_out_of_range_is_named(kind, label):
    model = compiled(text_model())
    x, y = model.as_inputs(TEXTS), np.array([0, 1, label, 1], "int32")
    error = ValueError
    if kind == "tf_data":
        import tensorflow as tf

        error = (ValueError, tf.errors.InvalidArgumentError)
    with pytest.raises(error, match=r"Label out of range.*num_labels is 3"):
        if kind.startswith("tf"):
            model.fit(tf_dataset(x if kind == "tf_data" else TEXTS, y), verbose=0)
        elif kind == "py_dataset":
            model.fit(Batches((x, y)), verbose=0)
        else:
            model.fit(TEXTS if kind == "strings" else x, y, verbose=0)


def test_bad_inputs_are_named():
    model = compiled(text_model())
    with pytest.raises(ValueError, match=r"no label 'bad'.*sad, glad, mad"):
        model.fit(TEXTS, ["sad", "glad", "mad", "bad"], verbose=0)
    with pytest.raises(ValueError, match=r"no label 'sad'.*labels=\["):
        compiled(text_model(labels=None)).fit(TEXTS, ["sad"] * 4, verbose=0)
    with pytest.raises(ValueError, match="trains on targets"):
        model.fit(TEXTS, verbose=0)
    with pytest.raises(ValueError, match=r"Labels must be integers.*float"):
        model.fit(TEXTS, [0.0, 1.0, 0.0, 1.0], verbose=0)
    with pytest.raises(ValueError, match=r"y of shape \(2,\), inputs of shape \(4,\)"):
        model.fit(TEXTS, [0, 1], verbose=0)
    with pytest.raises(ValueError, match=rf"place 1 has 22 tokens.*reads {LENGTH}.*truncation=True"):
        model.predict(["to", "to " * 20], verbose=0)
    with pytest.raises(ValueError, match=f"Token id out of range: {VOCABULARY}"):
        model.predict([[VOCABULARY]], verbose=0)
    with pytest.raises(ValueError, match="Unknown model input 'positions'"):
        model.predict({"token_ids": random_ids(1, 3), "positions": random_ids(1, 3)}, verbose=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        text_model(tokenizer=None).classify("to be")
    with pytest.raises(ValueError, match="empty"):
        model.classify([])
    for options, message in (
        ({"num_labels": 1, "labels": None}, "num_labels=1"),
        ({"num_labels": 2}, "2 different names"),
        ({"labels": ["a", "a"]}, "different names"),
        ({"pooling": "max"}, "'max'"),
        ({"num_encoder_layers": 1, "causal": True}, "num_encoder_layers=1"),
    ):
        with pytest.raises(ValueError, match=message):
            text_model(**options)


def test_bad_words_are_named():
    model = compiled(token_model())
    with pytest.raises(ValueError, match="2 words and 1 labels in the text at place 1"):
        model.fit([["to"], ["be", "or"]], [["verb"], ["verb"]], verbose=0)
    with pytest.raises(ValueError, match="2 texts, 1 lists of labels"):
        model.fit([["to"], ["be"]], [["verb"]], verbose=0)
    with pytest.raises(ValueError, match="no label 'noun'"):
        model.fit([["to"]], [["noun"]], verbose=0)
    with pytest.raises(ValueError, match=r"Label out of range: 2.*num_labels is 2"):
        model.fit([["to"]], [[2]], verbose=0)
    with pytest.raises(ValueError, match="Label out of range: -7"):
        model.fit(random_ids(2, 4), np.full((2, 4), -7), verbose=0)
    with pytest.raises(ValueError, match=r"place 0 has 22 tokens.*truncation=True"):
        model.classify("to " * 20)
    with pytest.raises(ValueError, match=r"empty or blank.*''"):
        token_model(Tokenizer.train(TEXTS, kind="bpe", vocabulary_size=260), vocabulary_size=300).classify([["to", ""]])
    with pytest.raises(ValueError, match="empty"):
        model.classify([])


# Several labels, and none ---------------------------------------------------------------------------------------


def multi_label(**options):
    keras.utils.set_random_seed(0)
    return TextClassifier(config(), TOKENIZER, labels=NAMES, multi_label=True, **options)


def test_labels_are_probable_for_themselves():
    model = multi_label()
    logits = model.predict(TEXTS[:1], verbose=0)[0]
    found = model.classify(TEXTS[0])
    expected = dict(zip(NAMES, 1 / (1 + np.exp(-logits.astype("float64")))))
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert found.label == max(expected, key=expected.get) and found.probability == max(found.probabilities.values())


def test_several_labels_train_on_binary_cross_entropy():
    model = compiled(multi_label())
    sets, rows = [["sad", "mad"], [], ["glad"], NAMES], np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]])
    logits = model.predict(TEXTS, verbose=0).astype("float64")
    expected = (np.logaddexp(0, logits) - rows * logits).mean()  # BCEWithLogitsLoss of transformers
    for y in (sets, rows, [[0, 2], [], [1], [0, 1, 2]]):
        found = model.evaluate(TEXTS, y, verbose=0, return_dict=True)
        assert found["loss"] == pytest.approx(expected, rel=1e-4)
        assert found["accuracy"] == pytest.approx(((logits > 0) == rows).mean(), abs=1e-5)
    model.fit(TEXTS, sets, epochs=25, verbose=0)
    assert model.evaluate(TEXTS, sets, verbose=0, return_dict=True)["accuracy"] > 0.9
    for y, message in (
        (["sad"] * 4, "a list of labels.*'sad'"),
        ([["sad"], ["bad"], [], []], "no label 'bad'"),
        ([[3], [], [], []], "Label out of range: 3"),
        (rows * 2, "0 or 1"),
        (rows[:, :2], r"3 numbers.*\(4, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(TEXTS, y, verbose=0)


def test_several_labels_are_kept(tmp_path):
    model = compiled(multi_label())
    for save, load in (
        (lambda: model.save(tmp_path / "m.keras"), lambda: keras.saving.load_model(tmp_path / "m.keras")),
        (lambda: model.save_to_preset(tmp_path / "m"), lambda: TextClassifier.from_preset(tmp_path / "m")),
    ):
        save()
        loaded = load()
        assert loaded.multi_label
        assert loaded.classify(TEXTS[0]).probabilities == pytest.approx(
            model.classify(TEXTS[0]).probabilities, abs=1e-5
        )
