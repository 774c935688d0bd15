"""What a directory is opened as: its own task, another one with a new head, or a named refusal."""

import json
import warnings

import numpy as np
import pytest
import safetensors.numpy
from keras import ops

from kerasllm import (
    CausalLM,
    MaskedLM,
    PairedMaskedLM,
    Seq2SeqLM,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
    TransformerConfig,
)
from kerasllm.interop.presets import variables_by_path
from kerasllm.models.language_model import LanguageModel

SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 5}
BERT = TransformerConfig.from_name("bert_tiny", vocabulary_size=19, max_sequence_length=9, **SIZES)
GPT = TransformerConfig(19, 9, **SIZES)
VASWANI = TransformerConfig.from_name(
    "transformer_tiny", vocabulary_size=19, max_sequence_length=9, num_encoder_layers=2, **SIZES
)
T5 = TransformerConfig.from_name("t5_tiny", vocabulary_size=19, num_encoder_layers=1, **SIZES)
SAVED = {
    "BertForMaskedLM": MaskedLM(BERT),
    "BertForPreTraining": PairedMaskedLM(BERT),
    "BertForSequenceClassification": TextClassifier(BERT, labels=["no", "yes"]),
    "BertForTokenClassification": TokenClassifier(BERT, num_labels=4, dropout=0.3),
    "BertModel": TextEmbedder(BERT, pooling="first", normalize=False),
    "GPT2LMHeadModel": CausalLM(GPT),
    "T5ForConditionalGeneration": Seq2SeqLM(T5, start_token_id=2),
    "LlamaForCausalLM": CausalLM(GPT.replace(norm="rms_norm", positions="rotary", gated=True, activation="silu")),
    "KerasLLMForSeq2SeqLM": Seq2SeqLM(VASWANI),
    "KerasLLMForMaskedLM": MaskedLM(BERT.replace(norm="rms_norm", use_bias=False)),
    "KerasLLMForPairedMaskedLM": PairedMaskedLM(BERT.replace(norm="rms_norm")),
    "KerasLLMForTextClassifier": TextClassifier(BERT, num_labels=3, pooling="mean"),
    "KerasLLMForTokenClassifier": TokenClassifier(GPT.replace(norm="rms_norm"), num_labels=3),
    "KerasLLMForTextEmbedder": TextEmbedder(GPT.replace(norm="rms_norm"), pooling="last"),
    "GPT2ForSequenceClassification": TextClassifier(GPT, num_labels=3, use_bias=False, multi_label=True),
    "GPT2ForTokenClassification": TokenClassifier(GPT, num_labels=3, add_special_tokens=True),
    "GPT2Model": TextEmbedder(GPT, pooling="last", max_length=5, prompts={"query": "q: "}, default_prompt="query"),
    "ElectraForSequenceClassification": TextClassifier(BERT, num_labels=3, pooler_activation="gelu"),
    "KerasLLMForTextClassifier without bias": TextClassifier(GPT, pooling="mean", use_bias=False),
    "KerasLLMForCausalLM": CausalLM(GPT.replace(embedding_norm=True)),
}


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("architecture", SAVED)
def test_round_trip(architecture, tmp_path):
    model = SAVED[architecture]
    model.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture.split()[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = type(model).from_preset(tmp_path)
    shared = ("name", "tokenizer")
    ours, theirs = ({k: v for k, v in m.get_config().items() if k not in shared} for m in (loaded, model))
    assert ours == theirs
    theirs = variables_by_path(model)
    for path, variable in variables_by_path(loaded).items():
        np.testing.assert_array_equal(*(ops.convert_to_numpy(v.value) for v in (variable, theirs[path])))


@pytest.mark.parametrize(
    "architecture, cls, fresh",
    [
        ("BertModel", MaskedLM, r"cls\.predictions\.bias"),
        ("BertModel", TextClassifier, r"classifier\.weight"),
        ("BertForMaskedLM", PairedMaskedLM, r"cls\.seq_relationship\.weight"),
        ("BertForMaskedLM", TokenClassifier, r"classifier\.weight"),
        ("BertForTokenClassification", TextClassifier, r"classifier\.weight"),
        ("BertForSequenceClassification", MaskedLM, r"cls\.predictions\.bias"),
        ("GPT2LMHeadModel", TextClassifier, r"score\.weight"),
        ("LlamaForCausalLM", TokenClassifier, r"score\.weight"),
        ("KerasLLMForMaskedLM", TextClassifier, r"classifier\.kernel"),
        ("KerasLLMForTextClassifier", TokenClassifier, r"classifier\.kernel"),
    ],
)
def test_a_head_that_is_not_there_starts_new_and_is_named(architecture, cls, fresh, tmp_path):
    model = SAVED[architecture]
    model.save_to_preset(tmp_path)
    options = {"labels": ["a", "b", "c"]} if "Classifier" in cls.__name__ else {}
    with pytest.warns(UserWarning, match=f"{architecture}.*lacks.*{fresh}.*start new"):
        loaded = cls.from_preset(tmp_path, **options)
    assert getattr(loaded, "labels", None) == options.get("labels")
    theirs = variables_by_path(model)
    for path, variable in variables_by_path(loaded).items():
        if not path.startswith(("masked_head", "next_sentence", "classifier")):
            np.testing.assert_array_equal(*(ops.convert_to_numpy(v.value) for v in (variable, theirs[path])))


def test_a_pooler_that_is_not_there_starts_new(tmp_path):
    MaskedLM(BERT.replace(pooler=False)).save_to_preset(tmp_path)
    assert not MaskedLM.from_preset(tmp_path).config.pooler
    with pytest.warns(UserWarning, match=r"bert\.pooler\.dense\.weight"):
        assert TextClassifier.from_preset(tmp_path).config.pooler


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertForPreTraining", "KerasLLMForMaskedLM"])
def test_a_head_that_is_not_needed_is_left_out_silently(architecture, tmp_path):
    SAVED[architecture].save_to_preset(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextEmbedder.from_preset(tmp_path)


def test_half_a_head_is_an_error(tmp_path):
    SAVED["BertForMaskedLM"].save_to_preset(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    del weights["cls.predictions.transform.dense.bias"]
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=r"lacks cls\.predictions\.transform\.dense\.bias"):
        MaskedLM.from_preset(tmp_path)
    weights["cls.other"] = np.ones(3, "float32")
    safetensors.numpy.save_file(weights, path)
    with pytest.raises(ValueError, match=r"knows nothing of: cls\.other"):
        TextEmbedder.from_preset(tmp_path)


@pytest.mark.parametrize(
    "architecture, cls, right",
    [
        ("BertForMaskedLM", CausalLM, r"MaskedLM\.from_preset"),
        ("GPT2LMHeadModel", MaskedLM, r"CausalLM\.from_preset"),
        ("T5ForConditionalGeneration", CausalLM, r"Seq2SeqLM\.from_preset"),
        ("LlamaForCausalLM", Seq2SeqLM, r"CausalLM\.from_preset"),
        ("KerasLLMForSeq2SeqLM", TextClassifier, r"Seq2SeqLM\.from_preset"),
    ],
)
def test_the_wrong_class_is_told_the_right_one(architecture, cls, right, tmp_path, monkeypatch):
    SAVED[architecture].save_to_preset(tmp_path)
    monkeypatch.setattr(LanguageModel, "__init__", lambda *_, **__: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=f"holds a {architecture}.*{cls.__name__}.*{right}"):
        cls.from_preset(tmp_path)


def test_labels_from_outside(tmp_path):
    SAVED["BertForSequenceClassification"].save_to_preset(tmp_path)
    path = tmp_path / "config.json"
    assert TextClassifier.from_preset(tmp_path, labels=["a", "b"]).labels == ["a", "b"]
    with pytest.raises(ValueError, match=r"classifier\.weight.*\(2, 8\).*\(3, 8\)"):
        TextClassifier.from_preset(tmp_path, num_labels=3)
    for names in ({"0": "a"}, {"0": "a", "1": 2}, {"0": "a", "2": "b"}, ["a", "b"], {}, "ab", None):
        edit_json(path, id2label=names)
        with pytest.raises(ValueError, match="label"):
            TextClassifier.from_preset(tmp_path)


@pytest.mark.parametrize(
    "ours", [[], {"TextEmbedder": 3}, {"TextEmbedder": {"dtype": "x"}}, {"TextEmbedder": {"x": 1}}]
)
def test_settings_from_outside(ours, tmp_path):
    SAVED["BertModel"].save_to_preset(tmp_path)
    edit_json(tmp_path / "config.json", kerasllm=ours)
    if ours:
        with pytest.raises(ValueError, match="kerasllm"):
            TextEmbedder.from_preset(tmp_path)


@pytest.mark.parametrize(
    "architecture, changes, message",
    [
        ("BertForMaskedLM", {"is_decoder": True}, r"causal decoder.*TextEmbedder"),
        ("BertForMaskedLM", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("BertForMaskedLM", {"type_vocab_size": 0}, "type_vocab_size=0"),
        ("BertForMaskedLM", {"tie_word_embeddings": False}, r"lacks cls\.predictions\.decoder\.weight"),
        ("BertForMaskedLM", {"num_hidden_layers": 2}, r"lacks bert\.encoder\.layer\.1"),
        ("BertForMaskedLM", {"vocab_size": 2**24}, r"shape \(19, 8\).*\(16777216, 8\)"),
        ("BertForMaskedLM", {"architectures": 3}, "architectures"),
        ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-x"}, "'x'"),
        ("T5ForConditionalGeneration", {"feed_forward_proj": None}, "None"),
        ("T5ForConditionalGeneration", {"d_kv": 3}, r"SelfAttention.*shape"),
        ("LlamaForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "linear, llama3"),
        ("LlamaForCausalLM", {"rope_parameters": 3}, "rope_parameters"),
        ("LlamaForCausalLM", {"mlp_bias": False}, "mlp_bias=False"),
        (
            "LlamaForCausalLM",
            {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 4},
            "num_attention_heads=3",
        ),
    ],
)
def test_what_a_family_does_not_have_is_named(architecture, changes, message, tmp_path):
    model = SAVED[architecture]
    model.save_to_preset(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        type(model).from_preset(tmp_path)
