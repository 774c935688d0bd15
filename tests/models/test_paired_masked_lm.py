"""PairedMaskedLM: two targets, one loss; what it reads, reports and refuses."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_bert import TEXTS, TOKENIZER, VOCABULARY, Batches, compiled, config, random_ids

from kerasllm import MaskedLM, PairedMaskedLM
from kerasllm.objectives import NextSentence

MASK = TOKENIZER.mask_token_id


def make_model(**changes):
    keras.utils.set_random_seed(0)
    return PairedMaskedLM(config(**changes), tokenizer=TOKENIZER)


def batch(rows=5, length=10):
    """(x, y, sample_weight): every third token hidden; the second text begins with 7 where it goes on."""
    tokens = random_ids(rows, length)
    hidden = np.arange(length) % 3 == 0
    labels = np.arange(rows, dtype="int32") % 2
    tokens[:, 5] = 7 + labels
    x = {"token_ids": np.where(hidden, MASK, tokens), "segment_ids": np.tile(np.arange(length) >= 5, (rows, 1)) * 1}
    weights = {"masked_lm": np.tile(hidden, (rows, 1)).astype("float32"), "next_sentence": np.ones(rows, "float32")}
    weights["next_sentence"][0] = 0
    return x, {"masked_lm": tokens, "next_sentence": labels}, weights


def test_evaluate_reports_both_tasks_over_all_batches():
    """Against the logits that predict returns, in numpy; the last batch of 5 rows in twos is half empty."""
    model = compiled(make_model())
    x, y, weights = batch()
    found = model.evaluate(x, y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    logits = model.predict(x, verbose=0)
    expected = {}
    for name, target in y.items():
        log_p = logits[name] - np.log(np.exp(logits[name]).sum(-1, keepdims=True))
        nll = -np.take_along_axis(log_p, target[..., None], -1)[..., 0]
        right = log_p.argmax(-1) == target
        expected[name] = [(weights[name] * each).sum() / weights[name].sum() for each in (nll, right)]
    assert found["perplexity"] == pytest.approx(np.exp(expected["masked_lm"][0]), rel=1e-4)
    assert found["accuracy"] == pytest.approx(expected["masked_lm"][1])
    assert found["next_sentence_loss"] == pytest.approx(expected["next_sentence"][0], rel=1e-4)
    assert found["next_sentence_accuracy"] == pytest.approx(expected["next_sentence"][1])
    whole = model.evaluate(x, y, sample_weight=weights, batch_size=5, verbose=0, return_dict=True)
    assert whole["loss"] == pytest.approx(expected["masked_lm"][0] + expected["next_sentence"][0], rel=1e-4)


def test_fit_learns_both_and_the_pooler():
    model = compiled(make_model(), 3e-2)
    pooler = model.transformer.pooler.get_weights()[0]
    x, y, weights = batch()
    history = model.fit(x, y, sample_weight=weights, batch_size=5, epochs=12, verbose=0).history
    assert history["next_sentence_loss"][-1] < 0.5 * history["next_sentence_loss"][0]
    assert history["perplexity"][-1] < 0.8 * history["perplexity"][0]
    assert np.abs(model.transformer.pooler.get_weights()[0] - pooler).max() > 1e-3
    assert len(model.predict_masks("to [MASK] or")[0]) == 5
    trace = model.trace(("to be", "or not"))
    assert trace.logits["masked_lm"].shape == (1, 7, VOCABULARY) and trace.logits["next_sentence"].shape == (1, 2)


def test_texts_and_rows_become_pairs():
    model = compiled(make_model())
    for rows in (TEXTS, random_ids(6, 8), [[5, 6, 7, 8], [9, 10, 11, 12, 13]]):
        data = model.as_data(rows, batch_size=4, shuffle=True)
        assert isinstance(data.objective, NextSentence) and data.objective.masked is not None
        x, y, weights = data[0]
        assert set(x) == {"token_ids", "segment_ids", "padding_mask"} and set(y) == set(weights)
        assert weights["next_sentence"].sum() >= 2 and weights["masked_lm"].sum() >= 2
        ids, real = y["masked_lm"], x["padding_mask"]
        assert (ids[real[:, 0], 0] == TOKENIZER.start_token_id).all()
        assert ((ids == TOKENIZER.end_token_id) & real).sum() == 2 * real[:, 0].sum()  # no mark of a text's own
    history = model.fit(TEXTS, batch_size=4, validation_data=TEXTS, verbose=0).history
    assert np.isfinite(history["val_next_sentence_loss"] + history["loss"]).all()


def test_accumulated_batches_are_weighted_by_their_hidden_tokens():
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    x, y, weights = batch(4)
    model._tell_optimizer_tokens((x, y, weights))
    assert float(model.optimizer.batch_tokens) == weights["masked_lm"].sum()


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match="pooler=False"):
        make_model(pooler=False)
    model = compiled(make_model())
    x, y, weights = batch()
    with pytest.raises(ValueError, match=r"masked_lm and next_sentence.*Received: \['next_sentence'\]"):
        model.fit(x, {"next_sentence": y["next_sentence"]}, verbose=0)
    with pytest.raises(ValueError, match=r"two targets.*Received: ndarray"):
        model.fit(x, y["masked_lm"], verbose=0)
    with pytest.raises(ValueError, match="Label out of range: 2"):
        model.fit(x, {**y, "next_sentence": y["next_sentence"] + 1}, verbose=0)
    with pytest.raises(ValueError, match=f"Token id out of range: {VOCABULARY}"):
        model.fit(Batches((x, {**y, "masked_lm": np.full_like(y["masked_lm"], VOCABULARY)}, weights)), verbose=0)


@pytest.mark.one_backend
def test_tf_data_is_checked_by_the_name_of_the_target():
    import tensorflow as tf

    model = make_model()
    x, y, weights = batch()
    pipeline = model.as_data(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(5))
    next(iter(pipeline))
    y["next_sentence"] += 1
    pipeline = model.as_data(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(5))
    with pytest.raises(tf.errors.InvalidArgumentError, match="Label out of range"):
        next(iter(pipeline))


def test_a_masked_lm_is_inside():
    """The same weights fill in the same tokens."""
    model, plain = make_model(), MaskedLM(config(), tokenizer=TOKENIZER)
    theirs = {v.path: ops.convert_to_numpy(v.value) for v in model.weights}
    for variable in plain.weights:
        variable.assign(theirs[variable.path])
    found = model.predict("to [MASK] or", verbose=0)["masked_lm"]
    np.testing.assert_allclose(found, plain.predict("to [MASK] or", verbose=0), atol=1e-5)
