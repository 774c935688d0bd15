"""The one engine that makes tokens: slots that share a batch, each with its own prompt, length and sampler.

A prompt is run once over its power-of-two bucket (prefill), its keys and values are copied into a free slot
of the cache (insert), and then all slots advance together, one token a step, each writing its new key and
value in place at its own position. A model with an encoder reads its source first; what each block's
cross-attention makes of it stands in the slot beside the cache, and never changes.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm.generation.sampling import Sampler, greedy, sample

SMALLEST_BUCKET = 16


def bucket(size: int, largest: int, smallest: int = 1) -> int:
    """The power of two that `size` fits in, within [smallest, largest]: few shapes, few compilations."""
    return min(largest, max(smallest, 1 << (size - 1).bit_length()))


@dataclasses.dataclass
class Request:
    """One prompt and what has been made of it.

    Attributes:
        prompt: token ids.
        source: token ids that the encoder reads, in models that have one.
        max_new_tokens: tokens to make at the most.
        sampler: how they are chosen.
        stop_token_ids: a token of these ends the request, and is not part of the answer.
        slide: when the context is full, go on from its last half instead of ending.
        new_tokens: the answer so far.
        finished: why it ended: "stop", "length" or "" while it runs.
    """

    prompt: list[int]
    max_new_tokens: int
    sampler: Sampler
    stop_token_ids: frozenset[int] = frozenset()
    slide: bool = False
    source: list[int] | None = None
    new_tokens: list[int] = dataclasses.field(default_factory=list)
    finished: str = ""

    def accept(self, token: int) -> None:
        if token in self.stop_token_ids:
            self.finished = "stop"
            return
        self.new_tokens.append(token)
        if len(self.new_tokens) >= self.max_new_tokens:
            self.finished = "length"


class Engine:
    """Runs requests for one model.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`.

    Example:
    ```python
    request = Request([5, 7], max_new_tokens=3, sampler=Sampler(temperature=0.0))
    for finished_or_not in Engine(model).run([request]):
        pass
    request.new_tokens
    ```
    """

    def __init__(self, model):
        self.model = model
        config = model.config
        self.limit = config.max_sequence_length
        self.has_encoder = config.num_encoder_layers > 0
        self._encode = _compiled(model, self._encode_step)
        self._prefill = _compiled(model, self._prefill_step)
        self._insert = _compiled(model, _insert, donate=0)
        self._greedy_step = _compiled(model, self._decode_greedy, donate=0)
        self._sample_step = _compiled(model, self._decode_sample, donate=0)
        self._logits_step = _compiled(model, self._decode, donate=0)
        self._reorder = _compiled(model, _reorder)

    def run(self, requests: list[Request]):
        """Advances all requests together; yields the list after every step, until all are finished."""
        slots = bucket(len(requests), 1 << 30)
        needed = max(len(r.prompt) + r.max_new_tokens for r in requests)
        cache = self._empty_cache(slots, bucket(needed, self.limit, SMALLEST_BUCKET))
        source = self._empty_source(slots, requests)
        lengths = np.zeros(slots, "int32")
        tokens = np.zeros(slots, "int32")
        for slot, request in enumerate(requests):
            source = self._read_source(source, slot, request)
            cache = self._start(cache, source, slot, request, request.prompt, tokens, lengths)
        yield requests
        while any(not r.finished for r in requests):
            tokens_made, cache = self._step(cache, source, tokens, lengths, requests)
            for slot, request in enumerate(requests):
                if request.finished:
                    continue
                lengths[slot] += 1
                tokens[slot] = tokens_made[slot]
                request.accept(int(tokens[slot]))
                if not request.finished and lengths[slot] >= self.limit:
                    if request.slide:
                        recent = (request.prompt + request.new_tokens)[-(self.limit // 2 or 1) :]
                        cache = self._start(cache, source, slot, request, recent, tokens, lengths)
                    else:
                        request.finished = "length"
            yield requests

    def begin(self, request: Request, slots: int):
        """Prefills one prompt into the first of some slots; the step for a search that chooses its own tokens.

        Returns:
            logits of the next token, float32 (1, vocabulary), and the state to `advance`.
        """
        slots = bucket(slots, 1 << 30)
        needed = min(self.limit, len(request.prompt) + request.max_new_tokens)
        cache = self._empty_cache(slots, bucket(needed, self.limit, SMALLEST_BUCKET))
        source = self._read_source(self._empty_source(slots, [request]), 0, request)
        if self.has_encoder:
            pairs, lengths = source
            source = self._reorder(pairs, np.zeros(slots, "int32")), np.full_like(lengths, lengths[0])
        logits, cache = self._fill(cache, source, 0, request.prompt)
        return _numpy(logits), (cache, source, len(request.prompt))

    def advance(self, state, tokens: list[int], parents: list[int]):
        """Lets slot i go on from what was in slot `parents[i]`, with `tokens[i]`.

        Returns:
            logits of the next token, float32 (slots, vocabulary), and the new state; the old one is used up.
        """
        cache, source, length = state
        slots = cache[0][0].shape[0]
        rows = np.zeros(slots, "int32")
        rows[: len(parents)] = parents
        cache = self._reorder(cache, rows)
        made = np.zeros(slots, "int32")
        made[: len(tokens)] = tokens
        logits, cache = self._logits_step(cache, made, np.full(slots, length, "int32"), source)
        return _numpy(logits), (cache, source, length + 1)

    def _read_source(self, source, slot, request):
        """Runs a request's source through the encoder, into its slot."""
        if not self.has_encoder:
            return source
        width = bucket(len(request.source), self.limit, SMALLEST_BUCKET)
        token_ids = np.zeros((1, width), "int32")
        token_ids[0, : len(request.source)] = request.source
        pairs, lengths = source
        lengths[slot] = len(request.source)
        made = self._encode(token_ids, lengths[slot : slot + 1])
        return self._insert(pairs, made, np.int32(slot)), lengths

    def _start(self, cache, source, slot, request, prompt, tokens, lengths):
        """Prefills a prompt into a slot and takes its first token."""
        logits, cache = self._fill(cache, source, slot, prompt)
        tokens[slot] = int(_numpy(_choose(logits, *self._settings([request])))[0])
        lengths[slot] = len(prompt)
        request.accept(int(tokens[slot]))
        return cache

    def _fill(self, cache, source, slot, prompt):
        width = bucket(len(prompt), self.limit, SMALLEST_BUCKET)
        token_ids = np.zeros((1, width), "int32")
        token_ids[0, : len(prompt)] = prompt
        last = np.array([len(prompt) - 1], "int32")
        logits, pairs = self._prefill(token_ids, last, self._source_of(source, slot))
        return logits, self._insert(cache, pairs, np.int32(slot))

    def _step(self, cache, source, tokens, lengths, requests):
        # Finished rows still compute, into their own slot, which nobody reads.
        positions = np.minimum(lengths, _cache_length(cache) - 1)
        if all(r.sampler.temperature == 0 for r in requests):
            made, cache = self._greedy_step(cache, tokens, positions, source)
        else:
            settings = self._settings(requests, len(tokens))
            made, cache = self._sample_step(cache, tokens, positions, source, *settings)
        return _numpy(made), cache

    def _settings(self, requests, rows=None):
        rows = rows or len(requests)
        settings = [np.zeros(rows, "float32"), np.zeros(rows, "int32"), np.ones(rows, "float32")]
        uniforms = np.zeros(rows, "float32")
        for row, request in enumerate(requests):
            s = request.sampler
            settings[0][row], settings[1][row], settings[2][row] = s.temperature, s.top_k, s.top_p
            if not request.finished:
                uniforms[row] = s.uniform(len(request.new_tokens))
        return (*settings, uniforms)

    def _empty_cache(self, slots, length):
        c = self.model.config
        shape = (slots, length, c.num_kv_heads, c.head_dim)
        dtype = self.model.compute_dtype
        return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in range(c.num_layers)]

    def _empty_source(self, slots, requests):
        """(a (key, value) pair a layer, the sources' lengths); empty for models without an encoder."""
        if not self.has_encoder:
            return ()
        longest = max(len(r.source) for r in requests)
        width = bucket(longest, self.limit, SMALLEST_BUCKET)
        return self._empty_cache(slots, width), np.ones(slots, "int32")

    def _source_of(self, source, slot):
        """One slot's source."""
        if not self.has_encoder:
            return ()
        pairs, lengths = source
        row = slice(slot, slot + 1)
        return [tuple(x[row] for x in pair) for pair in pairs], lengths[row]

    def _encode_step(self, token_ids, lengths):
        network = self.model.transformer
        hidden = network.encode(token_ids, _before(lengths, token_ids.shape[1]), training=False)
        return network.decoder.project_source(hidden)

    def _network(self, token_ids, source, **options):
        network = self.model.transformer
        if not self.has_encoder:
            return network(token_ids, training=False, **options)
        pairs, lengths = source
        mask = _before(lengths, pairs[0][0].shape[1])
        return network.decode(token_ids, [tuple(pair) for pair in pairs], mask, training=False, **options)

    def _prefill_step(self, token_ids, last, source):
        hidden, pairs = self._network(token_ids, source, update_cache=lambda _, new: new)
        hidden = ops.take_along_axis(hidden, ops.reshape(last, (-1, 1, 1)), axis=1)[:, 0]
        return self._logits(hidden), pairs

    def _decode(self, cache, tokens, positions, source):
        columns = ops.arange(_cache_length(cache))[None, :]
        mask = columns <= positions[:, None]
        if self.model.config.sliding_window:
            mask = ops.logical_and(mask, columns > positions[:, None] - self.model.config.sliding_window)
        hidden, cache = self._network(
            tokens[:, None],
            source,
            positions=positions[:, None],
            cache=cache,
            update_cache=lambda pair, new: tuple(_write(old, row, positions) for old, row in zip(pair, new)),
            attention_mask=mask[:, None, None, :],
        )
        return self._logits(hidden[:, 0]), cache

    def _decode_greedy(self, cache, tokens, positions, source):
        logits, cache = self._decode(cache, tokens, positions, source)
        return greedy(logits), cache

    def _decode_sample(self, cache, tokens, positions, source, *settings):
        logits, cache = self._decode(cache, tokens, positions, source)
        return sample(logits, *settings), cache

    def _logits(self, hidden):
        logits = ops.cast(self.model.logits(hidden), "float32")
        tokenizer, size = self.model.tokenizer, self.model.config.vocabulary_size
        if tokenizer is None or tokenizer.vocabulary_size == size:
            return logits
        # A padded vocabulary: the ids that no token has are never made.
        return ops.where(ops.arange(size)[None, :] < tokenizer.vocabulary_size, logits, -1e30)


def _before(lengths, width):
    """(batch, width): True at the places before each row's length."""
    return ops.arange(width)[None, :] < lengths[:, None]


def _choose(logits, temperature, *settings):
    if np.all(temperature == 0):
        return greedy(logits)
    return sample(logits, *(ops.convert_to_tensor(s) for s in (temperature, *settings)))


def _cache_length(cache) -> int:
    return cache[0][0].shape[1]


def _insert(cache, pairs, slot):
    """Copies a prefilled prompt's keys and values to the start of a slot."""
    length = min(_cache_length(cache), pairs[0][0].shape[1])
    return [
        tuple(_write_slot(old, new[:, :length], slot) for old, new in zip(pair, filled))
        for pair, filled in zip(cache, pairs)
    ]


def _reorder(cache, rows):
    """The slots of a cache in another order; one may come twice."""
    return [tuple(ops.take(x, rows, axis=0) for x in pair) for pair in cache]


def _write_slot(old, new, slot):
    if keras.backend.backend() == "torch":
        old[int(slot), : new.shape[1]] = new[0]
        return old
    return ops.slice_update(old, (slot, 0, 0, 0), new)


def _write(old, new, positions):
    """Writes each row's one new entry at that row's position."""
    if keras.backend.backend() == "torch":
        import torch

        old[torch.arange(old.shape[0], device=old.device), positions.long()] = new[:, 0]
        return old
    rows = ops.arange(old.shape[0], dtype="int32")
    return ops.scatter_update(old, ops.stack([rows, positions], axis=1), new[:, 0])


def _numpy(x) -> np.ndarray:
    return ops.convert_to_numpy(x)


def _tensor(x):
    return ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x


def _compiled(model, function, donate=None):
    """`function` of arrays as the backend runs it best; `donate` is an argument whose memory may be reused."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        variables = model.transformer.variables

        def pure(values, *arguments):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return function(*arguments)

        jitted = jax.jit(pure, donate_argnums=() if donate is None else (donate + 1,))
        return lambda *arguments: jitted([v.value for v in variables], *arguments)
    if backend == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function, jit_compile=True, autograph=False)
        return lambda *arguments: traced(*tf.nest.map_structure(tf.convert_to_tensor, arguments))
    import torch

    def run(*arguments):
        with torch.inference_mode():
            return function(*keras.tree.map_structure(_tensor, arguments))

    return run
