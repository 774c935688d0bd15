"""Attention: fused equals explicit equals a sum written out, for every mask and every sharing of heads."""

import keras
import numpy as np
import pytest
from differentiate import gradients
from keras import ops

from kerasllm import TransformerConfig
from kerasllm.layers import Attention
from kerasllm.layers.attention_ops import causal_mask, explicit_attention, fused_attention
from kerasllm.models.transformer import Transformer

BATCH, LENGTH, DIM, HEAD = 2, 7, 12, 4


def lower(length=LENGTH, window=None):
    rows, columns = np.indices((length, length))
    allowed = columns <= rows
    return allowed if window is None else allowed & (columns > rows - window)


def padded():
    """Causal, and the second row has three tokens of padding at its end, which see only themselves."""
    allowed = np.stack([lower(), lower()])
    allowed[1, :, 4:] = False
    return (allowed | np.eye(LENGTH, dtype=bool))[:, None]


MASKS = {
    "none": None,
    "causal": lower()[None, None],
    "window": lower(window=3)[None, None],
    "padding": padded(),
    "heads": np.random.default_rng(1).random((BATCH, 4, LENGTH, LENGTH)) > 0.4,
}
MASKS["heads"][..., 0] = True


def projections(kv_heads, keys=LENGTH):
    rng = np.random.default_rng(kv_heads)
    shapes = (BATCH, LENGTH, 4, HEAD), (BATCH, keys, kv_heads, HEAD), (BATCH, keys, kv_heads, HEAD)
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def written_out(query, key, value, mask, scale):
    """Attention as a loop over batch, heads and queries: (output, weights)."""
    batch, queries, heads, _ = query.shape
    group = heads // key.shape[2]
    output = np.zeros(query.shape)
    weights = np.zeros((batch, heads, queries, key.shape[1]))
    mask = np.broadcast_to(True if mask is None else mask, weights.shape)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                scores = key[b, :, h // group].astype("float64") @ query[b, q, h] * scale
                powers = np.where(mask[b, h, q], np.exp(scores), 0.0)
                weights[b, h, q] = powers / powers.sum()
                output[b, q, h] = weights[b, h, q] @ value[b, :, h // group]
    return output, weights


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_both_paths_equal_the_sum_written_out(kv_heads, mask):
    q, k, v = projections(kv_heads)
    mask = MASKS[mask]
    expected, expected_weights = written_out(q, k, v, mask, scale=0.3)
    tensors = [ops.convert_to_tensor(x) for x in (q, k, v)]
    mask = None if mask is None else ops.convert_to_tensor(mask)
    explicit, weights = explicit_attention(*tensors, mask, scale=0.3)
    fused = fused_attention(*tensors, mask, scale=0.3)
    for found in (explicit, fused):
        np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(weights), expected_weights, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", [*MASKS, "flag"])
def test_fused_equals_explicit_in_value_and_gradient(kv_heads, mask):
    arrays = projections(kv_heads)
    causal = mask == "flag"
    mask = MASKS["causal" if causal else mask]
    mask = None if mask is None else ops.convert_to_tensor(mask)
    direction = np.random.default_rng(9).normal(size=arrays[0].shape).astype("float32")
    direction = ops.convert_to_tensor(direction)

    def explicit(q, k, v):
        return ops.sum(explicit_attention(q, k, v, mask)[0] * direction)

    def fused(q, k, v):
        return ops.sum(fused_attention(q, k, v, None if causal else mask, causal) * direction)

    for one, other in zip(gradients(explicit, *arrays), gradients(fused, *arrays)):
        np.testing.assert_allclose(one, other, atol=1e-5)
    tensors = [ops.convert_to_tensor(a) for a in arrays]
    assert float(explicit(*tensors)) == pytest.approx(float(fused(*tensors)), abs=1e-4)


def test_causal_mask_of_fewer_queries_than_keys_is_its_last_rows():
    np.testing.assert_array_equal(ops.convert_to_numpy(causal_mask(3, 7))[0, 0], lower()[-3:])
    np.testing.assert_array_equal(ops.convert_to_numpy(causal_mask(7, 7, window=2))[0, 0], lower(window=2))


def layer_and_input(**options):
    layer = Attention(**{"num_heads": 4, "head_dim": HEAD, "kernel_initializer": "random_normal", **options})
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, DIM)).astype("float32")
    layer(x)
    layer.set_weights([np.random.default_rng(i).normal(size=w.shape) * 0.3 for i, w in enumerate(layer.weights)])
    return layer, x


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 2}, {"num_kv_heads": 1, "use_bias": False}])
@pytest.mark.parametrize("cross", [False, True])
def test_the_layer_equals_the_sum_written_out(options, cross):
    layer, x = layer_and_input(**options)
    context = np.random.default_rng(5).normal(size=(BATCH, 5, DIM)).astype("float32") if cross else x
    mask = None if cross else lower()[None, None]

    def project(dense, inputs):
        result = inputs @ ops.convert_to_numpy(dense.kernel)
        return result + ops.convert_to_numpy(dense.bias) if dense.use_bias else result

    def heads(dense, inputs):
        return project(dense, inputs).reshape(BATCH, inputs.shape[1], -1, HEAD)

    output, weights = written_out(
        heads(layer.query, x), heads(layer.key, context), heads(layer.value, context), mask, HEAD**-0.5
    )
    expected = project(layer.output_dense, output.reshape(BATCH, LENGTH, -1))
    arguments = {"context": context} if cross else {"attention_mask": mask}
    found, found_weights = layer(x, return_weights=True, **arguments)
    np.testing.assert_allclose(ops.convert_to_numpy(found_weights), weights, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)
    fused = layer(x, **(arguments if cross else {"causal": True}))
    np.testing.assert_allclose(ops.convert_to_numpy(fused), expected, atol=1e-5)


