"""What is read off a trace or the weights: the lens, the rollout, the habits of heads, the map of tokens."""

import numpy as np
import pytest
from inspected_models import TEXT, TOKENIZER, made, make, numpy, trace

import kerasllm
from kerasllm.inspection import (
    attention_rollout,
    embedding_projection,
    induction_scores,
    logit_lens,
    previous_token_scores,
)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# Trace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "llama", "bert", "t5"])
def test_a_trace_is_what_the_fused_path_computes(kind):
    model = made(kind)
    found = trace(model)
    if kind == "t5":
        inputs = model.as_inputs([(TEXT, "be to")])
        inputs["decoder_token_ids"] = inputs["decoder_token_ids"][:, : len(found.tokens)]
        inputs = {key: value for key, value in inputs.items() if key.endswith("token_ids")}
    else:
        inputs = {"token_ids": model.as_inputs([TEXT])["token_ids"]}
    np.testing.assert_allclose(found.logits, numpy(model(inputs, training=False)), atol=1e-5)
    for stack in ("decoder", "encoder", *(["cross"] if kind == "t5" else [])):
        maps = found.attention_maps(stack)
        assert maps.weights.shape == (2, 4, len(maps.query_tokens), len(maps.key_tokens))
        np.testing.assert_allclose(maps.weights.sum(axis=-1), 1, atol=1e-5)


# Lens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "bert", "t5"])
def test_the_last_row_of_the_lens_is_the_model_s_answer(kind):
    model = made(kind)
    seen = trace(model)
    lens = logit_lens(model, seen, top=3)
    length, size = len(seen.tokens), TOKENIZER.vocabulary_size
    assert lens.top_ids.shape == lens.top_probabilities.shape == lens.top_tokens.shape == (3, length, 3)
    p = softmax(seen.logits[0, :, :size].astype("float64"))
    np.testing.assert_array_equal(lens.top_ids[-1], np.argsort(-p)[:, :3])
    np.testing.assert_allclose(lens.top_probabilities[-1], -np.sort(-p)[:, :3], atol=1e-5)
    np.testing.assert_array_equal(lens.answer_ids, p.argmax(axis=-1))
    np.testing.assert_array_equal(lens.answer_ranks[-1], 1)
    np.testing.assert_allclose(lens.answer_probabilities[-1], p.max(axis=-1), atol=1e-5)
    assert lens.top_tokens[-1, 0, 0] == TOKENIZER.id_to_token(int(lens.answer_ids[0]))


def test_each_row_of_the_lens_is_norm_and_head_of_that_layer():
    model = made("llama")
    seen = trace(model)
    lens = logit_lens(model, TEXT, top=TOKENIZER.vocabulary_size)
    x = seen.hidden_states[1][0].astype("float64")
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + model.config.norm_epsilon)
    x = x * numpy(model.transformer.final_norm.scale)
    p = softmax((x @ numpy(model.head_kernel()))[:, : TOKENIZER.vocabulary_size])
    np.testing.assert_array_equal(lens.top_ids[1], np.argsort(-p))
    place = len(seen.tokens) - 1
    rank = 1 + list(np.argsort(-p[place])).index(lens.answer_ids[place])
    assert lens.answer_ranks[1, place] == rank
    np.testing.assert_allclose(lens.answer_probabilities[1, place], p[place, lens.answer_ids[place]], atol=1e-5)


def test_what_the_lens_refuses():
    with pytest.raises(ValueError, match="predicts no tokens"):
        logit_lens(made("classifier"), TEXT)
    for top in (0, 10_000, True):
        with pytest.raises(ValueError, match="`top` must be"):
            logit_lens(made("gpt"), TEXT, top=top)
    with pytest.raises(ValueError, match="nothing to read"):
        logit_lens(made("gpt"), "")
    with pytest.raises(ValueError, match="60 tokens, and the model's context is 24"):
        logit_lens(made("gpt"), "be " * 20)
    with pytest.raises(ValueError, match="no tokenizer"):
        logit_lens(kerasllm.CausalLM(kerasllm.TransformerConfig(9, 8, 1, 1, 4)), TEXT)


