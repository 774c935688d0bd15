"""What the comparisons with random tiny models of transformers share."""

import keras
import numpy as np
import torch
from differentiate import weight_gradients
from keras import ops

from kerasllm.interop.presets import FAMILIES, head_table, variables_by_path
from kerasllm.interop.tasks import task_of


def make_peer(cls, config):
    """A random tiny model of transformers, with biases and norms that are not their initial 0 and 1."""
    torch.manual_seed(0)
    peer = cls(config)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return peer.eval().cpu()


def randomize(model):
    """Makes every weight of ours differ from what it begins as."""
    for i, weight in enumerate(model.weights):
        weight.assign(weight + 0.1 * np.random.default_rng(i).normal(size=weight.shape))


def random_ids(vocabulary, rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, length)).astype("int32")


def tensors(**arrays):
    """Arguments of a model of transformers."""
    return {name: torch.tensor(array).long() for name, array in arrays.items()}


def compare_gradients(peer, model, their_loss, our_loss, at_least=1e-4):
    """The gradient of every weight, under the names that the directory has them."""
    with torch.enable_grad():
        their_loss().backward()
    theirs = {name: p.grad.numpy() for name, p in peer.named_parameters()}
    ours = {path.removeprefix("transformer/"): g for path, g in weight_gradients(model, our_loss).items()}
    family = FAMILIES[peer.config.model_type]
    table = {**family.tensors(model.config), **head_table(family, task_of(type(model)), model.config, {})}
    assert set(table) == {family.standard_name(name) for name in theirs}
    assert sorted(path.removesuffix(".T") for paths in table.values() for path in paths) == sorted(ours)
    for name, gradient in theirs.items():
        (path,) = table[family.standard_name(name)]
        found = ours[path.removesuffix(".T")]
        np.testing.assert_allclose(found.T if path.endswith(".T") else found, gradient, atol=1e-3, err_msg=name)
        # A comparison that can fail; softmax does not feel what is added to all keys.
        assert np.abs(gradient).max() > at_least or ".key.bias" in name, name


def mean_token_loss(model, hidden, targets, mask=None):
    """Cross-entropy of all tokens, or of those in a mask, written out."""
    logits = ops.reshape(ops.cast(model.logits(hidden), "float32"), (-1, model.config.vocabulary_size))
    losses = keras.losses.sparse_categorical_crossentropy(targets.reshape(-1), logits, from_logits=True)
    weights = np.ones(targets.size, "float32") if mask is None else mask.reshape(-1).astype("float32")
    return ops.sum(ops.multiply(losses, weights)) / float(weights.sum())


def compare_weights(first, second):
    """Two models of ours are equal, weight by weight."""
    ours, theirs = variables_by_path(first), variables_by_path(second)
    assert set(ours) == set(theirs)
    for path, variable in ours.items():
        found, expected = (ops.convert_to_numpy(v.value) for v in (variable, theirs[path]))
        np.testing.assert_array_equal(found, expected, err_msg=path)
