"""MaskedLM: its head, its data, what it fills in; packed, padded and paired texts are as if alone."""

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

from kerasllm import MaskedLM, Tokenizer
from kerasllm.losses import linear_cross_entropy
from kerasllm.models.masked_lm import Filled, documents_of

MASK = TOKENIZER.mask_token_id


def make_model(tokenizer=TOKENIZER, dtype=None, **changes):
    keras.utils.set_random_seed(0)
    return MaskedLM(config(**changes), tokenizer=tokenizer, dtype=dtype)


def batch(rows=4, length=10):
    """(x, y, sample_weight) with every third token hidden."""
    y = random_ids(rows, length)
    hidden = np.zeros(y.shape, "bool")
    hidden[:, ::3] = True
    return {"token_ids": np.where(hidden, MASK, y)}, y, hidden.astype("float32")


def dense_loss(model, x, y, weights):
    """The summed cross-entropy, of the logits themselves."""
    log_p = ops.log_softmax(ops.cast(model(x), "float32"))
    return -ops.sum(
        ops.take_along_axis(log_p, ops.convert_to_tensor(y)[..., None], axis=-1)[..., 0]
        * ops.convert_to_tensor(weights)
    )


def with_random_bias(model):
    model.masked_head.bias.assign(np.random.default_rng(0).normal(size=VOCABULARY))
    return model


def test_the_head_has_the_names_of_the_contract():
    paths = {w.path for w in make_model().weights if w.path.startswith("masked_head")}
    names = ("dense/kernel", "dense/bias", "norm/gamma", "norm/beta", "bias")
    assert paths == {f"masked_head/{name}" for name in names}


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"activation": "relu", "scale_logits": True}])
def test_the_chunked_loss_is_that_of_the_logits(changes):
    model = with_random_bias(make_model(**changes))
    x, y, weights = batch()

    def chunked():
        hidden = model.head_input(ops.reshape(model.transformer(training=False, **x), (-1, 16)))
        return linear_cross_entropy(hidden, model.head_kernel(), y.reshape(-1), weights.reshape(-1), chunk_size=8)[0]

    def dense():
        return dense_loss(model, x, y, weights)

    assert float(chunked()) == pytest.approx(float(dense()), rel=1e-5)
    assert_same_gradients(weight_gradients(model, chunked), weight_gradients(model, dense))


def test_evaluate_reports_the_hidden_tokens():
    model = compiled(with_random_bias(make_model()))
    x, y, weights = batch()
    found = model.evaluate(x, y, sample_weight=weights, batch_size=3, verbose=0, return_dict=True)
    expected = float(dense_loss(model, x, y, weights)) / weights.sum()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(expected), rel=1e-4)
    best = ops.convert_to_numpy(model(x)).argmax(-1)
    assert found["accuracy"] == pytest.approx(((best == y) * weights).sum() / weights.sum())
    assert set(found) == {"loss", "perplexity", "accuracy"}


