"""The one network: embeddings, blocks, a final norm. Every family is a config of it."""

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.attention_ops import causal_mask
from kerasllm.layers.block import TransformerBlock, make_norm
from kerasllm.layers.embeddings import TokenEmbedding
from kerasllm.layers.inner import inner
from kerasllm.layers.positions import rotary_tables


@keras.saving.register_keras_serializable("kerasllm")
class Transformer(keras.layers.Layer):
    """Token ids to hidden states.

    Args:
        config: a `TransformerConfig`, or the dict of one.

    Call arguments:
        token_ids: (batch, length) integer.
        padding_mask: (batch, length), True (or 1) on real tokens; all real when left out.
        document_ids: (batch, length) integer, for rows packed from several documents: a token sees only
            tokens of its own document, and 0 marks padding.
        positions: (batch, length) integer; 0, 1, 2 … when left out.
        cache: list of a (key, value) pair a layer, with `update_cache` as in `Attention`; then `attention_mask` says
            which cached keys each query sees, (batch, 1, length, keys).
        trace: also return what happened inside.

    Returns:
        hidden states (batch, length, hidden_dim), after the final norm.
        With `update_cache`: `(hidden, cache)`.
        With `trace`: `(hidden, hidden_states, attentions)`, lists over layers; `hidden_states` begins with the
        embeddings and so has one more.

    Example:
    ```python
    network = Transformer(kerasllm.TransformerConfig.from_name("gpt2_tiny"))
    hidden = network(numpy.zeros((2, 10), "int32"))  # (2, 10, 128)
    ```
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c, policy = self.config, self.dtype_policy
        self.embedding = TokenEmbedding(c, dtype=policy, name="embedding")
        self.blocks = [TransformerBlock(c, dtype=policy, name=f"block_{i}") for i in range(c.num_layers)]
        if c.norm_position == "pre":
            self.final_norm = make_norm(c, policy, "final_norm")
        if c.positions == "rotary":
            self._rotary = rotary_tables(c.max_sequence_length, c.head_dim, c.rope_theta)

    def build(self, token_ids_shape):
        self.embedding.build(token_ids_shape)
        hidden_shape = (*token_ids_shape, self.config.hidden_dim)
        for block in self.blocks:
            block.build(hidden_shape)
        if self.config.norm_position == "pre":
            self.final_norm.build(hidden_shape)
        self.built = True

    def call(
        self,
        token_ids,
        padding_mask=None,
        document_ids=None,
        positions=None,
        cache=None,
        update_cache=None,
        attention_mask=None,
        trace=False,
        training=None,
    ):
        length = ops.shape(token_ids)[1]
        if isinstance(length, int) and length > self.config.max_sequence_length:
            raise ValueError(
                f"The sequence is longer than the model reads. Received: {length} tokens, "
                f"max_sequence_length={self.config.max_sequence_length}. Cut the text into shorter pieces."
            )
        causal = False
        if attention_mask is None:
            attention_mask, causal = self._mask(length, padding_mask, document_ids)
        arguments = {"attention_mask": attention_mask, "causal": causal}
        arguments["rotary"] = self._rotary_of(positions, length)

        x = inner(self.embedding, token_ids, positions, training=training)
        hidden_states, attentions, new_cache = [x], [], []
        for i, block in enumerate(self.blocks):
            if update_cache is not None:
                arguments |= {"cache": cache and cache[i], "update_cache": update_cache}
                x, pair = inner(block, x, training=training, **arguments)
                new_cache.append(pair)
            elif trace:
                x, weights = inner(block, x, training=training, return_weights=True, **arguments)
                hidden_states.append(x)
                attentions.append(weights)
            else:
                x = inner(block, x, training=training, **arguments)
        if self.config.norm_position == "pre":
            x = inner(self.final_norm, x)
        if update_cache is not None:
            return x, new_cache
        return (x, hidden_states, attentions) if trace else x

    def compute_output_shape(self, token_ids_shape):
        return (*token_ids_shape, self.config.hidden_dim)

    def _mask(self, length, padding_mask, document_ids):
        """(mask, causal): no mask at all where "causal" says it, which lets the fastest kernels run."""
        c = self.config
        parts = []
        if padding_mask is not None:
            parts.append(ops.cast(padding_mask, "bool")[:, None, None, :])
        if document_ids is not None:
            parts.append(document_ids[:, None, :, None] == document_ids[:, None, None, :])
        window = c.sliding_window if c.causal else None
        if c.causal:
            if not parts and window is None:
                return None, True
            parts.append(causal_mask(length, length, window))
        if not parts:
            return None, False
        mask = parts[0]
        for part in parts[1:]:
            mask = ops.logical_and(mask, part)
        if padding_mask is not None:
            # A row of padding sees nothing; let it see itself, so that no softmax is over an empty set.
            mask = ops.logical_or(mask, ops.eye(length, dtype="bool")[None, None])
        return mask, False

    def _rotary_of(self, positions, length):
        if self.config.positions != "rotary":
            return None
        tables = (ops.convert_to_tensor(table) for table in self._rotary)
        if positions is None:
            return tuple(table[:length] for table in tables)
        return tuple(ops.take(table, positions, axis=0) for table in tables)

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}
