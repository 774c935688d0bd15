"""Trained vectors in front of a text: prompts, read like tokens, and prefixes, attended to in every block.

In a causal network no token changes what stands before it, so a prompt is run once for a whole batch, and what its
blocks make of it (keys and values) is what every text attends to: the same as reading it with each text, with the
cache of a decoder left as it is.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm.layers.attention_ops import causal_mask, explicit_attention
from kerasllm.layers.inner import inner
from kerasllm.layers.positions import rotate
from kerasllm.layers.stack import Stack, Visibility
from kerasllm.models.transformer import Transformer
from kerasllm.tuning.delta import Delta
from kerasllm.tuning.settings import Part, Settings


@dataclasses.dataclass(frozen=True)
class PromptTuning(Settings):
    """Trained vectors that stand before each text in place of token vectors. For models of one stack.

    The texts may be so many tokens shorter: `model.config.max_sequence_length` is less while the adapter is there.
    A classifier still reads the text's own first token.

    Args:
        also_train: see `Settings`.
        num_tokens: how many vectors.
        initial_ids: ids of tokens whose vectors they begin as, repeated as needed; random tokens when left out.
        seed: of the random beginning.

    Example:
    ```python
    model.add_adapter("poems", PromptTuning(num_tokens=20))
    ```

    Reference: Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    num_tokens: int = 20
    initial_ids: tuple[int, ...] | None = None
    seed: int = 0

    def check(self):
        if isinstance(self.num_tokens, bool) or not isinstance(self.num_tokens, int) or self.num_tokens < 1:
            raise ValueError(
                f"`num_tokens` must be a whole number of at least 1. Received: num_tokens={self.num_tokens!r}"
            )
        if self.targets is not None:
            raise ValueError(f"A {type(self).__name__} has no `targets`. Received: targets={self.targets!r}")
        if isinstance(getattr(self, "initial_ids", None), list):
            object.__setattr__(self, "initial_ids", tuple(self.initial_ids))

    def build(self, model, gate, adapter):
        network = getattr(model, "transformer", None)
        if not isinstance(network, Transformer):
            raise ValueError(
                f"A {type(self).__name__} goes to a model of one stack (a CausalLM, a MaskedLM, a classifier). "
                f"Received: {type(model).__name__}. Use LoRA, IA3 or Bottleneck there."
            )
        if self.num_tokens >= model.config.max_sequence_length:
            raise ValueError(
                f"The model reads {model.config.max_sequence_length} tokens, which leaves no room for a text behind "
                f"num_tokens={self.num_tokens}."
            )
        if getattr(self, "initial_ids", None) is not None:
            model.check_token_ids(np.asarray(self.initial_ids, "int32"))
        delta = self.make_prompt(model, network, gate, f"prompt_{adapter}")
        parts = [Part("transformer", network, delta.create())]
        return parts + self._whole(model, gate, adapter, parts)

    def make_prompt(self, model, network, gate, name) -> "PromptDelta":
        return PromptDelta(gate, network, name, model, self)


@dataclasses.dataclass(frozen=True)
class PTuning(PromptTuning):
    """A prompt whose vectors are made by a small trained network, which makes training steadier.

    Saved is the prompt that it makes.

    Args:
        also_train, num_tokens, initial_ids, seed: see `PromptTuning`.
        hidden_dim: width of the network; the model's when left out.

    Example:
    ```python
    model.add_adapter("poems", PTuning(num_tokens=20))
    ```

    Reference: Liu et al. (2021), "GPT Understands, Too".
    """

    hidden_dim: int | None = None

    def make_prompt(self, model, network, gate, name):
        return PTuningDelta(gate, network, name, model, self)


@dataclasses.dataclass(frozen=True)
class PrefixTuning(PromptTuning):
    """Trained keys and values that every attention of the stack sees before the text.

    Args:
        also_train, num_tokens, seed: see `PromptTuning`.

    Example:
    ```python
    model.add_adapter("poems", PrefixTuning(num_tokens=20))
    ```

    Reference: Li and Liang (2021), "Prefix-Tuning".
    """

    def make_prompt(self, model, network, gate, name):
        if self.initial_ids is not None:
            raise ValueError(f"A prefix has no token vectors. Received: initial_ids={self.initial_ids!r}")
        return PrefixDelta(gate, network, name, model, self)