def as_kind(kind):
    x, y, weights = batch()
    if kind == "tf_data":
        import tensorflow as tf

        return (tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(2),), {}
    return {
        "arrays": ((x, y), {"sample_weight": weights, "batch_size": 2}),
        "py_dataset": (
            (Batches(*(({"token_ids": x["token_ids"][i : i + 2]}, y[i : i + 2], weights[i : i + 2]) for i in (0, 2))),),
            {},
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["arrays", "py_dataset", "tf_data"])
def test_fit_reads_batches(kind):
    model = compiled(make_model())
    arguments, options = as_kind(kind)
    losses = model.fit(*arguments, **options, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("data", ["strings", "array", "list", "dict"])
def test_fit_hides_tokens_itself(data):
    ids = random_ids(6, 12)
    mask = np.ones_like(ids, "bool")
    mask[2:, 8:] = False
    kinds = {"strings": TEXTS, "array": ids, "list": [list(row[:7]) for row in ids]}
    model = compiled(make_model())
    data = kinds.get(data, {"token_ids": ids, "padding_mask": mask})
    dataset = model.as_data(data, batch_size=2, shuffle=True)
    x, y, weights = dataset[0]
    assert ((x["token_ids"] != y) <= (weights > 0)).all() and weights.sum() >= 1
    later = dataset[len(dataset)]
    assert (later[2].sum(), later[0]["token_ids"].tolist()) != (weights.sum(), x["token_ids"].tolist())
    history = model.fit(data, batch_size=2, epochs=2, validation_data=data, verbose=0).history
    assert set(history) == {f"{v}{m}" for v in ("", "val_") for m in ("loss", "perplexity", "accuracy")}


def test_documents_of_strings_have_their_marks():
    documents = documents_of(make_model(), ["to be", "or"])
    assert [TOKENIZER.decode(ids) for ids in documents] == ["[CLS] to be [SEP]", "[CLS] or [SEP]"]


def test_predict_reads():
    model = make_model()
    logits = model.predict(["to be or", "to"], verbose=0)
    assert logits.shape == (2, 5, VOCABULARY)
    np.testing.assert_allclose(model.predict("to", verbose=0)[0], logits[1, :3], atol=1e-5)
    ids = np.array([TOKENIZER.encode("[CLS] to be or [SEP]")])
    for same in (ids, ids.tolist(), {"token_ids": ids}, Batches((ids,))):
        np.testing.assert_allclose(model.predict(same, verbose=0)[0], logits[0], atol=1e-5)
    pair = {"token_ids": np.array([TOKENIZER.encode("[CLS] to [SEP] be [SEP]")])}
    pair["segment_ids"] = np.array([[0, 0, 0, 1, 1]])
    found = model.predict([("to", "be")], verbose=0)
    np.testing.assert_allclose(found, model.predict(pair, verbose=0), atol=1e-5)
    assert np.abs(found - model.predict(pair["token_ids"], verbose=0)).max() > 1e-3


# Packed, padded, paired -------------------------------------------------------------------------------------


def test_packed_documents_are_as_if_alone():
    model = make_model()
    singles = [batch(1, size) for size in (6, 9)]
    packed = {
        "token_ids": np.concatenate([x["token_ids"] for x, _, _ in singles], axis=1),
        "document_ids": np.repeat([1, 2, 0], [6, 9, 1])[None].astype("int32"),
        "positions": np.concatenate([np.arange(6), np.arange(9), [0]])[None].astype("int32"),
    }
    y, weights = (np.concatenate([part[i] for part in singles], axis=1) for i in (1, 2))
    packed["token_ids"], y, weights = (np.pad(a, [(0, 0), (0, 1)]) for a in (packed["token_ids"], y, weights))
    expected = np.concatenate([ops.convert_to_numpy(model(x)) for x, _, _ in singles], axis=1)
    np.testing.assert_allclose(ops.convert_to_numpy(model(packed))[:, :15], expected, atol=1e-5)
    of_packed = weight_gradients(model, lambda: dense_loss(model, packed, y, weights))
    of_each = weight_gradients(model, lambda: sum(dense_loss(model, *one) for one in singles))
    assert_same_gradients(of_packed, of_each)


def test_padded_pairs_are_as_if_alone():
    model = make_model()
    x = model.as_inputs([("to be", "or not to be"), ("that is the question", "whether"), "in the mind"])
    assert x["segment_ids"].max() == 1 and not x["padding_mask"].all()
    y, weights = random_ids(*x["token_ids"].shape), x["padding_mask"].astype("float32")
    singles = [(alone(x, i), *(a[i : i + 1, : int(weights[i].sum())] for a in (y, weights))) for i in range(3)]
    of_batch = weight_gradients(model, lambda: dense_loss(model, x, y, weights))
    of_each = weight_gradients(model, lambda: sum(dense_loss(model, *one) for one in singles))
    assert_same_gradients(of_batch, of_each)


# predict_masks, trace, files --------------------------------------------------------------------------------


def test_predict_masks_gives_the_softmax_at_the_masks():
    model = with_random_bias(make_model())
    text = "to [MASK] or not [MASK]"
    first, second = model.predict_masks(text, top_k=3)
    logits = model.predict(text, verbose=0)[0].astype("float64")
    for place, filled in ((2, first), (5, second)):
        p = np.exp(logits[place]) / np.exp(logits[place]).sum()
        best = np.argsort(-p)[:3]
        assert [f.token_id for f in filled] == best.tolist()
        np.testing.assert_allclose([f.probability for f in filled], p[best], rtol=1e-4)
        assert all(isinstance(f, Filled) and TOKENIZER.token_to_id(f.token) == f.token_id for f in filled)
    both = model.predict_masks([text, "[MASK]"], top_k=3)
    assert [len(masks) for masks in both] == [2, 1]
    np.testing.assert_allclose(both[0][0][0].probability, first[0].probability, rtol=1e-4)


def test_predict_masks_finds_what_was_learned():
    model = compiled(make_model(), learning_rate=2e-2)
    words = ["cats", "dogs"]
    tokenizer = Tokenizer.train(["cats meow", "dogs bark"], kind="wordpiece", vocabulary_size=60)
    model.tokenizer = tokenizer
    x = model.as_inputs(["[MASK] meow", "[MASK] bark"])
    y = model.as_inputs(["cats meow", "dogs bark"])["token_ids"]
    weights = (x["token_ids"] == tokenizer.mask_token_id).astype("float32")
    model.fit(x, y, sample_weight=weights, epochs=30, verbose=0)
    found = model.predict_masks(["[MASK] meow", "[MASK] bark"], top_k=1)
    assert [masks[0][0].token for masks in found] == words


def test_predict_masks_fills_in_tokens_only():
    """A vocabulary padded beyond the tokenizer's."""
    model = make_model(vocabulary_size=VOCABULARY + 8)
    model.masked_head.bias.assign(np.r_[np.zeros(VOCABULARY), np.full(8, 50.0)])
    filled = model.predict_masks("to [MASK]", top_k=VOCABULARY)[0]
    assert sorted(f.token_id for f in filled) == list(range(VOCABULARY))
    assert sum(f.probability for f in filled) == pytest.approx(1, abs=1e-4)


def test_trace():
    model = make_model()
    trace = model.trace("to be")
    assert trace.tokens == ["[CLS]", "to", "be", "[SEP]"] and trace.attentions[0].shape == (1, 2, 4, 4)
    np.testing.assert_allclose(trace.attentions[0].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(trace.logits, model.predict("to be", verbose=0), atol=1e-5)


def test_a_saved_model_is_the_same(tmp_path):
    model = compiled(with_random_bias(make_model()))
    model.fit(TEXTS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, MaskedLM) and loaded.uses_default_loss
    assert loaded.tokenizer.fingerprint == TOKENIZER.fingerprint
    np.testing.assert_allclose(loaded.predict("to be", verbose=0), model.predict("to be", verbose=0), atol=1e-6)
    loaded.fit(TEXTS, verbose=0)


def test_mixed_precision():
    model = compiled(make_model(dtype="mixed_bfloat16"))
    exact = make_model()
    exact.set_weights(model.get_weights())
    found = ops.convert_to_numpy(ops.cast(model(batch()[0]), "float32"))
    np.testing.assert_allclose(found, ops.convert_to_numpy(exact(batch()[0])), atol=0.1)
    assert np.isfinite(model.fit(TEXTS, verbose=0).history["loss"]).all()
    assert 0 < model.predict_masks("to [MASK]")[0][0].probability < 1
    assert len(model.trace("to be").tokens) == 4


# Bad input --------------------------------------------------------------------------------------------------


def test_bad_inputs_are_named():
    model = compiled(make_model())
    x, y, _ = batch()
    with pytest.raises(ValueError, match="causal=True"):
        make_model(causal=True)
    with pytest.raises(ValueError, match=r"no \[MASK\] in the text.*'to be'"):
        model.predict_masks(["[MASK]", "to be"])
    with pytest.raises(ValueError, match="top_k"):
        model.predict_masks("[MASK]", top_k=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        make_model(tokenizer=None).predict_masks("[MASK]")
    with pytest.raises(ValueError, match=rf"place 0 has 22 tokens.*reads {LENGTH}"):
        model.predict_masks("[MASK] " + "to " * 19)
    with pytest.raises(ValueError, match=f"Token id out of range: {VOCABULARY}"):
        model.fit(x, np.full_like(y, VOCABULARY), verbose=0)
    with pytest.raises(ValueError, match="Segment id out of range: 2"):
        model.fit({**x, "segment_ids": np.full_like(y, 2)}, y, verbose=0)
    with pytest.raises(ValueError, match=r"Segment id out of range: 0.*num_segments is 0"):
        make_model(num_segments=0).predict({**x, "segment_ids": np.zeros_like(y)}, verbose=0)
    with pytest.raises(ValueError, match="Unknown model input 'bytes'"):
        model.fit({**x, "bytes": y}, y, verbose=0)
    with pytest.raises(ValueError, match=f"17 tokens.*context is {LENGTH}"):
        model.fit(random_ids(2, 17), random_ids(2, 17), verbose=0)


def test_a_tokenizer_without_a_mask_token():
    tokenizer = Tokenizer.train(TEXTS, kind="char", special_tokens=["[PAD]"])
    model = compiled(make_model(tokenizer=tokenizer))
    with pytest.raises(ValueError, match=r"no mask token.*\[MASK\]"):
        model.predict_masks("to be")
    with pytest.raises(ValueError, match=r"mask token.*\[MASK\]"):
        model.fit(TEXTS, verbose=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        compiled(make_model(tokenizer=None)).fit(random_ids(4, 8), verbose=0)
