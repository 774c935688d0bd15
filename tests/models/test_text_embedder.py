"""TextEmbedder: vectors, their similarity, and what it learns from pairs and from texts alone."""

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

from kerasllm import TextEmbedder
from kerasllm.objectives import info_nce, pair_rows

PAIRS = list(zip(TEXTS, ["hamlet one", "hamlet two", "three", "four five"]))


def make_model(tokenizer=TOKENIZER, dtype=None, pooling="mean", normalize=True, truncation=False, **changes):
    keras.utils.set_random_seed(0)
    options = {"pooling": pooling, "normalize": normalize, "truncation": truncation}
    return TextEmbedder(config(**changes), tokenizer=tokenizer, dtype=dtype, **options)


def vectors(model, x):
    return model.predict(x, verbose=0)


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "pooler"])
def test_vectors_are_of_the_real_tokens(pooling):
    model = make_model(pooling=pooling)
    found = vectors(model, TEXTS)
    assert found.shape == (4, 16) and found.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, found):
        np.testing.assert_allclose(vectors(model, text)[0], vector, atol=1e-5)
        ids = np.array([TOKENIZER.encode(f"[CLS] {text} [SEP]")])
        hidden = ops.convert_to_numpy(model.transformer(ids))[0]
        pooled = {
            "mean": hidden.mean(0),
            "first": hidden[0],
            "last": hidden[-1],
            "pooler": np.tanh(hidden[0] @ model.transformer.pooler.get_weights()[0]),
        }[pooling]
        np.testing.assert_allclose(pooled / np.linalg.norm(pooled), vector, atol=1e-5)


def test_vectors_of_their_own_length():
    model = make_model(normalize=False)
    assert np.abs(np.linalg.norm(vectors(model, TEXTS), axis=1) - 1).min() > 0.1
    assert model.similarity("to be", "to be") == pytest.approx(1, abs=1e-5)


def test_predict_reads_arrays():
    model, ids = make_model(), random_ids(4, 8)
    expected = vectors(model, ids)
    for same in (ids.tolist(), {"token_ids": ids}, Batches((ids[:2],), (ids[2:],))):
        np.testing.assert_allclose(vectors(model, same), expected, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(model(ids)), expected, atol=1e-5)


def test_similarity():
    model = make_model()
    found = vectors(model, TEXTS)
    np.testing.assert_allclose(model.similarity(TEXTS, TEXTS), found @ found.T, atol=1e-5)
    assert model.similarity(TEXTS[0], TEXTS).shape == (4,) and model.similarity(TEXTS, TEXTS[0]).shape == (4,)
    assert float(model.similarity(TEXTS[0], TEXTS[1])) == pytest.approx(found[0] @ found[1], abs=1e-5)


# Training ---------------------------------------------------------------------------------------------------


def dense_loss(anchors, candidates, temperature=0.05):
    similarities = anchors @ candidates.T / temperature
    return (np.log(np.exp(similarities).sum(1)) - np.diagonal(similarities)).mean()


def sides(texts):
    return dict(zip(("anchor", "positive", "negative"), (list(column) for column in zip(*texts))))


def as_kind(kind, model):
    x = {side: model.as_inputs(texts) for side, texts in sides(PAIRS).items()}
    if kind == "tf_data":
        import tensorflow as tf

        return tf.data.Dataset.from_tensors((x,))
    encoded = {side: TOKENIZER.encode([f"[CLS] {t} [SEP]" for t in texts]) for side, texts in sides(PAIRS).items()}
    return {
        "tuples": PAIRS,
        "arrays": x,
        "py_dataset": Batches((x,)),
        "pair_rows": pair_rows(encoded["anchor"], encoded["positive"], length=12),
    }[kind]


