"""Directories that transformers makes or reads, odd ones above all, and what we do with each: a table.

A row is read by one of our tasks, which then computes what transformers computes, or refuses the directory with a
message that has certain words. docs/compatibility.md can be made of `label` and `verdict`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

BASE = {"vocab_size": 64, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    **BASE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "initializer_factor": 8.0,
}
GPT2 = {**BASE, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
SIZES = {
    "Llama": {**ENCODER, "num_key_value_heads": 2},
    "GPT2": GPT2,
    "Bert": ENCODER,
    "Electra": {**ENCODER, "embedding_size": 32},
    "T5": {**T5, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
}
TASKS = {
    "CausalLM": ("LlamaForCausalLM", "GPT2LMHeadModel", "BertLMHeadModel"),
    "MaskedLM": ("BertForMaskedLM", "ElectraForMaskedLM"),
    "PairedMaskedLM": ("BertForPreTraining",),
    "ReplacedTokenDetector": ("ElectraForPreTraining",),
    "Seq2SeqLM": ("T5ForConditionalGeneration",),
    "TextEmbedder": ("LlamaModel", "GPT2Model", "BertModel", "ElectraModel"),
}
REMOVED = object()  # in place of a value: the key or tensor is taken out


@dataclasses.dataclass(frozen=True)
class Directory:
    """A directory and what we do with it.

    Args:
        label: what is odd about it.
        architecture: the class of transformers that makes it.
        config: arguments of its config, beside the sizes.
        refused: words of the message, if it is refused; it is equal to transformers otherwise.
        json: config.json's values changed after saving.
        files: other JSON files to write, by name.
        tensors: (tensors, a generator of numbers) → the tensors of the file, changed after saving.
        task: the task that reads it, where it is not that of the architecture.
        options: arguments of from_preset.
        ends_in_padding: whether a text ends in padding tokens that its mask calls real.
        backends: whether it is compared on all backends, and not on PyTorch alone.
    """

    label: str
    architecture: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""
    json: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: dict[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Callable | None = None
    task: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    ends_in_padding: bool = False
    backends: bool = False

    @property
    def family(self) -> str:
        return next(name for name in SIZES if self.architecture.startswith(name))

    @property
    def reader(self) -> str:
        if self.task:
            return self.task
        if "Classification" in self.architecture:
            return "TokenClassifier" if "Token" in self.architecture else "TextClassifier"
        return next(task for task, architectures in TASKS.items() if self.architecture in architectures)

    @property
    def verdict(self) -> str:
        return f"refused: {self.refused}" if self.refused else "equal"

    def __str__(self) -> str:
        return f"{self.architecture} {self.label}"


def own(name, like):
    """The tensor `name`, of other values than the tensor that it is tied to."""
    return lambda tensors, rng: {**tensors, name: rng.normal(0, 0.2, tensors[like].shape).astype("float32")}


def copied(name, like):
    return lambda tensors, rng: {**tensors, name: tensors[like].copy()}


def moved(name, to):
    return lambda tensors, rng: {to if key == name else key: value for key, value in tensors.items()}


def renamed(*pairs):
    def change(tensors, rng):
        for old, new in pairs:
            tensors = {name.replace(old, new): value for name, value in tensors.items()}
        return tensors

    return change


def added(name, *shape):
    return lambda tensors, rng: {**tensors, name: np.ones(shape, "float32")}


def halved(tensors, rng):
    return {name: value.astype("float16") for name, value in tensors.items()}


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e3}
D = Directory
LLAMA, GPT, BERT, T5LM = "LlamaForCausalLM", "GPT2LMHeadModel", "BertForMaskedLM", "T5ForConditionalGeneration"
DETECTOR = "ElectraForPreTraining"
DECODER_WEIGHT, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
WORDS, BIAS = "bert.embeddings.word_embeddings.weight", "cls.predictions.bias"

LLAMAS = [
    D("two layers", LLAMA, {"num_hidden_layers": 2}, backends=True),
    D("heads of a size of their own", LLAMA, {"head_dim": 12, "num_key_value_heads": 1}),
    D(
        "as many key heads as query heads, unsaid",
        LLAMA,
        {"num_key_value_heads": 4},
        json={"num_key_value_heads": None},
    ),
    D("tied", LLAMA, {"tie_word_embeddings": True}),
    D(
        "tied, and a copy of the head in the file",
        LLAMA,
        {"tie_word_embeddings": True},
        tensors=copied("lm_head.weight", "model.embed_tokens.weight"),
    ),
    D(
        "tied, and a head of its own in the file",
        LLAMA,
        {"tie_word_embeddings": True},
        tensors=own("lm_head.weight", "model.embed_tokens.weight"),
        backends=True,
    ),
    D(
        "tied, and the head alone in the file",
        LLAMA,
        {"tie_word_embeddings": True},
        tensors=moved("model.embed_tokens.weight", "lm_head.weight"),
    ),
    D("biases", LLAMA, {"attention_bias": True, "mlp_bias": True}),
    D("biases in attention alone", LLAMA, {"attention_bias": True}, "attention_bias=True, mlp_bias=False"),
    D("biases in the feed-forward alone", LLAMA, {"mlp_bias": True}, "attention_bias=False, mlp_bias=True"),
    D("activation gelu", LLAMA, {"hidden_act": "gelu"}),
    D("activation gelu_pytorch_tanh", LLAMA, {"hidden_act": "gelu_pytorch_tanh"}),
    D("activation relu", LLAMA, {"hidden_act": "relu"}),
    D("activation quick_gelu", LLAMA, {"hidden_act": "quick_gelu"}, "Unknown hidden_act 'quick_gelu'"),
    D("activation gelu_fast", LLAMA, {"hidden_act": "gelu_fast"}, "Unknown hidden_act 'gelu_fast'"),
    D("activation tanh", LLAMA, {"hidden_act": "tanh"}, "Unknown hidden_act 'tanh'"),
    D("activation relu2", LLAMA, {"hidden_act": "relu2"}, "Unknown hidden_act 'relu2'"),
    D("linear rope", LLAMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}}),
    D("llama3 rope", LLAMA, {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}}),
    D("llama3 rope without its original length", LLAMA, {"rope_parameters": LLAMA3}),
    D(
        "llama3 rope with another original length beside it",
        LLAMA,
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
        json={"original_max_position_embeddings": 8},
        backends=True,
    ),
    D("an original length beside default rope", LLAMA, json={"original_max_position_embeddings": 8}),
    D("theta in the rope mapping", LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    D("theta beside no mapping", LLAMA, json={"rope_parameters": REMOVED, "rope_theta": 100.0}),
    D("theta in both places", LLAMA, json={"rope_parameters": {"rope_theta": 100.0}, "rope_theta": 50.0}),
    D(
        "keys of older versions",
        LLAMA,
        json={"rope_parameters": REMOVED, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    D("rope_scaling beside rope_parameters", LLAMA, json={"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    D("rope_scaling null", LLAMA, json={"rope_scaling": None}),
    *(
        D(f"{kind} rope", LLAMA, refused="linear, llama3", json={"rope_parameters": {"rope_type": kind, "factor": 2.0}})
        for kind in ("dynamic", "yarn", "longrope", "proportional")
    ),
    D(
        "rope by kind of layer",
        LLAMA,
        refused="rope_parameters of ['full_attention']",
        json={"layer_types": ["full_attention"], "rope_parameters": {"full_attention": {"rope_theta": 100.0}}},
    ),
    D(
        "half of a head rotated, with scaling",
        LLAMA,
        refused="partial_rotary_factor=0.5",
        json={"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
    ),
    D("half of a head rotated, without scaling (not read)", LLAMA, json={"partial_rotary_factor": 0.5}),
    D("causal as by default", LLAMA, json={"is_causal": True}),
    D("not causal", LLAMA, refused="a bidirectional encoder", json={"is_causal": False}),
    D("not causal", "LlamaModel", {"tie_word_embeddings": True}, json={"is_causal": False}, backends=True),
    D("layers of full attention by name", LLAMA, json={"layer_types": ["full_attention"]}),
    D("a window as large as the context", LLAMA, json={"sliding_window": 64}),
    D("a window of none", LLAMA, json={"sliding_window": None, "use_sliding_window": False}),
    D("a window", LLAMA, refused="sliding_window=4", json={"sliding_window": 4}),
    D("chunks of attention", LLAMA, refused="attention_chunk_size=4", json={"attention_chunk_size": 4}),
    D(
        "layers with windows",
        LLAMA,
        refused="layer_types=",
        json={"layer_types": ["sliding_attention"], "sliding_window": 64},
    ),
    D(
        "layers of sizes of their own",
        LLAMA,
        refused="per_layer_config=",
        json={"per_layer_config": {"0": {"mlp_bias": True}}},
    ),
    D("no layers of sizes of their own", LLAMA, json={"per_layer_config": None}),
    D("multipliers of other families", LLAMA, json={"embedding_multiplier": 12.0, "logits_scaling": 8.0}),
    D(
        "keys of training and of machines",
        LLAMA,
        json={"pretraining_tp": 2, "use_cache": False, "gradient_checkpointing": True},
    ),
    D(
        "explicit defaults",
        LLAMA,
        json={"is_decoder": False, "add_cross_attention": False, "chunk_size_feed_forward": 0},
    ),
    D(
        "quantized by another tool",
        LLAMA,
        refused="model.dequantize()",
        json={"quantization_config": {"quant_method": "awq"}},
    ),
    D(
        "weights in a file by another name",
        LLAMA,
        refused="transformers_weights=",
        json={"transformers_weights": "w.safetensors"},
    ),
    D("heads that were pruned", LLAMA, refused="pruned_heads=", json={"pruned_heads": {"0": [1]}}),
    D("no heads that were pruned", LLAMA, json={"pruned_heads": {}}),
    D("code of its own", LLAMA, refused="remove auto_map", json={"auto_map": {"AutoModel": "modeling.Evil"}}),
    D("frequencies in the file", LLAMA, tensors=added("model.layers.0.self_attn.rotary_emb.inv_freq", 4)),
    D(
        "a layer too many in the file",
        LLAMA,
        {"num_hidden_layers": 2},
        "knows nothing of",
        json={"num_hidden_layers": 1},
    ),
    D("a layer too few in the file", LLAMA, refused="lacks model.layers.1", json={"num_hidden_layers": 2}),
    D(
        "width no multiple of the heads",
        LLAMA,
        refused="num_attention_heads=3",
        json={"num_attention_heads": 3, "num_key_value_heads": 3},
    ),
    D("sizes as text", LLAMA, refused="hidden_dim='32'", json={"hidden_size": "32"}),
    D("bare, untied and so without a head", "LlamaModel"),
    D("bare, untied", "LlamaModel", refused="lacks lm_head.weight", task="CausalLM"),
    D("bare, tied", "LlamaModel", {"tie_word_embeddings": True}),
    D("classifier", "LlamaForSequenceClassification", {"num_labels": 3}, backends=True),
    D(
        "classifier of texts that end in padding tokens",
        "LlamaForSequenceClassification",
        {"num_labels": 3},
        ends_in_padding=True,
    ),
    D(
        "classifier, tied, with names",
        "LlamaForSequenceClassification",
        {"id2label": {0: "a", 1: "b"}, "tie_word_embeddings": True},
    ),
    D("classifier of one number", "LlamaForSequenceClassification", {"num_labels": 1}, "regression"),
    D("token classifier", "LlamaForTokenClassification", {"num_labels": 3}),
    D(
        "token classifier without bias",
        "LlamaForTokenClassification",
        {"num_labels": 3},
        "token_classification_bias=False",
        json={"token_classification_bias": False},
    ),
    D("half precision", LLAMA, tensors=halved),
]
ALIASES = {"n_head": REMOVED, "num_attention_heads": 4, "n_embd": REMOVED, "hidden_size": 32, "n_layer": REMOVED}
GPTS = [
    D("plain", GPT, backends=True),
    D("tied, and a head of its own in the file", GPT, tensors=own("lm_head.weight", "transformer.wte.weight")),
    D("tied, and a copy of the head in the file", GPT, tensors=copied("lm_head.weight", "transformer.wte.weight")),
    D("untied", GPT, {"tie_word_embeddings": False}),
    D("its own width inside", GPT, {"n_inner": 40}),
    D("activation relu", GPT, {"activation_function": "relu"}),
    D("activation gelu", GPT, {"activation_function": "gelu"}),
    D("activation swish", GPT, {"activation_function": "swish"}),
    D("activation gelu_pytorch_tanh", GPT, {"activation_function": "gelu_pytorch_tanh"}),
    D("reordered attention", GPT, {"reorder_and_upcast_attn": True}),
    D("attention without scale", GPT, {"scale_attn_weights": False}, "scale_attn_weights=False"),
    D(
        "attention scaled by layer",
        GPT,
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx=True",
    ),
    D("cross-attention", GPT, {"add_cross_attention": True}, "add_cross_attention=True"),
    D("not causal", GPT, refused="a bidirectional encoder", json={"is_causal": False}),
    D("not causal", "GPT2Model", json={"is_causal": False}),
    D("causal as null", GPT, refused="causal=None", json={"is_causal": None}),
    D(
        "other names of keys",
        GPT,
        json={**ALIASES, "num_hidden_layers": 1, "n_positions": REMOVED, "max_position_embeddings": 64},
    ),
    D(
        "another name of the heads alone",
        GPT,
        {"n_embd": 48},
        json={"n_head": REMOVED, "num_attention_heads": 4},
        backends=True,
    ),
    D("both names of the heads, equal", GPT, json={"num_attention_heads": 4}),
    D("both names of the heads, different", GPT, refused="another name of `n_head`", json={"num_attention_heads": 2}),
    D("both names of the width, different", GPT, refused="another name of `n_embd`", json={"hidden_size": 64}),
    D("windows", GPT, refused="sliding_window=4", json={"sliding_window": 4}),
    D("mask buffers in the file", GPT, tensors=added("transformer.h.0.attn.bias", 1, 1, 64, 64)),
    D("an unknown tensor in the file", GPT, refused="knows nothing of", tensors=added("transformer.h.0.attn.other", 3)),
    D("summary keys of old classifiers", GPT, json={"summary_type": "mean", "summary_use_proj": False}),
    D("no head count at all", GPT, refused="hidden_dim", json={"n_head": REMOVED}),
    D("bare", "GPT2Model"),
    D("bare", "GPT2Model", task="CausalLM"),
    D("classifier", "GPT2ForSequenceClassification", {"num_labels": 3}, backends=True),
    D(
        "classifier of texts that end in padding tokens",
        "GPT2ForSequenceClassification",
        {"num_labels": 3},
        ends_in_padding=True,
    ),
    D(
        "classifier of several labels",
        "GPT2ForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    D("classifier without padding token", "GPT2ForSequenceClassification", {"num_labels": 2, "pad_token_id": None}),
    D("token classifier", "GPT2ForTokenClassification", {"num_labels": 3}),
    D("half precision", GPT, tensors=halved),
]
BERTS = [
    D("plain", BERT, backends=True),
    D("of sentence pairs", "BertForPreTraining"),
    D("a decoder of its own in the file", BERT, tensors=own(DECODER_WEIGHT, WORDS), backends=True),
    D("a copy of the decoder in the file", BERT, tensors=copied(DECODER_WEIGHT, WORDS)),
    D("a bias of its own in the file", BERT, tensors=own(DECODER_BIAS, BIAS)),
    D("a copy of the bias in the file", BERT, tensors=copied(DECODER_BIAS, BIAS)),
    D("the other bias alone in the file", BERT, tensors=moved(BIAS, DECODER_BIAS)),
    D(
        "a decoder and a bias of its own in the file",
        "BertForPreTraining",
        tensors=lambda t, rng: own(DECODER_BIAS, BIAS)(own(DECODER_WEIGHT, WORDS)(t, rng), rng),
    ),
    D("untied", BERT, {"tie_word_embeddings": False}),
    D("untied", "BertForMaskedLM", {"tie_word_embeddings": False}, task="TextEmbedder"),
    *(D(f"activation {name}", BERT, {"hidden_act": name}) for name in ("relu", "silu", "gelu_new")),
    D("one kind of segment", BERT, {"type_vocab_size": 1}),
    D("three kinds of segments", BERT, {"type_vocab_size": 3}),
    D("no kind of segment", BERT, refused="type_vocab_size=0", json={"type_vocab_size": 0}),
    D(
        "relative positions",
        BERT,
        refused="position_embedding_type='relative_key'",
        json={"position_embedding_type": "relative_key"},
    ),
    D("positions named absolute", BERT, json={"position_embedding_type": "absolute"}),
    D("cross-attention", BERT, refused="add_cross_attention=True", json={"add_cross_attention": True}),
    D("feed-forward in chunks", BERT, json={"chunk_size_feed_forward": 1}),
    D(
        "names of older versions",
        BERT,
        tensors=renamed(("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")),
    ),
    D("position numbers in the file", BERT, tensors=added("bert.embeddings.position_ids", 1, 64)),
    D("not a decoder, said", BERT, json={"is_decoder": False, "is_causal": False}),
    D("causal", "BertLMHeadModel", {"is_decoder": True}, "layers between the hidden states and the token embedding"),
    D("causal", "BertModel", {"is_decoder": True}, backends=True),
    D("causal", "BertForSequenceClassification", {"is_decoder": True, "num_labels": 3}),
    D("a decoder that is not causal", "BertModel", {"is_decoder": True}, json={"is_causal": False}),
    D("causal, asked for hidden tokens", BERT, {"is_decoder": True}, "a causal decoder"),
    D("bare", "BertModel"),
    D(
        "bare, by names with the prefix",
        "BertModel",
        tensors=lambda t, rng: {f"bert.{name}": value for name, value in t.items()},
    ),
    D("classifier", "BertForSequenceClassification", {"num_labels": 3}, backends=True),
    D("classifier with its own dropout", "BertForSequenceClassification", {"num_labels": 2, "classifier_dropout": 0.5}),
    D(
        "classifier of several labels",
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    D(
        "classifier of one label, by name",
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "single_label_classification"},
    ),
    D("regression of one number", "BertForSequenceClassification", {"num_labels": 1}, "regression"),
    D(
        "regression of three numbers",
        "BertForSequenceClassification",
        {"num_labels": 3, "problem_type": "regression"},
        "problem_type='regression'",
    ),
    D(
        "an unknown problem",
        "BertForSequenceClassification",
        {"num_labels": 3},
        "problem_type='ranking'",
        json={"problem_type": "ranking"},
    ),
    D(
        "count of labels without their names",
        "BertForSequenceClassification",
        {"num_labels": 3},
        json={"id2label": REMOVED, "label2id": REMOVED, "num_labels": 3},
    ),
    D(
        "names of labels with a gap",
        "BertForSequenceClassification",
        {"num_labels": 3},
        "id2label",
        json={"id2label": {"0": "a", "2": "b"}},
    ),
    D("token classifier", "BertForTokenClassification", {"num_labels": 3}),
    D("another vocabulary size than the file's", BERT, refused="has shape (64, 32)", json={"vocab_size": 65}),
    D("half precision", BERT, tensors=halved),
]
ELECTRAS = [
    *(D(f"activation {name}", DETECTOR, {"hidden_act": name}) for name in ("gelu", "gelu_new", "relu", "silu")),
    D("narrow embeddings", DETECTOR, {"embedding_size": 16}, "embedding_size=16, hidden_size=32"),
    D("width left to its default", DETECTOR, refused="embedding_size=128", json={"embedding_size": REMOVED}),
    D("generator", "ElectraForMaskedLM", backends=True),
    D(
        "generator with a head of its own",
        "ElectraForMaskedLM",
        tensors=own("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
    ),
    D("generator, untied", "ElectraForMaskedLM", {"tie_word_embeddings": False}),
    D("generator with another activation", "ElectraForMaskedLM", {"hidden_act": "relu"}, "hidden_act='relu'"),
    D("classifier", "ElectraForSequenceClassification", {"num_labels": 3}, backends=True),
    D(
        "classifier of several labels",
        "ElectraForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    D("token classifier", "ElectraForTokenClassification", {"num_labels": 3}),
    D("bare", "ElectraModel"),
    D("causal", "ElectraModel", {"is_decoder": True}),
    D("position numbers in the file", DETECTOR, tensors=added("electra.embeddings.position_ids", 1, 64)),
    D(
        "relative positions",
        DETECTOR,
        refused="position_embedding_type",
        json={"position_embedding_type": "relative_key_query"},
    ),
    D("summary keys of old classifiers", DETECTOR, json={"summary_type": "last", "summary_activation": "tanh"}),
    D("two segments by default", DETECTOR, json={"type_vocab_size": REMOVED}),
    D("unknown activation", DETECTOR, refused="Unknown hidden_act 'mish'", json={"hidden_act": "mish"}),
]
T5S = [
    D("1.0", T5LM, backends=True),
    D("1.0, and a head of its own in the file", T5LM, tensors=own("lm_head.weight", "shared.weight"), backends=True),
    D("1.0, and a copy of the head in the file", T5LM, tensors=copied("lm_head.weight", "shared.weight")),
    D(
        "1.1",
        T5LM,
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        tensors=own("lm_head.weight", "shared.weight"),
    ),
    D(
        "untied in the config, a copy in the file",
        T5LM,
        {"tie_word_embeddings": False},
        tensors=copied("lm_head.weight", "shared.weight"),
    ),
    D("gated silu", T5LM, {"feed_forward_proj": "gated-silu"}),
    D("gated relu", T5LM, {"feed_forward_proj": "gated-relu"}),
    D("activation named beside the feed-forward", T5LM, json={"dense_act_fn": "gelu_new"}, backends=True),
    D("exact gelu, gated", T5LM, {"feed_forward_proj": "gated-gelu"}, json={"dense_act_fn": "gelu"}),
    D(
        "gated by the second key alone",
        T5LM,
        {"feed_forward_proj": "gated-relu"},
        json={"feed_forward_proj": "relu", "is_gated_act": True},
    ),
    D("logits not scaled", T5LM, json={"scale_decoder_outputs": False}),
    D("1 and 2 layers", T5LM, {"num_decoder_layers": 2}),
    D("2 and 1 layers", T5LM, {"num_layers": 2, "num_decoder_layers": 1}),
    D("buckets", T5LM, {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}),
    D("heads of a size of their own", T5LM, {"d_kv": 12}),
    D(
        "other names of keys",
        T5LM,
        json={
            "d_model": REMOVED,
            "hidden_size": 32,
            "num_heads": REMOVED,
            "num_attention_heads": 4,
            "d_kv": REMOVED,
            "head_dim": 8,
        },
    ),
    D(
        "both names of the heads, different",
        T5LM,
        refused="another name of `num_heads`",
        json={"num_attention_heads": 2},
    ),
    D("a copy of the embeddings of the encoder", T5LM, tensors=copied("encoder.embed_tokens.weight", "shared.weight")),
    D("the embeddings of the decoder alone", T5LM, tensors=moved("shared.weight", "decoder.embed_tokens.weight")),
    D(
        "embeddings of the encoder of its own",
        T5LM,
        refused="encoder.embed_tokens.weight",
        tensors=own("encoder.embed_tokens.weight", "shared.weight"),
    ),
    D(
        "embeddings of the decoder of its own",
        T5LM,
        refused="decoder.embed_tokens.weight",
        tensors=own("decoder.embed_tokens.weight", "shared.weight"),
    ),
    D("a decoder that is not causal", T5LM, refused="is_causal=False", json={"is_causal": False}),
    D("windows", T5LM, refused="sliding_window=4", json={"sliding_window": 4}),
    D(
        "unknown activation",
        T5LM,
        refused="'x'",
        json={"feed_forward_proj": "gated-x", "dense_act_fn": REMOVED, "is_gated_act": REMOVED},
    ),
    D("no encoder", T5LM, refused="is_encoder_decoder=False", json={"is_encoder_decoder": False}),
    D(
        "a bias of the first cross-attention",
        T5LM,
        tensors=added("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", 32, 4),
    ),
]


def sentence_files(pooling: dict, *, normalize=True, transformer=None, modules=None, settings=None) -> dict[str, Any]:
    """The files of sentence-transformers beside a BERT's."""
    kinds = modules or ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    return {
        "modules.json": [
            {
                "idx": i,
                "name": str(i),
                "path": paths.get(kind, f"{i}_{kind}"),
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **pooling},
        **({"sentence_bert_config.json": transformer} if transformer else {}),
        **({"config_sentence_transformers.json": settings} if settings else {}),
    }


def S(label, pooling, refused="", options=None, **files):
    return D(label, "BertModel", refused=refused, files=sentence_files(pooling, **files), options=options or {})


OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}
SENTENCES = [
    S("mean, normalized", {**OLD, "pooling_mode_mean_tokens": True}),
    S("first token, in the old spelling", {**OLD, "pooling_mode_cls_token": True}),
    S("first token, in the new spelling", {"pooling_mode": "cls"}),
    S("first token, in a list", {"pooling_mode": ["cls"]}),
    S("both spellings: the new one counts", {**OLD, "pooling_mode_cls_token": True, "pooling_mode": "lasttoken"}),
    S("last token", {"pooling_mode_lasttoken": True}),
    S("mean, not normalized", {"pooling_mode": "mean"}, normalize=False),
    S("no mode said: mean", {}),
    S("largest value of all tokens", {**OLD, "pooling_mode_max_tokens": True}, "pooling_mode=['max']"),
    S(
        "mean over the root of the length",
        {"pooling_mode": "mean_sqrt_len_tokens"},
        "pooling_mode=['mean_sqrt_len_tokens']",
    ),
    S("weighted mean", {"pooling_mode_weightedmean_tokens": True}, "pooling_mode=['weightedmean']"),
    S("two modes side by side", {"pooling_mode": ["cls", "mean"]}, "pooling_mode=['cls', 'mean']"),
    S("a mode of ours instead", {"pooling_mode": "max"}, options={"pooling": "mean"}),
    S(
        "a dense layer",
        {"pooling_mode": "cls"},
        "Transformer, Pooling, Dense",
        modules=["Transformer", "Pooling", "Dense"],
    ),
    S("no pooling", {"pooling_mode": "cls"}, "Received: Transformer", modules=["Transformer"]),
    S("a module of its own", {}, "Received: Transformer, Pooling, Evil", modules=["Transformer", "Pooling", "Evil"]),
    S("prompts, none by default", {}, settings={"prompts": {"query": "q: "}, "default_prompt_name": None}),
    S(
        "a default prompt that there is not",
        {},
        "default_prompt='query'",
        settings={"prompts": {}, "default_prompt_name": "query"},
    ),
    S(
        "prompts that are not pooled",
        {"include_prompt": False},
        "include_prompt=False",
        settings={"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    ),
    S("prompts that are not pooled, and none", {"include_prompt": False}),
    S("shortened vectors", {}, "truncate_dim=8", settings={"truncate_dim": 8}),
    S("another similarity", {}, settings={"similarity_fn_name": "dot"}),
    S("cut texts", {}, transformer={"max_seq_length": 5, "do_lower_case": False}),
    S("logits instead of states", {}, "transformer_task='fill-mask'", transformer={"transformer_task": "fill-mask"}),
]
DIRECTORIES = [*LLAMAS, *GPTS, *BERTS, *ELECTRAS, *T5S, *SENTENCES]

# Keys of config.json -----------------------------------------------------------------------------------------------

# What transformers' code of our families, and what it shares, reads of a config and we do not, because it changes
# nothing of what a model computes.
HARMLESS = {
    "_attn_implementation",
    "_experts_implementation",
    "bos_token_id",
    "chunk_size_feed_forward",  # the same numbers, in pieces
    "decoder_start_token_id",  # `tasks.read_options`
    "device_mesh",
    "distributed_config",
    "dtype",
    "eos_token_id",  # of generation
    "fusion_config",
    "gradient_checkpointing",
    "hidden_dropout",  # of training
    "embedding_size",  # of BERT: of a check alone
    "initializer_factor",
    "is_encoder_decoder",  # of BERT: of its cache
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "sep_token_id",  # of a warning
    "use_cache",
    # Of heads that are none of ours: double heads, multiple choice, the first summaries.
    "summary_activation",
    "summary_first_dropout",
    "summary_last_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
}
# Read by code that all families share, for models that ours are not.
OF_OTHER_FAMILIES = {
    "__class__",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "_name_or_path",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "chain_hidden_post_norm",
    "compile_config",
    "default_theta",  # of the class, before config.json is read
    "extra_files",
    "first_k_dense_replace",
    "init_std",
    "is_heterogeneous",
    "logits_mup_width_multiplier",
    "mlp_layer_types",
    "mtp_hidden_states_first",
    "mtp_layer_types",
    "mtp_mlp_layer_types",
    "mtp_per_layer_config",
    "num_mtp_layers",
    "number_of_conv_states",
    "sub_config_name",
    "sub_configs",
    "unpadded_vocab_size",
}
