"""The report: exact where two models are equal, and the same figures as written out by hand."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, make
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.compression import compare, evaluation_batches, search, use_engine
from kerasllm.compression.evaluation import mean_loss
from kerasllm.compression.post_training import quantized_layers
from kerasllm.compression.report import num_bytes, rows_of, save_report


@pytest.fixture(scope="module")
def pair():
    """A model, the same one in int8, and what they are compared on."""
    before, after = make("bert")[0], make("bert")[0]
    tokenizer = kerasllm.Tokenizer.train(["abc"], kind="char", special_tokens=["[MASK]"])
    before.tokenizer = after.tokenizer = tokenizer
    after.quantize("int8", keep="block_1.*")
    return before, after, evaluation_batches(before, CALIBRATION, max_tokens=48)


def test_figures_are_those_of_their_definitions(pair, tmp_path):
    before, after, batches = pair
    report = compare(before, after, batches)
    losses, kls, changed = [[], []], [], []
    for batch in batches:
        logits = [ops.convert_to_numpy(m(batch.inputs))[batch.counts].astype("float64") for m in (before, after)]
        p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in logits)
        targets = batch.targets[batch.counts]
        for kept, probabilities in zip(losses, (p, q)):
            kept.extend(-np.log(probabilities[np.arange(len(targets)), targets]))
        kls.extend((p * np.log(p / q)).sum(-1))
        changed.extend(p.argmax(-1) != q.argmax(-1))
    found = report["perplexity"]["before"], report["perplexity"]["after"], report["kl"], report["top1_changed"]
    expected = np.exp(np.mean(losses[0])), np.exp(np.mean(losses[1])), np.mean(kls), np.mean(changed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert report["tokens"] == len(kls) == 3 * 2 and report["size_bytes"]["before"] == num_bytes(before)
    assert {row["layer"] for row in report["layers"]} == set(quantized_layers(after))
    errors = [row["error"] for row in report["layers"]]
    assert errors == sorted(errors, reverse=True) and 0 < errors[0] < 0.02
    save_report(report, tmp_path)
    assert json.loads((tmp_path / "quantization.json").read_text()) == report
    assert (tmp_path / "quantization.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_does_not_differ_from_itself(pair):
    before, _, batches = pair
    report = compare(before, before, batches)
    assert report["kl"] == report["top1_changed"] == 0 and report["size_ratio"] == 1 and report["layers"] == []
    assert "+0.00%" in rows_of(report)["perplexity"]


def test_what_is_slower_says_so(monkeypatch):
    speeds = iter([100.0, 60.0])
    monkeypatch.setattr("kerasllm.compression.report.tokens_per_second", lambda model: next(speeds))
    before, after = make("gpt", num_layers=1)[0], make("gpt", num_layers=1)[0]
    after.quantize("float8")
    notes = " ".join(compare(before, after, evaluation_batches(before, CALIBRATION, 32))["notes"])
    assert "Slower" in notes and "0.60" in notes and "No smaller" in notes


def test_a_classifier_is_compared_on_labels_and_t5_on_targets(monkeypatch):
    tokenizer = kerasllm.Tokenizer.train(["abc"], kind="char", special_tokens=["[CLS]", "[SEP]", "</s>"])
    config = make("classifier", num_layers=1)[0].config
    before = kerasllm.TextClassifier(config, tokenizer, labels=["x", "y", "z"])
    after = kerasllm.TextClassifier(config, tokenizer, labels=["x", "y", "z"])
    after.set_weights(before.get_weights())
    after.quantize("int8", keep="classifier")
    pairs = [("abc"[i % 3 :] + "cab"[i % 2 :], "xyz"[i % 3]) for i in range(8)]
    report = compare(before, after, evaluation_batches(before, pairs))
    for model, when in ((before, "before"), (after, "after")):
        right = [found.label == label for found, (_, label) in zip(model.classify([p[0] for p in pairs]), pairs)]
        assert report["accuracy"][when] == pytest.approx(np.mean(right))
    assert report["tokens"] == 8 and report["tokens_per_second"] == {} and "accuracy" in rows_of(report)
    assert sum(len(batch.targets) for batch in evaluation_batches(before, pairs, max_tokens=16)) == 2
    with pytest.raises(ValueError, match="no label 'w'"):
        evaluation_batches(before, [("abc", "w")])

    monkeypatch.setattr("kerasllm.compression.report.tokens_per_second", lambda model: 2.0)
    model = make("t5")[0]
    model.tokenizer = tokenizer
    report = compare(model, model, evaluation_batches(model, [("abc", "cba"), ("a", "bc")]))
    assert report["tokens"] == 4 + 3 and report["tokens_per_second"] == {"before": 2.0, "after": 2.0}


def test_the_search_keeps_within_the_loss_and_leaves_the_model_alone():
    model, _ = make("gpt", num_layers=1)
    weights = [ops.convert_to_numpy(v.value).copy() for v in model.weights]
    # What the model itself finds likeliest, so that rounding makes it worse.
    (batch,) = evaluation_batches(model, CALIBRATION, 128)
    batches = [batch._replace(targets=ops.convert_to_numpy(model(batch.inputs)).argmax(axis=-1))]
    loss, rounded = mean_loss(model, batches), make("gpt", num_layers=1)[0]
    rounded.quantize("int4")
    bound = (mean_loss(rounded, batches) - loss) / 2
    modes = search(model, batches, max_rise=np.expm1(bound))
    small = {name: "int4" for name, mode in modes.items() if mode == "int4"}
    assert 0 < len(small) < len(modes) == len(small) + list(modes.values()).count("int8")
    rounded = make("gpt", num_layers=1)[0]
    rounded.quantize({**small, "*": "float"})
    assert mean_loss(rounded, batches) - loss < 1.2 * bound
    kept = search(model, batches, 100.0, keep_table=True)
    assert set(kept.values()) == {"int4"} and "embedding.tokens" not in kept
    for variable, value in zip(model.weights, weights):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), value)
    with pytest.raises(ValueError, match="max_rise"):
        search(model, batches, 0.0)
    with pytest.raises(ValueError, match="can be compared"):
        evaluation_batches(kerasllm.TextEmbedder(model.config), CALIBRATION)
    with pytest.raises(ValueError, match="`engine` must be one of auto, keras"):
        use_engine(model, "vllm")


def run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_command(tmp_path):
    tokenizer = kerasllm.Tokenizer.train(["a"], kind="byte")
    config = kerasllm.TransformerConfig(tokenizer.vocabulary_size, 16, num_layers=1, num_heads=1, hidden_dim=16)
    kerasllm.CausalLM(config, tokenizer).save_to_preset(tmp_path / "mine")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 9)
    arguments = ("quantize", tmp_path / "mine", "--eval", tmp_path / "text.txt", "--mode", "int4", "--engine", "keras")
    output = run(*arguments, "--keep", "*.down", "--backend", keras.backend.backend())
    for word in ("size", "tokens/s (keras)", "perplexity", "KL", "top-1 changed", "worst layers"):
        assert word in output
    quantized = quantized_layers(kerasllm.CausalLM.from_preset(tmp_path / "mine-int4"))
    assert "block_0.feed_forward.down" not in quantized and "embedding.tokens" in quantized
    assert json.loads((tmp_path / "mine-int4/quantization.json").read_text())["mode"] == "int4"
    assert "`engine`" in run(*arguments[:-1], "vllm", code=2)
    assert "quantized already" in run("quantize", tmp_path / "mine-int4", *arguments[2:], code=2)
    assert "with a search" in run(*arguments, "--search", "0.1", code=2)
    assert "Only gptq and awq" in run(*arguments, "--calibration", tmp_path / "text.txt", code=2)
    arguments = ("prune", *arguments[1:4], "--method", "magnitude")
    output = run(*arguments)
    assert "50.0%" in output and "Zeros are stored" in output and "quanti" not in output and "float8" not in output
    assert "looks at no text" in run(*arguments, "--calibration", tmp_path / "text.txt", code=2)
    assert "Either weights are set to zero" in run(*arguments, "--neurons", "0.5", code=2)
    output = run("prune", *arguments[1:4], "--neurons", "0.5", "--calibration", tmp_path / "text.txt")
    assert "Zeros are stored" not in output and "quanti" not in output
