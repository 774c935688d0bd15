"""`evaluate` measures what a model is: each task as its training does, adapters too."""

import json

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.training.evaluation import evaluate_model
from kerasllm.training.tasks import BERT_TOKENS, T5_TOKENS

pytestmark = pytest.mark.one_backend

TEXT = "the cat sat on the mat. the dog ran to the cat. a bird sang in the tree. " * 8
PAIRS = [("red cat", "warm"), ("blue dog", "cold"), ("red dog", " warm"), ("blue cat", "cold ")]
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
# Class: (kind of stack, what it is measured on, figures).
TOKENS = {"loss", "perplexity", "accuracy"}
CASES = {
    "CausalLM": ("llama_tiny", "text", TOKENS | {"bits_per_byte"}),
    "MaskedLM": ("bert_tiny", "text", TOKENS),
    "PairedMaskedLM": ("bert_tiny", "text", {"loss", "accuracy"}),
    "ReplacedTokenDetector": ("bert_tiny", "text", {"loss"}),
    "Seq2SeqLM": ("t5_tiny", "pairs", TOKENS),
    "TextClassifier": ("bert_tiny", "pairs", {"loss", "accuracy"}),
    "a causal TextClassifier": ("llama_tiny", "pairs", {"loss", "accuracy"}),
    "TextEmbedder": ("bert_tiny", "pairs", {"loss", "retrieval_at_1"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "text.txt").write_text(TEXT)
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in PAIRS))
    return folder


def make(name):
    size, *_ = CASES[name]
    cls = getattr(kerasllm, name.removeprefix("a causal "))
    kind, tokens = ("byte", T5_TOKENS) if size == "t5_tiny" else ("wordpiece", BERT_TOKENS)
    tokenizer = kerasllm.Tokenizer.train(TEXT, kind=kind, vocabulary_size=300, special_tokens=list(tokens))
    sizes = {**SIZES, "vocabulary_size": tokenizer.vocabulary_size, "max_sequence_length": 16}
    sizes |= {"num_encoder_layers": 1, "head_dim": 8} if size == "t5_tiny" else {}
    sizes |= {"num_kv_heads": 1} if size == "llama_tiny" else {}
    options = {"labels": ["cold", "warm"], "truncation": True} if "Classifier" in name else {}
    return cls(kerasllm.TransformerConfig.from_name(size, **sizes), tokenizer, **options)


@pytest.mark.parametrize("name", CASES)
def test_each_task_is_measured_as_in_training(name, folder, tmp_path):
    _, source, expected = CASES[name]
    path = folder / ("text.txt" if source == "text" else "pairs.jsonl")
    make(name).save_to_preset(tmp_path / "model")
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "model"), "--data", str(path), "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    found = dict(line.split()[-2:] for line in result.output.splitlines() if len(line.split()) == 2)
    assert expected <= found.keys(), result.output
    assert np.isfinite([float(found[key]) for key in expected]).all()
    if name == "TextClassifier":
        model = kerasllm.TextClassifier.from_preset(tmp_path / "model")
        answers = [answer.label for answer in model.classify([text for text, _ in PAIRS])]
        right = np.mean([answer == label.strip() for answer, (_, label) in zip(answers, PAIRS)])
        assert float(found["accuracy"]) == pytest.approx(right)


def test_an_adapter_is_measured(folder, tmp_path):
    base = make("MaskedLM")
    base.save_to_preset(tmp_path / "base")
    with pytest.warns(UserWarning, match="start new"):
        tuned = kerasllm.TextClassifier.from_preset(tmp_path / "base", labels=["cold", "warm"])
    tuned.add_adapter("a", kerasllm.tuning.LoRA(rank=1))
    for variable in tuned.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, seed=1))
    tuned.save_adapter(tmp_path / "adapter", "a")
    data = str(folder / "pairs.jsonl")
    arguments = ["evaluate", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter"), "--data", data]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    expected = evaluate_model(tuned, data)
    assert all(value in result.output for value in expected.values()) and {"loss", "accuracy"} <= expected.keys()


def test_what_cannot_be_measured_is_refused(folder, tmp_path):
    model = make("TextClassifier")
    (tmp_path / "other.csv").write_text("text,label\nred,hot\n")
    with pytest.raises(ValueError, match=r"no label 'hot'. They are cold, warm"):
        evaluate_model(model, tmp_path / "other.csv")
    model = kerasllm.TokenClassifier(model.config, model.tokenizer, num_labels=2)
    with pytest.raises(ValueError, match=r"A TokenClassifier is not measured here"):
        evaluate_model(model, folder / "text.txt")
    make("Seq2SeqLM").save_to_preset(tmp_path / "t5")
    (tmp_path / "other.csv").write_text("a,b\nred,hot\n")
    arguments = ["evaluate", str(tmp_path / "t5"), "--data", str(tmp_path / "other.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "It has: a, b. Say which: --column, or --source-column" in result.output
    assert CliRunner().invoke(app, [*arguments, "--source-column", "a", "--target-column", "b"]).exit_code == 0
