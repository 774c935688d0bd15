"""ReplacedTokenDetector: what the generator draws, both losses, counted randomness, what is kept."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_bert import LENGTH, TEXTS, TOKENIZER, VOCABULARY, Batches, compiled, config, random_ids

from kerasllm import ReplacedTokenDetector
from kerasllm.data.order import row_keys
from kerasllm.data.rows import Rows
from kerasllm.models.replaced_token_detector import DETECTOR_WEIGHT, _draw
from kerasllm.objectives import GeneratedTokens
from kerasllm.objectives.replaced_tokens import NUM_DRAWS

MASK = TOKENIZER.mask_token_id


def make_model(tokenizer=TOKENIZER, dtype=None, **changes):
    keras.utils.set_random_seed(0)
    return ReplacedTokenDetector(config(**changes), tokenizer=tokenizer, dtype=dtype)


def batch(rows=5, length=12, present=None, seed=0):
    weights = None if present is None else present.astype("float32")
    objective = GeneratedTokens(MASK, VOCABULARY, rate=0.3, special_token_ids=range(5))
    return objective(Rows(random_ids(rows, length + 1), weights, keys=row_keys(seed, 0, np.arange(rows))))


def forward(model, x):
    """What a step computes, as numpy."""
    model._stage.now = "loss"
    found = model({key: ops.convert_to_tensor(value) for key, value in x.items()}, training=False)
    model._stage.now = None
    return keras.tree.map_structure(ops.convert_to_numpy, found)


def test_a_draw_inverts_the_cumulative_distribution():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], "float32"))
    for uniforms, expected in [([0.0, 0.05], [0, 0]), ([0.49, 0.15], [0, 1]), ([0.51, 0.21], [1, 2]), ([1, 1], [2, 2])]:
        draws = (np.array(uniforms) * NUM_DRAWS).astype("int32")
        found = _draw(ops.convert_to_tensor(logits), ops.convert_to_tensor(draws))
        assert ops.convert_to_numpy(found).tolist() == expected


def test_only_hidden_tokens_are_replaced_by_what_the_generator_draws():
    model = make_model()
    present = np.arange(12) < np.array([[12], [7], [1], [0], [12]])
    x, y, _ = batch(present=present)
    hidden = x["token_ids"] == MASK
    found = forward(model, x)
    assert np.array_equal(found["corrupted"][~hidden], y[~hidden])
    assert found["logits"].shape == y.shape
    # Draws, written out: of the generator's logits, place by place.
    logits = ops.convert_to_numpy(model._generator_logits(ops.convert_to_tensor(found["generated"])))
    for row, slot in zip(*np.nonzero(x["masked_positions"] < 12)):
        p = np.exp(logits[row, slot].astype("float64"))
        below = (np.cumsum(p / p.sum()) <= x["draws"][row, slot] / NUM_DRAWS).sum()
        assert found["corrupted"][row, x["masked_positions"][row, slot]] == below
    # The detector reads the filled-in text, and no hidden token.
    plain = {"token_ids": found["corrupted"], "padding_mask": x["padding_mask"]}
    expected = model.predict(plain, verbose=0)
    np.testing.assert_allclose(found["logits"][present], expected[present], atol=1e-4)


def test_evaluate_reports_both_losses():
    """In numpy, of what a step computes; the last batch of 5 rows in twos is half empty."""
    model = compiled(make_model())
    model.masked_head.bias.assign(np.random.default_rng(0).normal(size=VOCABULARY))
    present = np.arange(12) < np.array([[12], [7], [12], [3], [12]])
    x, y, weights = batch(present=present)
    step = forward(model, x)
    inside = x["masked_positions"] < 12
    logits = ops.convert_to_numpy(model._generator_logits(ops.convert_to_tensor(step["generated"])))[inside]
    targets = y[np.nonzero(inside)[0], x["masked_positions"][inside]]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    replaced, p = (step["corrupted"] != y)[present], 1 / (1 + np.exp(-step["logits"][present]))
    share = replaced.mean()
    expected = {
        "generator_loss": -log_p[np.arange(len(targets)), targets].mean(),
        "generator_accuracy": (log_p.argmax(-1) == targets).mean(),
        "detector_loss": -np.log(np.where(replaced, p, 1 - p)).mean(),
        "detector_accuracy": ((p > 0.5) == replaced).mean(),
        "constant_loss": -(share * np.log(share) + (1 - share) * np.log(1 - share)),
    }
    expected["loss"] = expected["generator_loss"] + DETECTOR_WEIGHT * expected["detector_loss"]
    found = model.evaluate(x, y, sample_weight=weights, batch_size=2, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("data", ["strings", "dataset"])
def test_fit_trains_generator_and_detector(data):
    model = compiled(make_model())
    before = {v.path: ops.convert_to_numpy(v.value).copy() for v in model.trainable_weights}
    arguments = (TEXTS * 4,) if data == "strings" else (Batches(batch(), batch(seed=1)),)
    history = model.fit(*arguments, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    still = {path for path, old in before.items() if np.array_equal(old, {v.path: v for v in model.weights}[path])}
    assert not {path for path in still if "segments" not in path}


def test_what_is_drawn_is_counted():
    """The same seed, pass and row draw the same numbers; a validation set always does."""
    model = make_model()
    train, again = (model.as_data(TEXTS, batch_size=2, shuffle=True) for _ in range(2))
    again.resume(0, 1)
    first, second, later = train[0][0], train[1][0], train[len(train)][0]
    assert np.array_equal(again[0][0]["draws"], second["draws"])
    assert not np.array_equal(first["draws"], second["draws"])
    assert not np.array_equal(later["draws"], first["draws"])
    found, repeated = (forward(model, first)["corrupted"] for _ in range(2))
    assert np.array_equal(found, repeated)
    validation = model.as_data(TEXTS, batch_size=4)
    assert np.array_equal(validation[0][0]["draws"], validation[1][0]["draws"])


def test_detect_gives_the_probabilities_of_predict():
    model = make_model()
    found = model.detect(["to be", "to be or not"])
    assert [token.token for token in found[0]] == ["[CLS]", "to", "be", "[SEP]"] and len(found[1]) == 6
    logits = model.predict("to be", verbose=0)[0]
    np.testing.assert_allclose([t.probability for t in found[0]], 1 / (1 + np.exp(-logits)), atol=1e-5)
    np.testing.assert_allclose([t.probability for t in model.detect("to be")], 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert model.trace("to be").logits.shape == (1, 4)


def test_the_generator_shares_the_embedding():
    model = make_model(num_layers=4, pooler=True)
    tables = [v for v in model.weights if v.shape == (VOCABULARY, 16)]
    assert len(tables) == 1 and model.generator_layers == 1 and not model.config.pooler
    assert ReplacedTokenDetector(config(num_layers=3), generator_layers=2).generator.num_layers == 2


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match="causal=True"):
        make_model(causal=True)
    for layers in (0, True, 1.5):
        with pytest.raises(ValueError, match="`generator_layers` must be a whole number"):
            ReplacedTokenDetector(config(), generator_layers=layers)
    model, (x, y, _) = compiled(make_model()), batch()
    with pytest.raises(ValueError, match=r'objective "generated".*without masked_positions and draws'):
        model.fit({"token_ids": y}, y, verbose=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        compiled(make_model(tokenizer=None)).fit(random_ids(4, 8), verbose=0)
    with pytest.raises(ValueError, match=f"Token id out of range: {VOCABULARY}"):
        compiled(make_model()).fit(x, np.full_like(y, VOCABULARY), verbose=0)
    with pytest.raises(ValueError, match=f"reads {LENGTH}"):
        model.detect("to " * 20)


def test_mixed_precision():
    model = compiled(make_model(dtype="mixed_bfloat16"))
    assert np.isfinite(model.fit(*batch()[:2], verbose=0).history["loss"]).all()
