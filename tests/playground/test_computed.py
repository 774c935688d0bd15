"""What the tabs compute, against the library and by hand."""

import base64

import numpy as np
import pytest

import kerasllm
from playground import looking, writing
from playground.limits import MAX_SHOWN_TOKENS
from playground.reading import corrupted, cut
from playground.writing import bars_of, branched, distribution, next_logits, sampler_of, stream

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def gpt(shipped):
    return kerasllm.CausalLM.from_preset(shipped / "gpt-tiny")


@pytest.fixture(scope="module")
def t5(shipped):
    return kerasllm.Seq2SeqLM.from_preset(shipped / "t5-dates-tiny")


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def test_the_distribution_is_the_samplers():
    logits = np.random.default_rng(0).normal(size=50).astype("float32") * 3
    shares, kept = distribution(logits, sampler_of(0.7, 5, 1, 0))
    expected = softmax(logits.astype("float64") / 0.7)
    best = np.argsort(-logits)[:5]
    assert set(np.flatnonzero(kept)) == set(best)
    np.testing.assert_allclose(shares[best], expected[best] / expected[best].sum(), rtol=1e-5)
    shares, kept = distribution(logits, sampler_of(1, 0, 0.6, 0))
    order = np.argsort(-logits)
    needed = 1 + np.searchsorted(np.cumsum(softmax(logits.astype("float64"))[order]), 0.6)
    assert set(np.flatnonzero(kept)) == set(order[:needed]) and shares[kept].sum() == pytest.approx(1)
    shares, kept = distribution(logits, sampler_of(0, 0, 1, 0))
    assert np.flatnonzero(kept).tolist() == [logits.argmax()]


@pytest.mark.parametrize(
    "setting", [(-1, 0, 1, 0), (1, -1, 1, 0), (1, 0, 0, 0), (1, 0, 2, 0), (1, 0, 1, 2), ("hot", 0, 1, 0)]
)
def test_settings_past_the_page_are_refused(setting):
    with pytest.raises(ValueError, match="must be"):
        sampler_of(*setting)


def test_a_stream_is_what_generate_writes_and_can_branch(gpt):
    sampler = sampler_of(1.0, 0, 1, 0, 5)
    (*_, pieces) = stream(gpt, "the cat", sampler, 12)
    assert "".join(piece["text"] for piece in pieces) == gpt.generate("the cat", 12, sampler=sampler, strip_prompt=True)
    assert len(pieces[0]["alternatives"]) == writing.ALTERNATIVES
    logits = next_logits(gpt, "the cat")
    probability = softmax(logits.astype("float64"))[pieces[0]["id"]]
    assert pieces[0]["probability"] == pytest.approx(probability, rel=1e-3)
    token_id = pieces[2]["alternatives"][1][1]
    kept = branched(gpt.tokenizer, pieces, 2, token_id)
    assert [piece["id"] for piece in kept] == [pieces[0]["id"], pieces[1]["id"], token_id]
    (*_, longer) = stream(gpt, "the cat", sampler, 4, kept)
    assert longer[:3] == kept and len(longer) == 7
    for place, token in ((99, token_id), (2, -5), (None, token_id), (True, token_id)):
        with pytest.raises(ValueError, match=r"no token at place|none of the alternatives"):
            branched(gpt.tokenizer, pieces, place, token)


def test_bars_are_of_the_likeliest(gpt):
    rows = bars_of(gpt.tokenizer, next_logits(gpt, "the cat"), sampler_of(1, 3, 1, 0), 5)
    assert [kept for *_, kept in rows] == [True, True, True, False, False]
    assert sum(share for _, share, kept in rows if kept) == pytest.approx(1)


def test_attention_comes_to_the_page_as_it_is(t5):
    seen = looking.see(t5, "3 May", written="on")
    value = looking.attention_value(seen, "cross")
    weights = seen.trace.attention_maps("cross").weights
    assert weights.shape == (2, 2, len(value["queries"]), len(value["keys"])) and len(value["keys"]) == 6
    sent = np.frombuffer(base64.b64decode(value["weights"]), "uint8").reshape(weights.shape)
    np.testing.assert_allclose(sent / 255, weights, atol=0.5 / 255 + 1e-6)
    assert looking.kinds_of(t5) == ["decoder", "encoder", "cross"]


def test_long_texts_are_shown_in_a_window(gpt):
    seen = looking.see(gpt, "the moon, a list " * 40)
    assert len(seen.trace.tokens) >= 200
    value = looking.attention_value(seen, "decoder", 10**6)
    assert len(value["queries"]) == MAX_SHOWN_TOKENS and value["queries"][-1] == seen.trace.tokens[-1]


def test_a_head_off_changes_the_numbers_and_on_again_does_not(gpt):
    whole = looking.see(gpt, "the cat sat")
    cut_off = looking.see(gpt, "the cat sat", [(0, 1)], "decoder", "")
    assert abs(whole.logits - cut_off.logits).max() > 0 and whole.loss != cut_off.loss
    np.testing.assert_array_equal(looking.see(gpt, "the cat sat").logits, whole.logits)


def test_tokens_and_what_training_sees():
    tokenizer = kerasllm.Tokenizer.train("the cat sat on the mat " * 9, "wordpiece", 60)
    found = cut(tokenizer, "the cat 🐈", "own")
    assert found.tokens == ["the", "cat", "[UNK]"] and found.unknown == 1
    drawn = {corrupted("masked", "the cat sat on the mat", tokenizer, draw) for draw in range(20)}
    assert len(drawn) > 3 and any("→" in text for text in drawn)


def test_tables_of_figures(shipped, gpt):
    from playground.measuring import evaluation_table, quantization_table

    text = "the cat sat on the mat and looked at the moon. " * 2
    directories = {name: str(shipped / name) for name in ("gpt-tiny", "bert-tiny")}
    causal, masked = evaluation_table(directories, text)
    scores = gpt.score([text])[0]
    assert causal["loss"] == pytest.approx(-scores.mean(), rel=1e-4) and masked["bits_per_byte"] is None
    first = len(gpt.tokenizer.decode(gpt.tokenizer.encode(text)[:1]))
    assert causal["bits_per_byte"] == pytest.approx(-scores.sum() / np.log(2) / (len(text) - first), rel=1e-4)
    plain, int8 = quantization_table(str(shipped / "gpt-tiny"), ["fp32", "int8"], text)
    assert plain["flips"] == 0 and int8["megabytes"] < plain["megabytes"] and 0 <= int8["flips"] <= 1
