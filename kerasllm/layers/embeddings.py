"""Token ids in, vectors out; and back again: the embedding is also the head when the two are tied."""

import math

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.inner import inner
from kerasllm.layers.norms import make_norm
from kerasllm.layers.positions import sinusoidal_table
from kerasllm.layers.quantized import float_embeddings, float_head


@keras.saving.register_keras_serializable("kerasllm")
class TokenEmbedding(keras.layers.Layer):
    """Token vectors plus, where the config says so, position and segment vectors, normalized or not.

    Args:
        config: a `TransformerConfig`, or the dict of one.

    Call arguments:
        token_ids: (batch, length) integer.
        positions: (batch, length) or (length,) integer; 0, 1, 2 … when left out.
        segment_ids: (batch, length) integer, the segment of each token; all 0 when left out.

    Returns:
        (batch, length, hidden_dim). `head_kernel()` is the (hidden_dim, vocabulary_size) output projection.

    Reference: Press and Wolf (2016), "Using the Output Embedding to Improve Language Models", for tying.
    """

    noise_alpha = 0.0  # see `add_noise`

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c = self.config
        self.tokens = keras.layers.ReversibleEmbedding(
            c.vocabulary_size,
            c.hidden_dim,
            tie_weights=c.tie_embeddings,
            embeddings_initializer=keras.initializers.RandomNormal(stddev=c.initializer_range),
            dtype=self.dtype_policy,
            name="tokens",
        )
        if c.positions == "learned":
            self.positions = keras.layers.Embedding(
                c.max_sequence_length,
                c.hidden_dim,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=c.initializer_range),
                dtype=self.dtype_policy,
                name="positions",
            )
        if c.num_segments:
            self.segments = keras.layers.Embedding(
                c.num_segments,
                c.hidden_dim,
                embeddings_initializer=keras.initializers.RandomNormal(stddev=c.initializer_range),
                dtype=self.dtype_policy,
                name="segments",
            )
        if c.embedding_norm:
            self.norm = make_norm(c, self.dtype_policy, "norm")
        self.dropout = keras.layers.Dropout(c.dropout, dtype=self.dtype_policy, name="dropout")

    def build(self, token_ids_shape):
        self.tokens.build(token_ids_shape)
        if self.config.positions == "learned":
            self.positions.build(token_ids_shape)
        if self.config.num_segments:
            self.segments.build(token_ids_shape)
        if self.config.embedding_norm:
            self.norm.build((*token_ids_shape, self.config.hidden_dim))
        self.built = True

    def add_noise(self, alpha: float, seed: int | None = None) -> None:
        """From the next compiled step on, training adds noise to the token vectors: uniform in
        ±alpha / √(length · hidden_dim), with an alpha of 5 to 15, or 0 for none.

        Args:
            alpha: not negative. It is a setting of a training run, and saved with no model.
            seed: of the noise; from Keras's own when left out.

        Raises:
            ValueError: `alpha` is negative.

        Reference: Jain et al. (2023), "NEFTune: Noisy Embeddings Improve Instruction Finetuning".
        """
        if not alpha >= 0:
            raise ValueError(f"`alpha` must not be negative. Received: alpha={alpha!r}")
        self.noise_alpha = float(alpha)
        if not alpha:
            return
        self._tracker.unlock()  # The layer is built, and the generator's count is to be saved and resumed with it.
        self.noise_generator = keras.random.SeedGenerator(seed)
        self._tracker.lock()

    def _noisy(self, x):
        bound = self.noise_alpha / ops.sqrt(ops.cast(ops.shape(x)[1] * self.config.hidden_dim, "float32"))
        noise = keras.random.uniform(ops.shape(x), -1.0, 1.0, dtype="float32", seed=self.noise_generator)
        return x + ops.cast(bound * noise, x.dtype)

    def call(self, token_ids, positions=None, segment_ids=None, training=None):
        x = inner(self.tokens, token_ids)
        if training and self.noise_alpha:
            x = self._noisy(x)
        x = self.around(x, positions, segment_ids)
        return inner(self.dropout, x, training=True) if self.config.dropout and training else x

    def around(self, x, positions=None, segment_ids=None):
        """What token vectors (batch, length, hidden_dim) become: scaled, with positions and segments, normalized."""
        c = self.config
        if c.scale_embeddings:
            x = x * math.sqrt(c.hidden_dim)
        if c.positions in ("learned", "sinusoidal"):
            x = x + self._position_vectors(ops.shape(x)[1], positions, x.dtype)
        if c.num_segments:
            x = x + (
                ops.cast(self.segments.embeddings, x.dtype)[0]
                if segment_ids is None
                else inner(self.segments, segment_ids)
            )
        return inner(self.norm, x) if c.embedding_norm else x

    def _position_vectors(self, length, positions, dtype):
        if self.config.positions == "sinusoidal":
            table = sinusoidal_table(self.config.max_sequence_length, self.config.hidden_dim)
            table = ops.convert_to_tensor(table, dtype=dtype)
        elif positions is None:
            table = ops.cast(self.positions.embeddings, dtype)
        else:
            return inner(self.positions, positions)
        # Positions in order are a slice: no gather, and a cheap gradient.
        return table[:length] if positions is None else ops.take(table, positions, axis=0)

    def compute_output_shape(self, token_ids_shape):
        return (*token_ids_shape, self.config.hidden_dim)

    def head_input(self, hidden):
        """The last hidden states as the head multiplies them."""
        return hidden / math.sqrt(self.config.hidden_dim) if self.config.scale_logits else hidden

    def head_kernel(self):
        """(hidden_dim, vocabulary_size)."""
        return ops.cast(float_head(self.tokens), self.compute_dtype)

    def head_rows(self):
        """(vocabulary_size, hidden_dim), as a tied head lies; `None` for one of its own."""
        return ops.cast(float_embeddings(self.tokens), self.compute_dtype) if self.config.tie_embeddings else None

    def logits(self, hidden):
        """(…, hidden_dim) → (…, vocabulary_size)."""
        return inner(self.tokens, self.head_input(hidden), reverse=True)

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}