def test_a_model_without_a_tokenizer_has_numbers_for_tokens():
    lens = logit_lens(kerasllm.CausalLM(kerasllm.TransformerConfig(9, 8, 1, 1, 4)), [3, 5], top=2)
    assert lens.tokens == ["3", "5"] and lens.top_tokens[-1, 0, 0] == str(lens.answer_ids[0])


# Rollout ----------------------------------------------------------------------------------------------------


def test_rollout_is_a_sum_over_all_paths():
    seen = trace(made("t5"))
    found = attention_rollout(seen, "encoder")
    a, b = (0.5 * w[0].mean(axis=0) + 0.5 * np.eye(len(TEXT) + 1) for w in seen.encoder_attentions)
    paths = [[sum(b[i, k] * a[k, j] for k in range(len(a))) for j in range(len(a))] for i in range(len(a))]
    np.testing.assert_allclose(found[1], paths, atol=1e-5)
    np.testing.assert_allclose(found[0], a, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    causal = attention_rollout(trace(made("gpt")))
    assert np.all(np.triu(causal[-1], 1) == 0)
    with pytest.raises(ValueError, match="self-attention"):
        attention_rollout(seen, "cross")


# Heads ------------------------------------------------------------------------------------------------------


def test_heads_made_to_look_back_are_found():
    """A network without content: its position vectors alone say where head 0 looks."""
    limit, offset = 16, 8  # The tokens come twice, so that the second half begins at 8.
    for looks_back, scores in ((1, previous_token_scores), (offset - 1, induction_scores)):
        changes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "norm_position": "pre"}
        model = kerasllm.CausalLM(kerasllm.TransformerConfig(12, limit, **changes))
        network = model.transformer
        network.embedding.tokens.embeddings.assign(np.zeros((12, 32)))
        network.embedding.positions.embeddings.assign(np.eye(limit, 32))
        attention = network.blocks[0].attention
        shift = np.zeros((32, 32), "float32")
        shift[np.arange(looks_back, limit), np.arange(limit - looks_back)] = 40
        attention.query.kernel.assign(shift)  # Of position i: that of i - looks_back.
        attention.key.kernel.assign(40 * np.eye(32))
        found = scores(model)
        assert found.shape == (1, 2) and found[0, 0] > 0.99 and found[0, 1] < 0.3


def test_scores_are_repeatable_and_of_the_right_models():
    model = made("gpt")
    np.testing.assert_array_equal(induction_scores(model), induction_scores(model))
    assert not np.array_equal(induction_scores(model), induction_scores(model, seed=1))
    assert previous_token_scores(made("bert")).shape == (2, 4)
    with pytest.raises(ValueError, match="causal"):
        induction_scores(made("bert"))
    with pytest.raises(ValueError, match="one stack"):
        previous_token_scores(made("t5"))
    with pytest.raises(ValueError, match="at least 4 tokens"):
        induction_scores(kerasllm.CausalLM(kerasllm.TransformerConfig(9, 3, 1, 1, 4)))


# Embeddings -------------------------------------------------------------------------------------------------


def test_the_projection_is_the_plane_of_most_variance():
    model = make("gpt", num_layers=1)
    table = numpy(model.transformer.embedding.tokens.embeddings)[: TOKENIZER.vocabulary_size].astype("float64")
    found = embedding_projection(model, dimensions=3)
    assert found.tokens[0] == TOKENIZER.id_to_token(0) and found.points.shape == (TOKENIZER.vocabulary_size, 3)
    values = np.linalg.eigvalsh(np.cov(table.T))[::-1]
    np.testing.assert_allclose(found.points.astype("float64").var(axis=0, ddof=1), values[:3], rtol=1e-4)
    np.testing.assert_allclose(found.explained, values[:3] / values.sum(), rtol=1e-4)
    np.testing.assert_allclose(np.corrcoef(found.points.T), np.eye(3), atol=1e-5)
    some = embedding_projection(model, ids=[4, 7], dimensions=1)  # Two points: their distance is all there is.
    assert abs(some.points[0, 0] - some.points[1, 0]) == pytest.approx(np.linalg.norm(table[4] - table[7]), rel=1e-5)
    for arguments in ({"ids": [4]}, {"ids": [4, 999]}, {"dimensions": 17}, {"dimensions": 0}):
        with pytest.raises(ValueError, match=r"at least two|out of range|from 1 to 16"):
            embedding_projection(model, **arguments)
