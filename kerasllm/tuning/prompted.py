"""How networks read prompts and prefixes: stand-ins for methods of theirs, as long as there are some.

In a causal network no token changes what stands before it, so a prompt is run once for a whole batch, and what its
blocks make of it (keys and values) is what every text attends to: the same as reading it with each text, with the
cache of a decoder left as it is. An encoder reads prompt and source as one sequence, all of which the decoder sees.
"""

from keras import ops

from kerasllm.layers.attention_ops import causal_mask, explicit_attention
from kerasllm.layers.inner import inner
from kerasllm.layers.positions import rotate
from kerasllm.layers.stack import Stack, Visibility


class Vectors:
    """The prompts and prefixes of a network, and which of them are active.

    Attributes:
        prompts, prefixes: their deltas, in the order in which they stand before the text.
    """

    def __init__(self, network):
        self.network, self.prompts, self.prefixes = network, [], []

    def add(self, delta) -> None:
        (self.prompts if delta.vectors() is not None else self.prefixes).append(delta)

    def remove(self, delta) -> bool:
        """Whether there are any left; if not, the network is as it was."""
        (self.prompts if delta in self.prompts else self.prefixes).remove(delta)
        left = bool(self.prompts or self.prefixes)
        if not left:
            self.leave()
        return left

    def leave(self) -> None:
        """Takes the stand-ins away."""

    def check_room(self, length, deltas) -> None:
        """Raises a ValueError if there is no room for a text of this length behind its vectors."""
        limit, total = self.network.config.max_sequence_length, sum(delta.num_tokens for delta in deltas)
        if isinstance(length, int) and length + total > limit:
            raise ValueError(
                f"The sequence is longer than the model reads behind {total} prompt vectors. Received: {length} "
                f"tokens. Give at most {limit - total}."
            )

    def read_together(self, stack, token_ids, padding_mask, positions, segment_ids, trace, training):
        """Prompts and a text, at `positions` behind them, as one sequence in a stack where a prompt sees the text."""
        batch, length = ops.shape(token_ids)[:2]
        seen = active(self.prompts)
        text = inner(self.network.embedding, token_ids, positions, segment_ids, training=training)
        x, places = self.embedded(seen)
        count = x.shape[1]
        x = ops.concatenate([ops.broadcast_to(x, (batch, *x.shape[1:])), text], axis=1)
        padding = ops.ones((batch, length), "bool") if padding_mask is None else ops.cast(padding_mask, "bool")
        padding = ops.concatenate([ops.broadcast_to(seen[None], (batch, count)), padding], axis=1)
        places = ops.broadcast_to(ops.cast(places, positions.dtype), (ops.shape(positions)[0], count))
        places = ops.concatenate([places, positions], axis=1)
        made = Stack.call(stack, x, Visibility(padding), positions=places, trace=trace, training=training)
        if not trace:
            return made
        hidden, states, weights = made
        return hidden, [s[:, count:] for s in states], [w[:, :, count:, count:] for w in weights]

    def embedded(self, seen):
        """The prompts as the first block reads them, (1, vectors, dim), and where they stand, (1, vectors)."""
        embedding, c = self.network.embedding, self.network.config
        dtype = embedding.compute_dtype
        x = ops.concatenate([ops.cast(delta.vectors(), dtype) for delta in self.prompts], axis=0)[None]
        places = places_of(seen)
        if c.positions in ("learned", "sinusoidal"):
            x = x + embedding._position_vectors(x.shape[1], places, x.dtype)
        if c.num_segments:
            x = x + ops.cast(embedding.segments.embeddings, x.dtype)[0]
        return (inner(embedding.norm, x) if c.embedding_norm else x), places


