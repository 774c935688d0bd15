"""What a masked language model does to a hidden state before it is compared with the token embeddings."""

import keras

from kerasllm.config import TransformerConfig
from kerasllm.layers.feed_forward import ACTIVATIONS
from kerasllm.layers.inner import inner
from kerasllm.layers.norms import make_norm
from kerasllm.layers.projection import Projection


@keras.saving.register_keras_serializable("kerasllm")
class MaskedHead(keras.layers.Layer):
    """BERT's transform: a projection, the activation and a norm; it also holds the bias of the logits, `bias`.

    Args:
        config: a `TransformerConfig`, or the dict of one.

    Call arguments:
        hidden: (…, hidden_dim). The result has the same shape.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny")
    MaskedHead(config)(keras.random.normal((2, 10, 128)))
    ```

    Reference: Devlin et al. (2018), "BERT: Pre-training of Deep Bidirectional Transformers", and its code.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c = self.config
        self.dense = Projection(
            c.hidden_dim,
            use_bias=c.use_bias,
            kernel_initializer=keras.initializers.RandomNormal(stddev=c.initializer_range),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.norm = make_norm(c, self.dtype_policy, "norm")

    def build(self, hidden_shape):
        self.dense.build(hidden_shape)
        self.norm.build(hidden_shape)
        self.bias = self.add_weight(shape=(self.config.vocabulary_size,), initializer="zeros", name="bias")

    def call(self, hidden):
        return inner(self.norm, ACTIVATIONS[self.config.activation](inner(self.dense, hidden)))

    def compute_output_shape(self, hidden_shape):
        return hidden_shape

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}