@pytest.mark.parametrize("kind", ["tuples", "arrays", "py_dataset", "tf_data", "pair_rows"])
def test_evaluate_and_fit_read_pairs(kind):
    model = compiled(make_model())
    anchors, positives = (vectors(model, texts) for texts in sides(PAIRS).values())
    found = model.evaluate(as_kind(kind, model), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(dense_loss(anchors, positives), rel=1e-3)
    assert found["accuracy"] == ((anchors @ positives.T).argmax(1) == np.arange(4)).mean()
    assert set(found) == {"loss", "accuracy"}
    history = model.fit(as_kind(kind, model), epochs=8, verbose=0).history
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    after = model.evaluate(as_kind(kind, model), verbose=0, return_dict=True)
    assert after["accuracy"] == 1.0 and after["loss"] < found["loss"]


def test_hard_negatives_are_candidates():
    model = compiled(make_model())
    triples = [(a, p, n) for (a, p), n in zip(PAIRS, ["mind", "tis", "suffer", "be"])]
    anchors, positives, negatives = (vectors(model, texts) for texts in sides(triples).values())
    found = model.evaluate(triples, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(dense_loss(anchors, np.concatenate([positives, negatives])), rel=1e-3)
    assert found["loss"] > model.evaluate(PAIRS, verbose=0, return_dict=True)["loss"]
    model.fit(triples, batch_size=2, validation_data=triples, verbose=0)


def test_batches_are_what_is_told_apart():
    """Nothing fills the last batch up: it would be a negative."""
    model = compiled(make_model())
    losses = [model.evaluate(part, verbose=0, return_dict=True)["loss"] for part in (PAIRS[:3], PAIRS[3:])]
    found = model.evaluate(PAIRS, batch_size=3, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx((3 * losses[0] + losses[1]) / 4, rel=1e-4)


@pytest.mark.parametrize("kind", ["strings", "array", "dict"])
def test_texts_alone_are_their_own_positives(kind):
    model = compiled(make_model(dropout=0.2))
    ids = random_ids(4, 8)
    data = {"strings": TEXTS, "array": ids, "dict": {"token_ids": ids}}[kind]
    anchors = vectors(model, data)
    before = model.evaluate(data, verbose=0, return_dict=True)
    assert before["loss"] == pytest.approx(dense_loss(anchors, anchors), rel=1e-3)  # no dropout here
    model.fit(data, epochs=5, verbose=0)
    assert model.evaluate(data, verbose=0, return_dict=True)["loss"] < before["loss"]


def test_dropout_tells_a_text_from_its_positive():
    model = make_model(dropout=0.2)
    model._stage.now = "loss"
    both = ops.convert_to_numpy(ops.stop_gradient(model(random_ids(4, 8), training=True)))
    model._stage.now = None
    assert both.shape == (4, 2, 16) and (np.abs(both[:, 0] - both[:, 1]).max(axis=1) > 1e-3).all()


def test_padding_changes_no_gradient():
    model = make_model()
    x = {side: model.as_inputs(texts) for side, texts in sides(PAIRS).items()}
    assert not x["anchor"]["padding_mask"].all()

    def of_batch():
        both = model(x)
        return ops.sum(info_nce(both[:, 0], both[:, 1]))

    def of_each():
        rows = [[model(alone(x[side], row)) for row in range(4)] for side in x]
        return ops.sum(info_nce(*(ops.concatenate(side, axis=0) for side in rows), temperature=0.05))

    assert_same_gradients(weight_gradients(model, of_batch), weight_gradients(model, of_each))


def test_gradient_accumulation():
    batches = [{side: texts[i : i + 2] for side, texts in sides(PAIRS).items()} for i in (0, 2)]
    weights = []
    for steps in (None, 2):
        model = make_model()
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps)
        model.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
        data = [{side: model.as_inputs(texts) for side, texts in one.items()} for one in batches]
        if steps is None:
            model.fit(Batches((data[0],)), verbose=0)
            first = model.get_weights()
            model.set_weights(make_model().get_weights())
            model.fit(Batches((data[1],)), verbose=0)
            weights.append([(a + b) / 2 for a, b in zip(first, model.get_weights())])
        else:
            model.fit(Batches(*((one,) for one in data)), verbose=0)
            weights.append(model.get_weights())
    for one, other in zip(*weights):
        np.testing.assert_allclose(one, other, atol=1e-5)


# Files, trace, precision ------------------------------------------------------------------------------------


def test_a_saved_model_is_the_same(tmp_path):
    model = compiled(make_model(pooling="first", truncation=True))
    model.fit(PAIRS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, TextEmbedder) and (loaded.pooling, loaded.truncation) == ("first", True)
    np.testing.assert_allclose(vectors(loaded, TEXTS), vectors(model, TEXTS), atol=1e-6)
    loaded.fit(PAIRS, verbose=0)


def test_trace_and_truncation():
    model = make_model(truncation=True)
    assert model.trace("to be").tokens == ["[CLS]", "to", "be", "[SEP]"]
    np.testing.assert_allclose(model.trace("to be").logits, vectors(model, "to be"), atol=1e-5)
    tokens = model.trace("to be " * 20).tokens
    assert len(tokens) == LENGTH and tokens[-1] == "[SEP]"


def test_mixed_precision():
    model = compiled(make_model(dtype="mixed_bfloat16"))
    exact = make_model()
    exact.set_weights(model.get_weights())
    assert vectors(model, TEXTS).dtype == "float32"
    np.testing.assert_allclose(vectors(model, TEXTS), vectors(exact, TEXTS), atol=0.05)
    assert len(model.trace("to be").tokens) == 4
    losses = model.fit(PAIRS, epochs=6, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


# Bad input --------------------------------------------------------------------------------------------------


def test_bad_inputs_are_named():
    model = compiled(make_model())
    with pytest.raises(ValueError, match="no targets"):
        model.fit(TEXTS, [0, 1, 0, 1], verbose=0)
    with pytest.raises(ValueError, match="no targets"):
        compiled(make_model()).fit(Batches((random_ids(2, 4), np.zeros(2, "int32"))), verbose=0)
    with pytest.raises(ValueError, match="dropout=0, attention_dropout=0"):
        compiled(make_model()).fit(TEXTS, verbose=0)
    with pytest.raises(ValueError, match=r"twos.*tuples of 1"):
        model.fit([("to",), ("be",)], verbose=0)
    with pytest.raises(ValueError, match=r"twos.*tuples of 2, 3"):
        model.fit([("to", "be"), ("to", "be", "or")], verbose=0)
    with pytest.raises(ValueError, match="batch_size=1"):
        model.fit(PAIRS, batch_size=1, verbose=0)
    with pytest.raises(ValueError, match=r"anchor, positive.*'anchor'"):
        model.fit({"anchor": random_ids(2, 4)}, verbose=0)
    with pytest.raises(ValueError, match=f"Token id out of range: {VOCABULARY}"):
        model.fit({"anchor": random_ids(2, 4), "positive": np.full((2, 4), VOCABULARY)}, verbose=0)
    with pytest.raises(ValueError, match=rf"place 1 has 42 tokens.*reads {LENGTH}.*truncation=True"):
        model.predict(["to", "to be " * 20], verbose=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        make_model(tokenizer=None).predict("to be", verbose=0)
    with pytest.raises(ValueError, match=r"`pooling`.*'max'"):
        make_model(pooling="max")
    with pytest.raises(ValueError, match=r"pooler=True.*'pooler'"):
        make_model(pooling="pooler", pooler=False)
    with pytest.raises(ValueError, match="temperature"):
        TextEmbedder(config(), temperature=0)
    with pytest.raises(ValueError, match="num_encoder_layers=1"):
        TextEmbedder(config(num_encoder_layers=1, causal=True))
