"""What a CausalLM computes: no look ahead, the cache changes nothing, packing and padding change nothing."""

import keras
import numpy as np
import pytest
from differentiate import weight_gradients
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.generation.programs import programs_of
from kerasllm.generation.slots import Slots
from kerasllm.losses import linear_cross_entropy

VOCABULARY, LENGTH = 30, 16
CONFIGS = {
    "gpt2": {},
    "llama": {
        "norm": "rms_norm",
        "positions": "rotary",
        "gated": True,
        "use_bias": False,
        "num_kv_heads": 2,
        "tie_embeddings": False,
    },
    "windowed": {"sliding_window": 4, "positions": "rotary", "num_kv_heads": 1},
    "vaswani": {"norm_position": "post", "positions": "sinusoidal", "scale_embeddings": True},
}


def make_model(name, **changes):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "initializer_range": 0.3}
    config = TransformerConfig(VOCABULARY, LENGTH, **sizes, **CONFIGS[name], **changes)
    return CausalLM(config)


def random_ids(*shape):
    return np.random.default_rng(sum(shape)).integers(0, VOCABULARY, shape).astype("int32")


def logits_of(model, inputs):
    """Through `predict`, which compiles once a shape; a plain call compiles each operation on JAX."""
    return model.predict(inputs, verbose=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_changes_nothing_before_it(name):
    model, ids = make_model(name), random_ids(2, 10)
    before = logits_of(model, ids)
    for place in (1, 5, 9):
        changed = ids.copy()
        changed[:, place] = (ids[:, place] + 1) % VOCABULARY
        after = logits_of(model, changed)
        np.testing.assert_allclose(after[:, :place], before[:, :place], atol=1e-6)
        assert (np.abs(after[:, place] - before[:, place]).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_logits_are_the_full_ones(name):
    model, ids = make_model(name), random_ids(2, LENGTH)
    full = logits_of(model, ids)
    slots = Slots(programs_of(model), 2, LENGTH)
    slots.read({0: ids[0, :3].tolist(), 1: ids[1, :7].tolist()})
    for _ in range(9):  # each row at its own place, up to the end of the second row's context
        rows = np.arange(2)
        tokens = ids[rows, slots.positions][:, None]
        logits, _, slots.cache = slots.programs.logits(slots.cache, tokens, slots.positions, slots.source)
        found = ops.convert_to_numpy(logits)[:, 0]
        np.testing.assert_allclose(found, full[rows, slots.positions], atol=1e-5)
        slots.positions += 1


def packed_and_alone():
    """Two documents in one row, and each in a row of its own, as inputs and targets."""
    sizes = (6, 9)
    documents = [random_ids(1, size + 1) for size in sizes]
    alone = [({"token_ids": d[:, :-1]}, d[:, 1:]) for d in documents]
    packed = {
        "token_ids": np.concatenate([x["token_ids"] for x, _ in alone], axis=1),
        "document_ids": np.repeat([1, 2], sizes)[None].astype("int32"),
        "positions": np.concatenate([np.arange(size) for size in sizes])[None].astype("int32"),
    }
    return (packed, np.concatenate([y for _, y in alone], axis=1)), alone


def summed_loss(model, inputs, targets):
    hidden = ops.reshape(model.transformer(training=False, **inputs), (-1, 16))
    return linear_cross_entropy(hidden, model.transformer.embedding.head_kernel(), targets.reshape(-1))[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_are_as_if_alone(name):
    model = make_model(name)
    packed, alone = packed_and_alone()
    expected = np.concatenate([logits_of(model, x) for x, _ in alone], axis=1)
    np.testing.assert_allclose(logits_of(model, packed[0]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_packed_documents_teach_what_they_teach_alone(name):
    model = make_model(name)
    packed, alone = packed_and_alone()
    of_packed = weight_gradients(model, lambda: summed_loss(model, *packed))
    of_each = weight_gradients(model, lambda: sum(summed_loss(model, *one) for one in alone))
    for path, gradient in of_packed.items():
        np.testing.assert_allclose(gradient, of_each[path], atol=2e-5, rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    model, ids = make_model(name), random_ids(2, 12)
    mask = np.ones((2, 12), "bool")
    mask[1, 7:] = False
    ids[1, 7:] = 0
    padded = logits_of(model, {"token_ids": ids, "padding_mask": mask})
    assert np.isfinite(padded).all()
    np.testing.assert_allclose(padded[1, :7], logits_of(model, ids[1:, :7])[0], atol=1e-5)
    np.testing.assert_allclose(padded[0], logits_of(model, ids[:1])[0], atol=1e-5)


def test_dropout_only_while_training():
    model, ids = make_model("gpt2", dropout=0.3, attention_dropout=0.3), random_ids(2, 10)
    plain = make_model("gpt2")
    plain.set_weights(model.get_weights())
    expected = logits_of(plain, ids)
    np.testing.assert_allclose(logits_of(model, ids), expected, atol=1e-5)
    assert np.abs(ops.convert_to_numpy(model(ids, training=True)) - expected).max() > 0.01


def test_the_first_loss_is_that_of_a_uniform_guess():
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 32}
    model = CausalLM(TransformerConfig(VOCABULARY, LENGTH, **sizes))
    model.compile()
    loss = model.evaluate(random_ids(8, 17), verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(np.log(VOCABULARY), abs=0.05)


@pytest.mark.one_backend
def test_a_trace_is_of_one_row():
    model, rows = make_model("llama"), random_ids(4, 8)
    for several, message in (
        (rows, r"rows of shape \(4, 8\)"),
        (rows.tolist(), "rows of shape"),
        (["a", "b"], "2 texts"),
    ):
        with pytest.raises(ValueError, match=f"One text, or one row of token ids.*{message}"):
            model.trace(several)
    assert len(model.trace(rows[0]).tokens) == 8


def test_trace_shows_what_happened():
    model, ids = make_model("llama"), random_ids(1, 8)
    trace = model.trace(ids[0])
    assert len(trace.tokens) == 8 and len(trace.attentions) == 2 and len(trace.hidden_states) == 3
    assert trace.attentions[0].shape == (1, 4, 8, 8) and trace.hidden_states[0].shape == (1, 8, 16)
    np.testing.assert_allclose(trace.logits, logits_of(model, ids), atol=1e-5)


def test_score_is_the_log_softmax_of_the_logits():
    model = make_model("gpt2")
    rows = [random_ids(9), random_ids(4), random_ids(16)]
    scores = model.score([list(row) for row in rows])
    for row, found in zip(rows, scores):
        padded = np.pad(row, (0, LENGTH - len(row)))[None]
        logits = logits_of(model, padded)[0, : len(row) - 1].astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(found, log_p[np.arange(len(row) - 1), row[1:]], atol=1e-5)


def test_score_takes_an_array():
    model, ids = make_model("gpt2"), random_ids(2, 6)
    for from_array, from_lists in zip(model.score(ids), model.score(ids.tolist())):
        np.testing.assert_allclose(from_array, from_lists, atol=1e-6)


def test_only_causal_configs():
    with pytest.raises(ValueError, match="causal=False"):
        make_model("gpt2", causal=False)
