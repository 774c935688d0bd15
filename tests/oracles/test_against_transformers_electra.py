"""Against transformers' ELECTRA: the detector's outputs and gradients, and files both ways."""

import json
import warnings

import keras
import numpy as np
import pytest
import torch
import transformers
from keras import ops
from peers import compare_gradients, compare_weights, make_peer, random_ids, randomize, tensors

from kerasllm import (
    ReplacedTokenDetector,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
    Tokenizer,
    TransformerConfig,
)
from kerasllm.interop.presets import variables_by_path

SIZES = {
    "vocab_size": 31,
    "embedding_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 23,
    "max_position_embeddings": 20,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
SHAPES = {
    "plain": {},
    "odd": {"embedding_size": 15, "hidden_size": 15, "num_attention_heads": 3, "hidden_act": "relu"},
}
GENERATOR = ("generator", "masked_head")


def make_electra(cls=transformers.ElectraForPreTraining, **shape):
    return make_peer(cls, transformers.ElectraConfig(**{**SIZES, **shape}))


def arrays(config):
    """(theirs, ours, mask) of a padded batch with segments."""
    ids, segments = random_ids(config.vocab_size, 3, 11), random_ids(config.type_vocab_size, 3, 11, seed=1)
    mask = (np.arange(11) < np.array([[11], [6], [2]])).astype("int32")
    theirs = tensors(input_ids=ids, token_type_ids=segments, attention_mask=mask)
    return theirs, {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}, mask == 1


def logits(peer, arguments):
    with torch.no_grad():
        return peer(**arguments).logits.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_detector_and_the_gradient_of_every_weight(shape, tmp_path):
    peer = make_electra(**SHAPES[shape])
    peer.save_pretrained(tmp_path)
    model = ReplacedTokenDetector.from_preset(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    found = ops.convert_to_numpy(model(ours))
    np.testing.assert_allclose(found[mask], logits(peer, theirs)[mask], atol=1e-4)

    for layer in (model.generator, model.masked_head):
        layer.trainable = False  # transformers has it elsewhere
    labels = random_ids(2, 3, 11, seed=2)

    def our_loss():
        found = model.logits(model.transformer(**ours))
        losses = keras.losses.binary_crossentropy(labels[..., None], found[..., None], from_logits=True)
        return ops.sum(ops.where(mask, losses, 0.0)) / mask.sum()

    compare_gradients(peer, model, lambda: peer(**theirs, labels=torch.tensor(labels).long()).loss, our_loss, 1e-6)


def test_other_heads(tmp_path):
    peer = make_electra(transformers.ElectraForTokenClassification, num_labels=3)
    peer.save_pretrained(tmp_path)
    theirs, ours, mask = arrays(peer.config)
    found = ops.convert_to_numpy(TokenClassifier.from_preset(tmp_path)(ours))
    np.testing.assert_allclose(found[mask], logits(peer, theirs)[mask], atol=1e-4)
    with pytest.warns(UserWarning, match=r"discriminator_predictions\.dense\.weight.*start new"):
        ReplacedTokenDetector.from_preset(tmp_path)

    peer = make_electra(transformers.ElectraModel)
    peer.save_pretrained(tmp_path / "bare")
    model = TextEmbedder.from_preset(tmp_path / "bare")
    with torch.no_grad():
        expected = peer(**theirs).last_hidden_state.numpy()
    found = ops.convert_to_numpy(model.transformer(**ours, training=False))
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)


def test_what_we_save_transformers_opens(tmp_path):
    texts = ["To be, or not to be: that is the question.", "whether 'tis nobler"]
    tokenizer = Tokenizer.train(texts, kind="wordpiece", vocabulary_size=90)
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "hidden_dim": 12, "num_heads": 3, "intermediate_dim": 21}
    config = TransformerConfig.from_name("bert_tiny", **sizes, initializer_range=0.3)
    model = ReplacedTokenDetector(config, tokenizer, generator_layers=2)
    randomize(model)
    model.save_to_preset(tmp_path)
    peer, report = transformers.ElectraForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    theirs, ours, mask = arrays(peer.config)
    found = ops.convert_to_numpy(model(ours))
    np.testing.assert_allclose(found[mask], logits(peer.eval(), theirs)[mask], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ReplacedTokenDetector.from_preset(tmp_path)
    assert again.get_config()["config"] == model.get_config()["config"] and again.generator_layers == 2
    kept = {path: v for path, v in variables_by_path(model).items() if not path.startswith(GENERATOR)}
    for path, variable in kept.items():
        found = ops.convert_to_numpy(variables_by_path(again)[path].value)
        np.testing.assert_array_equal(found, ops.convert_to_numpy(variable.value), err_msg=path)
    compare_weights(again.transformer, TextEmbedder.from_preset(tmp_path).transformer)
    with pytest.warns(UserWarning, match=r"classifier\.dense\.weight.*start new"):
        TextClassifier.from_preset(tmp_path)


def test_narrow_embeddings_are_refused(tmp_path):
    make_electra(embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="embedding_size=8, hidden_size=16"):
        ReplacedTokenDetector.from_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["embedding_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="embedding_size=128"):
        ReplacedTokenDetector.from_preset(tmp_path)