class Prompted(Vectors):
    """Stands in for the `call` of a network of one stack."""

    def __init__(self, network):
        super().__init__(network)
        self.base = type(network).call.__get__(network)
        self.prefixed = PrefixedStack(network)
        network.call = self

    def leave(self):
        del self.network.call
        self.prefixed.leave()

    def __call__(self, token_ids, padding_mask=None, *arguments, positions=None, trace=False, training=None, **more):
        if arguments:
            raise TypeError("With prompts, pass what follows the padding mask by name.")
        c, length, everything = self.network.config, ops.shape(token_ids)[1], [*self.prompts, *self.prefixes]
        self.check_room(length, everything)
        seen, queries = active(everything), ops.arange(length)[None, :] if positions is None else positions
        shifted = queries + ops.cast(ops.sum(ops.cast(seen, "int32")), queries.dtype)
        if self.prompts and not c.causal:
            segments = more.pop("segment_ids", None)
            if any(value is not None for value in more.values()):
                raise ValueError(f"Prompts cannot be read together with {', '.join(more)}. Leave them out.")
            made = self.read_together(self.network, token_ids, padding_mask, shifted, segments, trace, training)
            count = sum(delta.num_tokens for delta in self.prompts)
            return (made[0][:, count:], *made[1:]) if trace else made[:, count:]
        if c.positions in ("learned", "sinusoidal", "rotary"):  # Relative ones are told by the prefix's bias.
            positions = shifted
        pairs = [delta.pairs() for delta in self.prefixes]
        if self.prompts:
            pairs = [self._run(training), *pairs]
        return self.prefixed.run(
            pairs,
            seen,
            queries,
            lambda: self.base(token_ids, padding_mask, positions=positions, trace=trace, training=training, **more),
        )

    def _run(self, training):
        """The (key, value) of the prompts in each block, (vectors, kv_heads, head_dim)."""
        seen = active(self.prompts)
        x, places = self.embedded(seen)
        length = x.shape[1]
        mask = ops.logical_and(causal_mask(length, length, self.network.config.sliding_window), seen)
        mask = ops.logical_or(mask, ops.eye(length, dtype="bool"))
        _, pairs = Stack.call(
            self.network,
            x,
            Visibility(attention_mask=mask),
            positions=places,
            update_cache=lambda _, new: new,
            training=training,
        )
        return [(key[0], value[0]) for key, value in pairs]


class PromptedEncoderDecoder(Vectors):
    """Stands in for the `encode` of a network with an encoder, where prompts go, and for its decoder's `call`."""

    def __init__(self, network):
        super().__init__(network)
        self.base_encode = type(network).encode.__get__(network)
        self.base_decode = type(network.decoder).call.__get__(network.decoder)
        self.prefixed = PrefixedStack(network.decoder)
        network.encode, network.decoder.call = self.encode, self.decode

    def add(self, delta):
        super().add(delta)
        self._count()

    def remove(self, delta):
        left = super().remove(delta)
        self._count()
        return left

    def leave(self):
        del self.network.encode, self.network.decoder.call
        self.prefixed.leave()

    def _count(self):
        self.network.source_vectors = sum(delta.num_tokens for delta in self.prompts)

    def encode(self, token_ids, padding_mask=None, trace=False, training=None):
        if not self.prompts:
            return self.base_encode(token_ids, padding_mask, trace, training)
        length = ops.shape(token_ids)[1]
        self.check_room(length, self.prompts)
        positions = ops.arange(length)[None, :]
        positions = positions + ops.cast(ops.sum(ops.cast(active(self.prompts), "int32")), positions.dtype)
        encoder = self.network.encoder
        return self.read_together(encoder, token_ids, padding_mask, positions, None, trace, training)

    def decode(
        self, x, visibility=None, positions=None, source=None, source_mask=None, cache=None, trace=False, **more
    ):
        if self.prompts:
            source_mask = self._with_prompts(source, source_mask)
        arguments = {"source": source, "source_mask": source_mask, "cache": cache, "trace": trace, **more}
        made = self.prefixed.run(
            [delta.pairs() for delta in self.prefixes],
            active(self.prefixes),
            positions if cache else ops.arange(ops.shape(x)[1])[None, :],
            lambda: self.base_decode(x, visibility, positions, **arguments),
        )
        if not trace:
            return made
        *others, cross_attentions = made
        return (*others, [w[..., self.network.source_vectors :] for w in cross_attentions])

    def _with_prompts(self, source, mask):
        """(batch, vectors + source length): what cross-attention sees. A cache's mask has room for both already."""
        keys = ops.shape(source[0][0] if isinstance(source, list) else source)[:2]
        seen = ops.broadcast_to(active(self.prompts)[None], (keys[0], self.network.source_vectors))
        mask = ops.ones(keys, "bool") if mask is None else ops.cast(mask, "bool")
        return ops.concatenate([seen, mask], axis=1)[:, : keys[1]]