def test_dropout_that_is_not_training_takes_the_fused_path(monkeypatch):
    layer, x = layer_and_input(dropout=0.5)
    plain, _ = layer_and_input()
    expected = ops.convert_to_numpy(plain(x, causal=True))
    mask = lower()[None, None]
    dropped = ops.convert_to_numpy(layer(x, attention_mask=mask, training=True))
    assert np.abs(dropped - expected).max() > 1e-3

    def refuse(*arguments, **options):
        raise AssertionError("the explicit path was taken")

    monkeypatch.setattr("kerasllm.layers.attention.explicit_attention", refuse)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x, causal=True, training=False)), expected, atol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x, causal=True)), expected, atol=1e-5)
    with pytest.raises(AssertionError, match="explicit path"):
        layer(x, attention_mask=mask, training=True)


def network(**changes):
    sizes = {
        "vocabulary_size": 11,
        "max_sequence_length": 16,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 16,
    }
    keras.utils.set_random_seed(0)
    layer = Transformer(TransformerConfig(**sizes, initializer_range=0.3, **changes))
    return layer, np.random.default_rng(0).integers(0, 11, (2, 10)).astype("int32")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 3, "num_kv_heads": 2, "positions": "rotary"},
        {"causal": False, "norm_position": "post"},
    ],
)
def test_a_trace_is_what_the_network_does(changes):
    layer, ids = network(**changes)
    hidden, states, weights = layer(ids, trace=True)
    np.testing.assert_allclose(ops.convert_to_numpy(hidden), ops.convert_to_numpy(layer(ids)), atol=1e-5)
    assert len(states) == 3 and len(weights) == 2
    for of_layer in weights:
        of_layer = ops.convert_to_numpy(of_layer)
        assert of_layer.shape == (2, 4, 10, 10)
        np.testing.assert_allclose(of_layer.sum(-1), 1.0, atol=1e-5)
        if changes.get("causal", True):
            assert (of_layer[:, :, ~lower(10, changes.get("sliding_window"))] == 0).all()


def test_a_window_hides_what_lies_before_it():
    layer, ids = network(sliding_window=3, positions="none")
    changed = ids.copy()
    changed[:, 0] = (ids[:, 0] + 1) % 11
    one, other = (ops.convert_to_numpy(layer(i)) for i in (ids, changed))
    reach = 1 + 2 * (3 - 1)  # two layers, each of which looks two tokens back
    np.testing.assert_allclose(one[:, reach:], other[:, reach:], atol=1e-6)
    assert np.abs(one[:, reach - 1] - other[:, reach - 1]).max() > 1e-6


def test_bfloat16_paths_agree():
    tensors = [ops.cast(ops.convert_to_tensor(x), "bfloat16") for x in projections(2)]
    explicit = explicit_attention(*tensors, ops.convert_to_tensor(MASKS["causal"]))[0]
    fused = fused_attention(*tensors, causal=True)
    one, other = (ops.convert_to_numpy(ops.cast(x, "float32")) for x in (explicit, fused))
    np.testing.assert_allclose(one, other, atol=0.05)
