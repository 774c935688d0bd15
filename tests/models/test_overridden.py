"""Subclasses of a user's: an own `train_step`, `call`, `compute_loss` or `logits` is either honoured or refused."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, TextEmbedder
from kerasllm import TransformerConfig as Config

BACKEND = keras.backend.backend()
# The vocabulary is as large as hidden states are wide: shapes alone do not tell logits from them.
VOCABULARY = WIDTH = 8
CONFIG = Config(VOCABULARY, 6, num_layers=1, num_heads=2, hidden_dim=WIDTH, initializer_range=0.5)


def arrays():
    x, y = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4, 6)).astype("int32")
    return x, y


class OfTheGuide(CausalLM):
    """Keras's guide to an own `train_step`, on each backend."""

    def stateless_loss(self, trainable_variables, non_trainable_variables, x, y):
        y_pred, non_trainable_variables = self.stateless_call(
            trainable_variables, non_trainable_variables, x, training=True
        )
        return self.compute_loss(x, y, y_pred), (y_pred, non_trainable_variables)

    def train_step(self, *arguments):
        return getattr(self, f"{BACKEND}_step")(*arguments)

    def jax_step(self, state, data):
        import jax

        trainable, others, optimizer, metrics = state
        x, y = data
        gradients = jax.value_and_grad(self.stateless_loss, has_aux=True)
        (loss, (y_pred, others)), grads = gradients(trainable, others, x, y)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, grads, trainable)
        logs, new = {}, []
        for metric in self.metrics:
            mine = metrics[len(new) : len(new) + len(metric.variables)]
            arguments = (loss,) if metric.name == "loss" else (y, y_pred)
            mine = metric.stateless_update_state(mine, *arguments)
            logs[metric.name] = metric.stateless_result(mine)
            new += mine
        return logs, (trainable, others, optimizer, new)

    def tensorflow_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return self._logs(loss, y, y_pred)

    def torch_step(self, data):
        import torch

        x, y = data
        self.zero_grad()
        y_pred = self(x, training=True)
        loss = self.compute_loss(y=y, y_pred=y_pred)
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in self.trainable_weights], self.trainable_weights)
        return self._logs(loss, y, y_pred)

    def _logs(self, loss, y, y_pred):
        for metric in self.metrics:
            metric.update_state(*((loss,) if metric.name == "loss" else (y, y_pred)))
        return {metric.name: metric.result() for metric in self.metrics}


class Doubled(CausalLM):
    """Reports and trains on twice the loss."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        assert y_pred.shape[-1] == VOCABULARY
        return 2 * super().compute_loss(x, y, y_pred, sample_weight, training)


class Cooler(CausalLM):
    """Answers half the logits."""

    def call(self, inputs, training=None):
        return super().call(inputs, training) / 2


class CoolerHead(CausalLM):
    def logits(self, hidden):
        return super().logits(hidden) / 2


def fitted(cls, **options):
    keras.utils.set_random_seed(0)
    model = cls(CONFIG)
    model.compile(keras.optimizers.SGD(0.5), jit_compile=BACKEND == "jax", **options)
    x, y = arrays()
    before = ops.convert_to_numpy(model(x)).astype("float64")
    log_p = before - np.log(np.exp(before).sum(-1, keepdims=True))
    by_hand = -np.take_along_axis(log_p, y[..., None], -1).mean()
    history = model.fit(x, y, batch_size=4, epochs=2, validation_data=(x, y), verbose=0).history
    return model, {name: values[0] for name, values in history.items()}, by_hand


def test_the_train_step_of_keras_guide_trains_on_the_same_loss():
    plain, expected, by_hand = fitted(CausalLM)
    model, found, _ = fitted(OfTheGuide)
    assert found["loss"] == pytest.approx(by_hand, rel=1e-5) == expected["loss"]
    for name in ("perplexity", "accuracy", "val_loss", "val_perplexity"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    for one, other in zip(model.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_own_compute_loss_is_what_is_reported():
    model, found, by_hand = fitted(Doubled)
    assert found["loss"] == pytest.approx(2 * by_hand, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(by_hand), rel=1e-5)
    x, y = arrays()
    after = model.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    assert after["loss"] == pytest.approx(2 * np.log(after["perplexity"]), rel=1e-5)
    assert {"val_loss", "val_perplexity"} <= set(found)


@pytest.mark.parametrize("cls", [Cooler, CoolerHead])
def test_the_loss_is_of_the_logits_that_the_model_returns(cls):
    _, found, by_hand = fitted(cls)
    assert found["loss"] == pytest.approx(by_hand, rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(by_hand), rel=1e-5)


def test_options_of_the_loss_are_kept():
    _, expected, _ = fitted(CausalLM, label_smoothing=0.1, z_loss=1e-2)
    _, found, _ = fitted(Doubled, label_smoothing=0.1, z_loss=1e-2)
    assert found["loss"] == pytest.approx(2 * expected["loss"], rel=1e-5)


class EmbedderOfTheGuide(TextEmbedder):
    train_step = OfTheGuide.train_step
    jax_step, tensorflow_step, torch_step = OfTheGuide.jax_step, OfTheGuide.tensorflow_step, OfTheGuide.torch_step
    stateless_loss, _logs = OfTheGuide.stateless_loss, OfTheGuide._logs


def test_what_cannot_be_computed_from_the_answer_is_refused_by_name():
    model = EmbedderOfTheGuide(CONFIG.replace(causal=False, dropout=0.1))
    model.compile("sgd", run_eagerly=True)
    x = arrays()[0]
    with pytest.raises(ValueError, match="default loss of a EmbedderOfTheGuide needs more than what `model"):
        model.compute_loss(x=x, y=None, y_pred=model(x))


def test_a_failed_step_leaves_the_model_as_it_was():
    class Fails(CausalLM):
        def compute_loss(self, *arguments, **options):
            raise KeyError("on purpose")

    model = Fails(CONFIG)
    model.compile("sgd", jit_compile=False)
    x, y = arrays()
    before = ops.convert_to_numpy(model(x))
    for door in (model.fit, model.evaluate, model.train_on_batch, model.test_on_batch):
        with pytest.raises(KeyError):
            door(x, y)
        np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), before)
