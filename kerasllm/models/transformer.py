"""The networks: one stack (BERT, GPT, Llama), or an encoder and a decoder (T5, the 2017 Transformer)."""

import keras
from keras import ops

from kerasllm.config import TransformerConfig
from kerasllm.layers.embeddings import TokenEmbedding
from kerasllm.layers.inner import inner
from kerasllm.layers.projection import Projection
from kerasllm.layers.stack import Stack, Visibility


@keras.saving.register_keras_serializable("kerasllm")
class Transformer(Stack):
    """Token ids to hidden states, through one stack of blocks.

    Args:
        config: a `TransformerConfig`, or the dict of one.

    Call arguments:
        token_ids: (batch, length) integer.
        padding_mask: (batch, length), True (or 1) on real tokens; all real when left out.
        document_ids: (batch, length) integer, for rows packed from several documents: a token sees only
            tokens of its own document, and 0 marks padding.
        positions: (batch, length) integer; 0, 1, 2 … when left out.
        segment_ids: (batch, length) integer, for models with segments; all 0 when left out.
        prefix_lengths: (batch,) integer: so many tokens at the start are seen by all others, even in a causal model.
        cache: list of a (key, value) pair a layer, with `update_cache` as in `Attention`; then `attention_mask` says
            which cached keys each query sees, (batch, 1, length, keys).
        features: (batch, length, hidden_dim), what the embedding and the first `feature_blocks` blocks, which are
            then left out, made of these tokens before; see `kerasllm.tuning.cache_features`.
        stop: as in `Stack`.
        trace: also return what happened inside.

    Returns:
        As `Stack`: hidden states (batch, length, hidden_dim), after the final norm; `(hidden, cache)` with
        `update_cache`; `(hidden, hidden_states, attentions)` with `trace`.

    Example:
    ```python
    network = Transformer(kerasllm.TransformerConfig.from_name("gpt2_tiny"))
    hidden = network(numpy.zeros((2, 10), "int32"))  # (2, 10, 128)
    ```
    """

    feature_blocks = 0
    prompted = None  # what reads prompts, if there are any; see `kerasllm.tuning.prompted`

    def __init__(self, config, **kwargs):
        super().__init__(config, **kwargs)
        self.embedding = TokenEmbedding(self.config, dtype=self.dtype_policy, name="embedding")
        if self.config.pooler:
            self.pooler = Projection(
                self.config.hidden_dim,
                kernel_initializer=keras.initializers.RandomNormal(stddev=self.config.initializer_range),
                dtype=self.dtype_policy,
                name="pooler",
            )

    def build(self, token_ids_shape):
        self.embedding.build(token_ids_shape)
        if self.config.pooler:
            self.pooler.build((token_ids_shape[0], self.config.hidden_dim))
        super().build((*token_ids_shape, self.config.hidden_dim))

    def call(
        self,
        token_ids,
        padding_mask=None,
        document_ids=None,
        positions=None,
        segment_ids=None,
        prefix_lengths=None,
        attention_mask=None,
        cache=None,
        update_cache=None,
        features=None,
        stop=None,
        trace=False,
        training=None,
    ):
        check_length(token_ids, self.config)
        if features is None:
            x, start = inner(self.embedding, token_ids, positions, segment_ids, training=training), 0
        else:
            x, start = ops.cast(features, self.compute_dtype), self.feature_blocks
        return super().call(
            x,
            Visibility(padding_mask, document_ids, prefix_lengths, attention_mask),
            positions=positions,
            cache=cache,
            update_cache=update_cache,
            trace=trace,
            start=start,
            stop=stop,
            training=training,
        )

    def pooled(self, hidden, activation=ops.tanh):
        """(batch, length, hidden_dim) → (batch, hidden_dim): the first token's state through the pooler."""
        return activation(self.pooler(hidden[:, 0]))

    def compute_output_shape(self, token_ids_shape):
        return (*token_ids_shape, self.config.hidden_dim)

    def get_config(self):
        return {**keras.layers.Layer.get_config(self), "config": self.config.to_dict()}