class PrefixedStack:
    """Lets all blocks of a stack see a prefix while it runs.

    Attributes:
        pairs: of each block (key, value), (vectors, kv_heads, head_dim); `None` outside of `run`.
        seen: which of the vectors are active.
        bias: on scores of the vectors, (1 or batch, heads, queries, vectors), or `None`.
    """

    def __init__(self, stack):
        self.stack, self.pairs, self.seen, self.bias = stack, None, None, None
        for i, block in enumerate(stack.blocks):
            block.attention.call = PrefixedAttention(self, block.attention, i)

    def leave(self) -> None:
        for block in self.stack.blocks:
            del block.attention.call

    def run(self, pairs: list, seen, queries, run):
        """What `run()` returns, with prefixes: for each of them a pair a block; all of them one after the other.

        Args:
            pairs: may be empty.
            seen: which of their vectors are active.
            queries: (1 or batch, length), where the text's tokens stand in the text.
        """
        if not pairs:
            return run()
        self.pairs = [tuple(ops.concatenate(x, axis=0) for x in zip(*each)) for each in zip(*pairs)]
        self.seen = seen
        if self.stack.config.positions == "relative":
            queries = queries + ops.cast(ops.sum(ops.cast(seen, "int32")), queries.dtype)
            self.bias = self.stack.bias_between(queries, ops.cast(places_of(seen), queries.dtype))
        try:
            return run()
        finally:
            self.pairs = self.seen = self.bias = None


class PrefixedAttention:
    """Stands in for an attention's `call`: keys and values of the prefix come before those of the text."""

    def __init__(self, prefixed, attention, index):
        self.prefixed, self.attention, self.index = prefixed, attention, index
        self.base = type(attention).call.__get__(attention)

    def __call__(self, x, attention_mask=None, causal=False, bias=None, **more):
        if self.prefixed.pairs is None:
            return self.base(x, attention_mask=attention_mask, causal=causal, bias=bias, **more)
        prefix = self.prefixed.pairs[self.index]
        count = prefix[0].shape[0]
        update, return_weights = more.pop("update_cache", None), more.pop("return_weights", False)
        kept = []

        def extended(cache, new):
            own = new if update is None else update(cache, new)
            kept.append(own)
            return tuple(self._joined(before, text) for before, text in zip(prefix, own))

        mask = self._mask(attention_mask, causal, ops.shape(x)[1], count)
        if bias is not None:
            before = self.prefixed.bias
            bias = ops.concatenate([ops.broadcast_to(before, (*ops.shape(bias)[:3], count)), bias], axis=-1)
        if return_weights:
            return self._traced(x, mask, bias, more.get("rotary"), extended, count)
        output, _ = self.base(x, attention_mask=mask, bias=bias, update_cache=extended, **more)
        return output if update is None else (output, kept[0])

    def _joined(self, before, text):
        before = ops.broadcast_to(ops.cast(before, text.dtype)[None], (ops.shape(text)[0], *before.shape))
        return ops.concatenate([before, text], axis=1)

    def _mask(self, mask, causal, length, count):
        if mask is None:
            mask = causal_mask(length, length) if causal else ops.ones((1, 1, length, length), "bool")
        shape = ops.shape(mask)
        return ops.concatenate([ops.broadcast_to(self.prefixed.seen, (*shape[:-1], count)), mask], axis=-1)

    def _traced(self, x, mask, bias, rotary, extended, count):
        a = self.attention
        query, (key, value) = a._split_heads(inner(a.query, x), a.num_heads), a.project(x)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        output, weights = explicit_attention(query, *extended(None, (key, value)), mask, bias, a.scale)
        output = ops.reshape(output, (*ops.shape(x)[:2], a.num_heads * a.head_dim))
        return inner(a.output_dense, output), weights[..., count:]


def active(deltas):
    """Which vectors of these count now, (their number,); `None` without any."""
    if not deltas:
        return None
    gates = [ops.broadcast_to(ops.convert_to_tensor(d.gate) > 0, (d.num_tokens,)) for d in deltas]
    return ops.concatenate(gates, axis=0)


def places_of(seen):
    """(1, vectors): where each vector stands, of those that are active."""
    return ops.maximum(ops.cumsum(ops.cast(seen, "int32")) - 1, 0)[None]
