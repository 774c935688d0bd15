"""Token metrics that are summed over all batches and divided once."""

import keras
from keras import ops

from kerasllm.losses import cross_entropy
from kerasllm.targets import counted_targets


@keras.saving.register_keras_serializable("kerasllm")
class TokenMetrics(keras.metrics.Metric):
    """Loss, perplexity, accuracy and bits per byte over tokens.

    Averaging per-batch perplexities is wrong (and was, in KerasHub before 0.32): here log-likelihoods, tokens
    and bytes are summed, and divided when the result is asked for.

    Args:
        with_bytes: whether bytes are counted, which bits per byte needs; `token_bytes` says how many a token has.

    Attributes:
        token_bytes: (vocabulary_size,), the bytes that each token stands for.
        reports_loss: whether the loss is among the results. It is not where the loss is the user's, and Keras's own
            mean of it is reported.

    Example:
    ```python
    metrics = TokenMetrics()
    metrics.add(loss=12.0, nll=12.0, correct=3.0, tokens=6.0)
    metrics.result()["perplexity"]  # e²
    ```
    """

    token_bytes, reports_loss = None, True

    def __init__(self, with_bytes=False, name="tokens", **kwargs):
        super().__init__(name=name, **kwargs)
        self.with_bytes = with_bytes
        # One variable, so that a step makes one update.
        self.sums = self.add_variable((5,), initializer="zeros", dtype="float32", name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """As any metric of Keras: targets (batch, length), logits (batch, length, vocabulary_size), weights."""
        targets, weights = counted_targets(None, y_true, sample_weight)
        nll, _, correct = cross_entropy(y_pred, targets, weights)
        self.add(nll, nll, correct, ops.sum(weights), self.count_bytes(targets, weights))

    def count_bytes(self, targets, weights):
        """Bytes of the targets that count."""
        if self.token_bytes is None:
            return 0.0
        lengths = ops.take(ops.convert_to_tensor(self.token_bytes), targets, axis=0)
        return ops.sum(lengths * ops.cast(weights > 0, "float32"))

    def add(self, loss, nll, correct, tokens, bytes=0.0):
        """Adds sums over a batch: the loss, −log p in nats, correct tokens, tokens (or their weight), bytes."""
        values = [ops.cast(v, "float32") for v in (loss, nll, correct, tokens, bytes)]
        self.sums.assign_add(ops.stop_gradient(ops.stack(values)))

    def result(self):
        loss, nll, correct, tokens, num_bytes = (self.sums[i] for i in range(5))
        tokens = ops.maximum(tokens, 1e-9)
        results = {"loss": loss / tokens} if self.reports_loss else {}
        results |= {"perplexity": ops.exp(nll / tokens), "accuracy": correct / tokens}
        if self.with_bytes:
            results["bits_per_byte"] = nll / (0.6931471805599453 * ops.maximum(num_bytes, 1e-9))
        return results

    def get_config(self):
        return {**super().get_config(), "with_bytes": self.with_bytes}