@keras.saving.register_keras_serializable("kerasllm")
class EncoderDecoder(keras.layers.Layer):
    """A source and what is written so far to hidden states, through an encoder and a decoder that attends to it.

    Both read the same token embedding.

    Args:
        config: a `TransformerConfig` with `num_encoder_layers`, or the dict of one.

    Call arguments:
        encoder_token_ids: (batch, source length) integer.
        decoder_token_ids: (batch, length) integer.
        encoder_padding_mask, decoder_padding_mask: the same shapes, True (or 1) on real tokens; all real when left
            out.
        trace: also return what happened inside.

    Returns:
        the decoder's hidden states (batch, length, hidden_dim). With `trace` also two lists of what `Stack` returns:
        the encoder's and the decoder's.

    Example:
    ```python
    network = EncoderDecoder(kerasllm.TransformerConfig.from_name("t5_tiny"))
    hidden = network(numpy.zeros((2, 10), "int32"), numpy.zeros((2, 4), "int32"))  # (2, 4, 128)
    ```

    Reference: Vaswani et al. (2017), "Attention Is All You Need"; Raffel et al. (2019) for T5.
    """

    prompted = None
    source_vectors = 0  # which `encode` puts before each source: prompts

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, TransformerConfig) else TransformerConfig.from_dict(config)
        c, policy = self.config, self.dtype_policy
        self.embedding = TokenEmbedding(c, dtype=policy, name="embedding")
        self.encoder = Stack(c, c.num_encoder_layers, causal=False, dtype=policy, name="encoder")
        self.decoder = Stack(c, cross_attention=True, dtype=policy, name="decoder")

    def build(self, encoder_token_ids_shape, decoder_token_ids_shape=None):
        self.embedding.build(encoder_token_ids_shape)
        hidden_shape = (*encoder_token_ids_shape, self.config.hidden_dim)
        self.encoder.build(hidden_shape)
        self.decoder.build(hidden_shape)
        self.built = True

    def call(
        self,
        encoder_token_ids,
        decoder_token_ids,
        encoder_padding_mask=None,
        decoder_padding_mask=None,
        trace=False,
        training=None,
    ):
        source = self.encode(encoder_token_ids, encoder_padding_mask, trace, training)
        check_length(decoder_token_ids, self.config)
        output = inner(
            self.decoder,
            inner(self.embedding, decoder_token_ids, training=training),
            Visibility(decoder_padding_mask),
            source=source[0] if trace else source,
            source_mask=encoder_padding_mask,
            trace=trace,
            training=training,
        )
        return (output[0], source, output) if trace else output

    def encode(self, token_ids, padding_mask=None, trace=False, training=None):
        """The encoder's hidden states, (batch, source length, hidden_dim)."""
        check_length(token_ids, self.config)
        x = inner(self.embedding, token_ids, training=training)
        return inner(self.encoder, x, Visibility(padding_mask), trace=trace, training=training)

    def decode(self, token_ids, source, source_mask=None, positions=None, attention_mask=None, **options):
        """The decoder alone; `source` from `encode`, or from `project_source` of it."""
        return inner(
            self.decoder,
            inner(self.embedding, token_ids, positions, training=options.get("training")),
            Visibility(attention_mask=attention_mask),
            positions=positions,
            source=source,
            source_mask=source_mask,
            **options,
        )

    def compute_output_shape(self, encoder_token_ids_shape, decoder_token_ids_shape):
        return (*decoder_token_ids_shape, self.config.hidden_dim)

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}


def check_length(token_ids, config: TransformerConfig) -> None:
    """Raises a ValueError if there are more tokens than the model reads."""
    length = ops.shape(token_ids)[1]
    if isinstance(length, int) and length > config.max_sequence_length:
        raise ValueError(
            f"The sequence is longer than the model reads. Received: {length} tokens, "
            f"max_sequence_length={config.max_sequence_length}. Cut the text into shorter pieces."
        )