class PromptDelta(Delta):
    """The vectors `prompt`, (num_tokens, hidden_dim)."""

    mergeable = False

    def __init__(self, gate, host, name, model, settings):
        super().__init__(gate, host, name)
        self._site.model, self._settings, self.num_tokens = model, settings, settings.num_tokens

    def build(self):
        self.prompt = self._weight("prompt", self._begin())
        self.built = True

    def _weight(self, name, value):
        constant = keras.initializers.Constant(value.astype("float32"))
        return self.add_weight(shape=value.shape, initializer=constant, name=name)

    def _begin(self):
        table, ids = self.host.embedding.tokens.embeddings, self._settings.initial_ids
        if ids is None:
            ids = np.random.default_rng(self._settings.seed).integers(0, table.shape[0], self.num_tokens)
        return np.asarray(ops.convert_to_numpy(ops.take(table, np.resize(ids, self.num_tokens), axis=0)), "float32")

    def vectors(self):
        """(num_tokens, hidden_dim)."""
        return self.prompt

    def pairs(self):
        """A (key, value) a block, each (num_tokens, kv_heads, head_dim), of what is no prompt but a prefix."""
        return None

    def check_weight(self, weight):
        if weight not in (0.0, 1.0):
            raise ValueError(f"A prompt is there or not: its weight is 1 or 0. Received: {weight}")

    def attach(self):
        prompted = vars(self.host).get("call")
        if prompted is None:
            prompted = self.host.call = Prompted(self.host)
        prompted.deltas[self.name] = self
        self._own(True)
        self._resize(-self.num_tokens)

    def detach(self):
        prompted = vars(self.host)["call"]
        del prompted.deltas[self.name]
        if not prompted.deltas:
            prompted.leave()
        self._own(False)
        self._resize(self.num_tokens)

    def _resize(self, change):
        model = self._site.model
        model.config = model.config.replace(max_sequence_length=model.config.max_sequence_length + change)


class PTuningDelta(PromptDelta):
    """`prompt`, and the projections that make it what is read."""

    def build(self):
        start = self._begin()
        width, inside = start.shape[1], self._settings.hidden_dim or start.shape[1]
        random = np.random.default_rng([self._settings.seed, 1])
        self.prompt = self._weight("prompt", start)
        sizes = [(width, inside), (inside, inside), (inside, width)]
        self.kernels = [
            self._weight(f"kernel_{i}", random.uniform(-1, 1, s) / np.sqrt(s[0])) for i, s in enumerate(sizes)
        ]
        self.biases = [self._weight(f"bias_{i}", np.zeros(s[1])) for i, s in enumerate(sizes)]
        self.built = True

    def vectors(self):
        x = self.prompt
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases)):
            x = ops.matmul(x, kernel) + bias
            x = ops.relu(x) if i < 2 else x
        return x


class PrefixDelta(PromptDelta):
    """`prefix`, (num_tokens, blocks · 2 · kv_heads · head_dim): of each block the key, then the value."""

    def build(self):
        c = self.host.config
        shape = (self.num_tokens, self.host.num_layers * 2 * c.num_kv_heads * c.head_dim)
        start = np.random.default_rng(self._settings.seed).normal(size=shape) * c.initializer_range
        self.prefix = self._weight("prefix", start)
        self.built = True

    def vectors(self):
        return None

    def pairs(self):
        c = self.host.config
        shape = (self.num_tokens, self.host.num_layers, 2, c.num_kv_heads, c.head_dim)
        prefix = ops.reshape(ops.convert_to_tensor(self.prefix), shape)
        return [(prefix[:, i, 0], prefix[:, i, 1]) for i in range(self.host.num_layers)]


