"""Token metrics: summed over batches of any size, divided once."""

import keras
import numpy as np
import pytest

from kerasllm import CausalLM, Tokenizer, TransformerConfig
from kerasllm.metrics import TokenMetrics


def value(x) -> float:
    return float(keras.ops.convert_to_numpy(x))


def test_perplexity_is_summed_then_divided():
    metrics = TokenMetrics(with_bytes=True)
    batches = [(10.0, 9.0, 3.0, 4.0, 11.0), (1.0, 1.0, 1.0, 1.0, 2.0), (50.0, 48.0, 2.0, 20.0, 61.0)]
    for loss, nll, correct, tokens, num_bytes in batches:
        metrics.add(loss, nll, correct, tokens, num_bytes)
    loss, nll, correct, tokens, num_bytes = np.sum(batches, axis=0)
    result = {name: value(v) for name, v in metrics.result().items()}
    assert result == pytest.approx(
        {
            "loss": loss / tokens,
            "perplexity": np.exp(nll / tokens),
            "accuracy": correct / tokens,
            "bits_per_byte": nll / np.log(2) / num_bytes,
        },
        rel=1e-5,
    )
    mean_of_means = np.mean([np.exp(n / t) for _, n, _, t, _ in batches])
    assert abs(result["perplexity"] - mean_of_means) > 0.1


def test_reset_and_config():
    metrics = TokenMetrics(with_bytes=True)
    metrics.add(3.0, 3.0, 1.0, 2.0, 5.0)
    metrics.reset_state()
    assert value(metrics.result()["loss"]) == 0.0
    assert TokenMetrics.from_config(metrics.get_config()).with_bytes
    assert "bits_per_byte" not in TokenMetrics().result()


def test_evaluate_equals_numpy_over_uneven_batches():
    texts = ["the cat sat", "on", "a mat", "naïve 猫", "so it is"]
    tokenizer = Tokenizer.train(texts, kind="byte")
    config = TransformerConfig(
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=16,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        initializer_range=0.2,
    )
    model = CausalLM(config, tokenizer=tokenizer)
    model.compile(optimizer="sgd")

    nll = correct = tokens = num_bytes = 0
    rows = [tokenizer.encode(text) for text in texts]
    for ids in (row for row in rows if len(row) > 1):
        logits = model.predict([ids], verbose=0)[0, :-1].astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll -= log_p[np.arange(len(ids) - 1), ids[1:]].sum()
        correct += (logits.argmax(-1) == ids[1:]).sum()
        tokens += len(ids) - 1
        num_bytes += len(ids) - 1  # a byte a token
    found = model.evaluate(rows, batch_size=2, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(nll / tokens, rel=1e-4)
    assert found["perplexity"] == pytest.approx(np.exp(nll / tokens), rel=1e-4)
    assert found["accuracy"] == pytest.approx(correct / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nll / np.log(2) / num_bytes, rel=1e-4)
