"""Seq2SeqLM: one answer by cache and by recomputation, alone and in a batch; texts, pairs and arrays; bad input."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import Seq2SeqLM, Tokenizer, TransformerConfig

VOCABULARY, LENGTH = 29, 32
T5 = {"positions": "relative", "norm": "rms_norm", "use_bias": False, "attention_scale": 1.0, "head_dim": 3}
CONFIGS = {
    "t5": {**T5, "activation": "relu", "scale_logits": True},
    "t5_1.1": {**T5, "gated": True, "tie_embeddings": False, "num_layers": 1, "num_encoder_layers": 3},
    "vaswani": {"positions": "sinusoidal", "norm_position": "post", "activation": "relu", "scale_embeddings": True},
}
PAIRS = [("one two", "1 2"), ("two", "2"), ("three one", "3 1"), ("two two one", "2 2 1")]


def make_model(name, tokenizer=None, **changes):
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_encoder_layers": 2, "num_heads": 4, "hidden_dim": 16, "initializer_range": 0.3}
    vocabulary = tokenizer.vocabulary_size if tokenizer else VOCABULARY
    config = TransformerConfig(vocabulary, LENGTH, **{**sizes, **CONFIGS[name], **changes})
    return Seq2SeqLM(config, tokenizer)


def random_ids(*sizes):
    return [np.random.default_rng(size).integers(2, VOCABULARY, size).tolist() for size in sizes]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [text for pair in PAIRS for text in pair]
    return Tokenizer.train(texts, kind="char", special_tokens=["<pad>", "</s>", "<unk>"])


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_answers_are_the_recomputed_ones(name):
    model, sources = make_model(name), random_ids(5, 9, 17)
    together = model.generate(sources, max_new_tokens=6, stop_token_ids=[])
    assert together == [model.generate(source, max_new_tokens=6, stop_token_ids=[]) for source in sources]
    for source, answer in zip(sources, together):
        written = np.array([[model.start_token_id, *answer[:-1]]], "int32")
        logits = model.predict({"encoder_token_ids": np.array([source]), "decoder_token_ids": written}, verbose=0)
        assert logits[0].argmax(-1).tolist() == answer


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_both_sides_changes_nothing(name):
    model = make_model(name)
    (source,), (target,) = random_ids(7), random_ids(4)
    x = {"encoder_token_ids": np.array([source]), "decoder_token_ids": np.array([target])}
    alone = model.predict(x, verbose=0)[0]
    padded = {
        "encoder_token_ids": np.array([source + [3] * 5]),
        "decoder_token_ids": np.array([target + [5] * 3]),
        "encoder_padding_mask": np.arange(12)[None] < 7,
        "decoder_padding_mask": np.arange(7)[None] < 4,
    }
    np.testing.assert_allclose(model.predict(padded, verbose=0)[0, :4], alone, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_target_token_changes_nothing_before_it_and_a_source_token_everything(name):
    model = make_model(name)
    x = {"encoder_token_ids": np.array(random_ids(7)), "decoder_token_ids": np.array(random_ids(6))}
    before = model.predict(x, verbose=0)
    target = x["decoder_token_ids"].copy()
    target[0, 3] = 2 + target[0, 3] % 20
    after = model.predict({**x, "decoder_token_ids": target}, verbose=0)
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    source = x["encoder_token_ids"].copy()
    source[0, -1] = 2 + source[0, -1] % 20
    changed = model.predict({**x, "encoder_token_ids": source}, verbose=0)
    assert (np.abs(changed - before).max(axis=-1) > 1e-5).all()


def test_learns_pairs_of_texts_and_writes_them(tokenizer, tmp_path):
    model = make_model("t5_1.1", tokenizer, hidden_dim=32, initializer_range=0.05)
    model.compile(optimizer=keras.optimizers.Adam(5e-3))
    history = model.fit(PAIRS * 8, epochs=80, batch_size=8, verbose=0).history
    assert history["loss"][-1] < 0.2 < history["loss"][0]
    sources, targets = (list(side) for side in zip(*PAIRS))
    assert model.generate(sources, max_new_tokens=8) == targets
    assert "".join(model.generate(sources[0], max_new_tokens=8, stream=True)) == targets[0]
    assert model.generate(sources, max_new_tokens=8, num_beams=3) == targets
    assert model.evaluate(sources, targets, return_dict=True, verbose=0)["accuracy"] > 0.99
    scores = model.score(sources, targets)
    assert [len(row) for row in scores] == [len(target) + 1 for target in targets]
    assert min(row.min() for row in scores) > -1

    keras.saving.save_model(model, tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.generate(sources, max_new_tokens=8) == targets


def test_trace_shows_what_the_target_looks_at(tokenizer):
    model = make_model("vaswani", tokenizer)
    trace = model.trace("one two", "1 2")
    assert trace.source_tokens == [*"one two", "</s>"] and trace.tokens == ["<pad>", *"1 2"]
    assert [a.shape for a in trace.encoder_attentions] == [(1, 4, 8, 8)] * 2
    assert [a.shape for a in trace.attentions] == [(1, 4, 4, 4)] * 2
    assert [a.shape for a in trace.cross_attentions] == [(1, 4, 4, 8)] * 2
    for attention in (*trace.attentions, *trace.cross_attentions, *trace.encoder_attentions):
        np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert len(trace.hidden_states) == len(trace.encoder_hidden_states) == 3
    x = {"encoder_token_ids": np.array([model.encode_source("one two")])}
    x["decoder_token_ids"] = np.array([[model.start_token_id, *tokenizer.encode("1 2")]])
    np.testing.assert_allclose(trace.logits, model.predict(x, verbose=0), atol=1e-5)


def test_without_targets_the_decoders_own_tokens_are_the_targets():
    model = make_model("t5")
    model.compile(optimizer="sgd")
    x = {"encoder_token_ids": np.array(random_ids(7)), "decoder_token_ids": np.array(random_ids(6))}
    shifted = {**x, "decoder_token_ids": x["decoder_token_ids"][:, :-1]}
    implied = model.evaluate(x, verbose=0, return_dict=True)["loss"]
    given = model.evaluate(shifted, x["decoder_token_ids"][:, 1:], verbose=0, return_dict=True)["loss"]
    assert implied == pytest.approx(given, rel=1e-6)
    logits = ops.convert_to_numpy(ops.log_softmax(model.predict(shifted, verbose=0)))
    likelihoods = np.take_along_axis(logits, x["decoder_token_ids"][:, 1:, None], axis=-1)
    assert given == pytest.approx(-likelihoods.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(["one"], verbose=0), "Sources need targets"),
        (lambda m: m.fit(["one"], ["1", "2"], verbose=0), "1 sources and 2 targets"),
        (lambda m: m.fit([("one " * 20, "1")], verbose=0), f"{LENGTH}"),
        (lambda m: m.generate("one " * 20), "the encoder reads 32"),
        (lambda m: m.generate([[1, 99]]), "Token id out of range: 99"),
        (lambda m: m.predict({"encoder_token_ids": np.ones((1, 2), "int32")}), "lack 'decoder_token_ids'"),
        (lambda m: m.predict(np.ones((1, 2), "int32")), "reads .source, target. pairs"),
        (lambda m: m.fit({k: np.full((1, 3), 99) for k in Seq2SeqLM.input_keys[:2]}, verbose=0), "out of range: 99"),
        (lambda m: m.generate("one", num_beams=0), "num_beams=0"),
        (lambda m: m.generate("one", num_beams=2, sampler="top_p"), "neither sampled, streamed nor drafted"),
    ],
)
def test_bad_input_is_named(call, message, tokenizer):
    model = make_model("t5", tokenizer)
    model.compile(optimizer="sgd")
    with pytest.raises(ValueError, match=message):
        call(model)


def test_a_long_source_can_be_cut(tokenizer):
    model = make_model("t5", tokenizer)
    assert isinstance(model.generate("one " * 20, max_new_tokens=2, truncation=True), str)


def test_a_model_without_encoder_is_refused():
    with pytest.raises(ValueError, match="num_encoder_layers=0"):
        Seq2SeqLM(TransformerConfig.from_name("gpt2_tiny", vocabulary_size=30))