class Prompted:
    """Stands in for a network's `call`, and for those of its attentions, as long as it has prompts or prefixes."""

    def __init__(self, network):
        self.network, self.deltas = network, {}
        self.base = type(network).call.__get__(network)
        self.pairs = self.seen = None  # While the network runs: of all prompts, and which of them are active.
        for i, block in enumerate(network.blocks):
            block.attention.call = PrefixedAttention(self, block.attention, i)

    def leave(self) -> None:
        del self.network.call
        for block in self.network.blocks:
            del block.attention.call

    def __call__(self, token_ids, padding_mask=None, *arguments, positions=None, trace=False, training=None, **more):
        if arguments:
            raise TypeError("With prompts, pass what follows the padding mask by name.")
        c, length = self.network.config, ops.shape(token_ids)[1]
        prompts = [delta for delta in self.deltas.values() if delta.vectors() is not None]
        prefixes = [delta for delta in self.deltas.values() if delta.vectors() is None]
        seen = self._active(prompts)
        total = sum(delta.num_tokens for delta in self.deltas.values())
        if isinstance(length, int) and length + total > c.max_sequence_length:
            raise ValueError(
                f"The sequence is longer than the model reads behind {total} prompt vectors. Received: {length} "
                f"tokens. Give at most {c.max_sequence_length - total}."
            )
        if c.positions in ("learned", "sinusoidal", "rotary"):
            shift = ops.sum(ops.cast(self._active([*prompts, *prefixes]), "int32"))
            positions = (ops.arange(length)[None, :] if positions is None else positions) + shift
        if prompts and not c.causal:
            return self._read_together(prompts, seen, token_ids, padding_mask, positions, trace, training, more)
        pairs = [[] for _ in self.network.blocks]
        if prompts:
            pairs = [[pair] for pair in self._run(prompts, seen, training)]
        for delta in prefixes:
            pairs = [[*old, new] for old, new in zip(pairs, delta.pairs())]
        return self._with(
            [tuple(ops.concatenate(x, axis=0) for x in zip(*each)) for each in pairs],
            self._active([*prompts, *prefixes]),
            lambda: self.base(token_ids, padding_mask, positions=positions, trace=trace, training=training, **more),
        )

    def _with(self, pairs, seen, run):
        self.pairs, self.seen = pairs, seen
        try:
            return run()
        finally:
            self.pairs = self.seen = None

    def _active(self, deltas):
        """Which vectors of these count now, (their number,)."""
        if not deltas:
            return None
        gates = [ops.broadcast_to(ops.convert_to_tensor(d.gate) > 0, (d.num_tokens,)) for d in deltas]
        return ops.concatenate(gates, axis=0)

    def _embedded(self, prompts, seen):
        """The prompts as the first block reads them, (1, vectors, dim), and where they stand, (1, vectors)."""
        embedding, c = self.network.embedding, self.network.config
        dtype = embedding.compute_dtype
        x = ops.concatenate([ops.cast(delta.vectors(), dtype) for delta in prompts], axis=0)[None]
        places = ops.maximum(ops.cumsum(ops.cast(seen, "int32")) - 1, 0)[None]
        if c.positions in ("learned", "sinusoidal"):
            x = x + embedding._position_vectors(x.shape[1], places, x.dtype)
        if c.num_segments:
            x = x + ops.cast(embedding.segments.embeddings, x.dtype)[0]
        return (inner(embedding.norm, x) if c.embedding_norm else x), places

    def _run(self, prompts, seen, training):
        """The (key, value) of the prompts in each block, (vectors, kv_heads, head_dim)."""
        x, places = self._embedded(prompts, seen)
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

    def _read_together(self, prompts, seen, token_ids, padding_mask, positions, trace, training, more):
        """In a network where a prompt sees the text: both in one sequence, of which the text is returned."""
        segments = more.pop("segment_ids", None)
        if any(value is not None for value in more.values()):
            raise ValueError(f"Prompts cannot be read together with {', '.join(more)}. Leave them out.")
        text = inner(self.network.embedding, token_ids, positions, segments, training=training)
        batch, length = ops.shape(token_ids)[:2]
        x, _ = self._embedded(prompts, seen)
        count = x.shape[1]
        x = ops.concatenate([ops.broadcast_to(x, (batch, *x.shape[1:])), text], axis=1)
        padding = ops.ones((batch, length), "bool") if padding_mask is None else ops.cast(padding_mask, "bool")
        padding = ops.concatenate([ops.broadcast_to(seen[None], (batch, count)), padding], axis=1)
        places = None
        if positions is not None:
            before = ops.maximum(ops.cumsum(ops.cast(seen, "int32")) - 1, 0)[None]
            positions = ops.broadcast_to(positions, (batch, length))
            places = ops.concatenate([ops.broadcast_to(before, (batch, count)), positions], axis=1)
        made = Stack.call(self.network, x, Visibility(padding), positions=places, trace=trace, training=training)
        if not trace:
            return made[:, count:]
        hidden, states, weights = made
        return hidden[:, count:], [s[:, count:] for s in states], [w[:, :, count:, count:] for w in weights]


class PrefixedAttention:
    """Stands in for an attention's `call`: keys and values of the prefix come before those of the text."""

    def __init__(self, prompted, attention, index):
        self.prompted, self.attention, self.index = prompted, attention, index
        self.base = type(attention).call.__get__(attention)

    def __call__(self, x, attention_mask=None, causal=False, bias=None, **more):
        if self.prompted.pairs is None:
            return self.base(x, attention_mask=attention_mask, causal=causal, bias=bias, **more)
        prefix = self.prompted.pairs[self.index]
        count = prefix[0].shape[0]
        update, return_weights = more.pop("update_cache", None), more.pop("return_weights", False)
        kept = []

        def extended(cache, new):
            own = new if update is None else update(cache, new)
            kept.append(own)
            return tuple(self._joined(before, text) for before, text in zip(prefix, own))

        mask = self._mask(attention_mask, causal, ops.shape(x)[1], count)
        if bias is not None:
            bias = ops.pad(bias, [(0, 0), (0, 0), (0, 0), (count, 0)])
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
        return ops.concatenate([ops.broadcast_to(self.prompted.seen, (*shape[:-1], count)), mask], axis=-1)

    def _traced(self, x, mask, bias, rotary, extended, count):
        a = self.attention
        query, (key, value) = a._split_heads(inner(a.query, x), a.num_heads), a.project(x)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        output, weights = explicit_attention(query, *extended(None, (key, value)), mask, bias, a.scale)
        output = ops.reshape(output, (*ops.shape(x)[:2], a.num_heads * a.head_dim))
        return inner(a.output_dense, output), weights[..., count:]
