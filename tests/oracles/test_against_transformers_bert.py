"""Against transformers' BERT, with each of its heads: outputs, gradients, and files both ways."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from keras import ops
from peers import compare_gradients, compare_weights, make_peer, mean_token_loss, random_ids, randomize, tensors

from kerasllm import (
    MaskedLM,
    PairedMaskedLM,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
    Tokenizer,
    TransformerConfig,
)
from kerasllm.models.language_model import HeadInput

SIZES = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 23,
    "max_position_embeddings": 20,
    "pad_token_id": None,  # to PyTorch it means an embedding without a gradient
    "initializer_range": 0.3,
}
SHAPES = {
    "plain": {},
    "odd": {"vocab_size": 43, "hidden_size": 15, "num_attention_heads": 3, "intermediate_size": 7},
    "three_segments": {"type_vocab_size": 3, "num_hidden_layers": 1, "layer_norm_eps": 1e-3},
    "relu": {"hidden_act": "relu", "num_attention_heads": 1},
}
CLASSES = {
    MaskedLM: transformers.BertForMaskedLM,
    PairedMaskedLM: transformers.BertForPreTraining,
    TextClassifier: transformers.BertForSequenceClassification,
    TokenClassifier: transformers.BertForTokenClassification,
    TextEmbedder: transformers.BertModel,
}


def make_bert(cls, **shape):
    return make_peer(cls, transformers.BertConfig(**{**SIZES, **shape}))


def arrays(config):
    """(theirs, ours, mask) of a padded batch with segments."""
    ids = random_ids(config.vocab_size, 3, 11)
    segments = random_ids(config.type_vocab_size, 3, 11, seed=1)
    mask = (np.arange(11) < np.array([[11], [6], [2]])).astype("int32")
    theirs = tensors(input_ids=ids, token_type_ids=segments, attention_mask=mask)
    return theirs, {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}, mask == 1


def outputs(peer, arguments):
    with torch.no_grad():
        found = peer(**arguments)
    if isinstance(peer, transformers.BertForPreTraining):
        return _side_by_side(found.prediction_logits.numpy(), found.seq_relationship_logits.numpy())
    return (found.last_hidden_state if isinstance(peer, transformers.BertModel) else found.logits).numpy()


def our_outputs(model, inputs):
    if isinstance(model, TextEmbedder):
        return ops.convert_to_numpy(model.transformer(**inputs, training=False))
    if isinstance(model, PairedMaskedLM):
        found = model(inputs)
        return _side_by_side(*(ops.convert_to_numpy(found[name]) for name in ("masked_lm", "next_sentence")))
    return ops.convert_to_numpy(model(inputs))


def _side_by_side(of_tokens, of_pairs):
    """The logits of pairs beside those of each token."""
    of_pairs = np.repeat(of_pairs[:, None], of_tokens.shape[1], axis=1)
    return np.concatenate([of_tokens, of_pairs], axis=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_lm_and_the_gradient_of_every_weight(shape, tmp_path):
    peer = make_bert(transformers.BertForMaskedLM, **SHAPES[shape])
    peer.save_pretrained(tmp_path)
    model = MaskedLM.from_preset(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    np.testing.assert_allclose(our_outputs(model, ours)[mask], outputs(peer, theirs)[mask], atol=1e-4)
    unmarked, plain = {"input_ids": theirs["input_ids"]}, ours["token_ids"]
    np.testing.assert_allclose(ops.convert_to_numpy(model(plain)), outputs(peer, unmarked), atol=1e-4)

    labels = random_ids(peer.config.vocab_size, 3, 11, seed=2)
    ignored = torch.tensor(np.where(mask, labels, -100)).long()

    def our_loss():
        return mean_token_loss(model, model.transformer(**ours), labels, mask)

    compare_gradients(peer, model, lambda: peer(**theirs, labels=ignored).loss, our_loss, at_least=1e-6)


@pytest.mark.parametrize("shape", ["plain", "odd"])
def test_classifiers_and_their_gradients(shape, tmp_path):
    peer = make_bert(CLASSES[TextClassifier], **SHAPES[shape], num_labels=3)
    peer.save_pretrained(tmp_path)
    model = TextClassifier.from_preset(tmp_path)
    theirs, ours, _ = arrays(peer.config)
    np.testing.assert_allclose(our_outputs(model, ours), outputs(peer, theirs), atol=1e-4)

    def our_loss():
        logits = model.logits(model.pool(model.transformer(**ours), ours))
        return ops.mean(ops.logsumexp(logits, axis=-1) - logits[:, 1])

    labels = torch.ones(3).long()
    compare_gradients(peer, model, lambda: peer(**theirs, labels=labels).loss, our_loss, 1e-6)

    peer = make_bert(CLASSES[TokenClassifier], **SHAPES[shape], id2label={0: "a", 1: "b", 2: "c", 3: "d"})
    peer.save_pretrained(tmp_path / "tokens")
    model = TokenClassifier.from_preset(tmp_path / "tokens")
    theirs, ours, mask = arrays(peer.config)
    assert model.labels == ["a", "b", "c", "d"]
    np.testing.assert_allclose(our_outputs(model, ours)[mask], outputs(peer, theirs)[mask], atol=1e-4)


def test_both_heads_of_pretraining_and_their_gradients(tmp_path):
    peer = make_bert(transformers.BertForPreTraining)
    peer.save_pretrained(tmp_path)
    model = PairedMaskedLM.from_preset(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    np.testing.assert_allclose(our_outputs(model, ours)[mask], outputs(peer, theirs)[mask], atol=1e-4)
    tokens, pairs = random_ids(peer.config.vocab_size, 3, 11, seed=2), np.array([1, 0, 1], "int32")
    y = {"masked_lm": tokens, "next_sentence": pairs}
    model.compile(jit_compile=False)
    ignored = torch.tensor(np.where(mask, tokens, -100)).long()

    def our_loss():
        hidden = model.transformer(**ours)
        weights = {"masked_lm": mask.astype("float32"), "next_sentence": np.ones(3, "float32")}
        return model.compute_loss(ours, y, HeadInput(hidden), weights)

    def their_loss():
        return peer(**theirs, labels=ignored, next_sentence_label=torch.tensor(pairs).long()).loss

    compare_gradients(peer, model, their_loss, our_loss, 1e-6)
    np.testing.assert_allclose(float(our_loss()), their_loss().item(), rtol=1e-4)


def test_bare_models(tmp_path):
    peer = make_bert(transformers.BertModel)
    peer.save_pretrained(tmp_path)
    model = TextEmbedder.from_preset(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    np.testing.assert_allclose(our_outputs(model, ours)[mask], outputs(peer, theirs)[mask], atol=1e-4)
    with torch.no_grad():
        expected = peer(**theirs).pooler_output.numpy()
    found = model.transformer.pooled(model.transformer(**ours))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-4)


@pytest.mark.parametrize("old_names", [False, True])
def test_a_pretrained_bert_of_2018(old_names, tmp_path):
    """BertForPreTraining has a next-sentence head too; old files say gamma and beta, and carry copies."""
    import safetensors.torch

    peer = make_bert(transformers.BertForPreTraining)
    peer.save_pretrained(tmp_path)
    if old_names:
        path = tmp_path / "model.safetensors"
        weights = safetensors.torch.load_file(path)
        weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
        weights["bert.embeddings.position_ids"] = torch.arange(20)[None]
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
        safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    model = MaskedLM.from_preset(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    with torch.no_grad():
        expected = peer(**theirs).prediction_logits.numpy()
    np.testing.assert_allclose(our_outputs(model, ours)[mask], expected[mask], atol=1e-4)
    assert model.config.pooler


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_what_we_save_transformers_opens(cls, tmp_path):
    texts = ["To be, or not to be: that is the question.", "whether 'tis nobler"]
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocabulary_size=90)
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "hidden_dim": 12, "num_heads": 3, "intermediate_dim": 21}
    pooler = cls in (TextClassifier, TextEmbedder, PairedMaskedLM)
    config = TransformerConfig.from_name("bert_tiny", **sizes, pooler=pooler, initializer_range=0.3)
    labels = {"labels": ["bad", "so-so", "good"]} if "Classifier" in cls.__name__ else {}
    model = cls(config, tokenizer, **labels)
    randomize(model)
    model.save_to_preset(tmp_path)
    peer, report = CLASSES[cls].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    if labels:
        assert list(peer.config.id2label.values()) == labels["labels"]
    theirs, ours, mask = arrays(peer.config)
    expected, found = outputs(peer.eval(), theirs), our_outputs(model, ours)
    rows = slice(None) if cls is TextClassifier else mask
    np.testing.assert_allclose(found[rows], expected[rows], atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert their_tokenizer(texts)["input_ids"] == tokenizer.encode(texts, add_special_tokens=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cls.from_preset(tmp_path)
    assert again.config == model.config
    compare_weights(again, model)
    peer.save_pretrained(tmp_path / "theirs")
    compare_weights(cls.from_preset(tmp_path / "theirs"), model)
