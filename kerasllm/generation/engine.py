"""The one engine that makes tokens: slots that share a batch, each with its own prompt, length and sampler.

A prompt is run once over its power-of-two bucket (prefill), its keys and values are copied into a free slot
of the cache (insert), and then all slots advance together, one token a step, each writing its new key and
value in place at its own position.
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
        model: a `CausalLM`.

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
        self._prefill = _compiled(model, self._prefill_step)
        self._insert = _compiled(model, _insert, donate=0)
        self._greedy_step = _compiled(model, self._decode_greedy, donate=0)
        self._sample_step = _compiled(model, self._decode_sample, donate=0)

    def run(self, requests: list[Request]):
        """Advances all requests together; yields the list after every step, until all are finished."""
        slots = bucket(len(requests), 1 << 30)
        needed = max(len(r.prompt) + r.max_new_tokens for r in requests)
        cache = self._empty_cache(slots, bucket(needed, self.limit, SMALLEST_BUCKET))
        lengths = np.zeros(slots, "int32")
        tokens = np.zeros(slots, "int32")
        for slot, request in enumerate(requests):
            cache = self._start(cache, slot, request, request.prompt, tokens, lengths)
        yield requests
        while any(not r.finished for r in requests):
            tokens_made, cache = self._step(cache, tokens, lengths, requests)
            for slot, request in enumerate(requests):
                if request.finished:
                    continue
                lengths[slot] += 1
                tokens[slot] = tokens_made[slot]
                request.accept(int(tokens[slot]))
                if not request.finished and lengths[slot] >= self.limit:
                    if request.slide:
                        recent = (request.prompt + request.new_tokens)[-(self.limit // 2 or 1) :]
                        cache = self._start(cache, slot, request, recent, tokens, lengths)
                    else:
                        request.finished = "length"
            yield requests

    def _start(self, cache, slot, request, prompt, tokens, lengths):
        """Prefills a prompt into a slot and takes its first token."""
        width = bucket(len(prompt), self.limit, SMALLEST_BUCKET)
        token_ids = np.zeros((1, width), "int32")
        token_ids[0, : len(prompt)] = prompt
        logits, pairs = self._prefill(token_ids, np.array([len(prompt) - 1], "int32"))
        cache = self._insert(cache, pairs, np.int32(slot))
        tokens[slot] = int(_numpy(_choose(logits, *self._settings([request])))[0])
        lengths[slot] = len(prompt)
        request.accept(int(tokens[slot]))
        return cache

    def _step(self, cache, tokens, lengths, requests):
        # Finished rows still compute, into their own slot, which nobody reads.
        positions = np.minimum(lengths, _cache_length(cache) - 1)
        if all(r.sampler.temperature == 0 for r in requests):
            made, cache = self._greedy_step(cache, tokens, positions)
        else:
            settings = self._settings(requests, len(tokens))
            made, cache = self._sample_step(cache, tokens, positions, *settings)
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

    def _prefill_step(self, token_ids, last):
        hidden, pairs = self.model.transformer(token_ids, update_cache=lambda _, new: new, training=False)
        hidden = ops.take_along_axis(hidden, ops.reshape(last, (-1, 1, 1)), axis=1)[:, 0]
        return self._logits(hidden), pairs

    def _decode(self, cache, tokens, positions):
        columns = ops.arange(_cache_length(cache))[None, :]
        mask = columns <= positions[:, None]
        if self.model.config.sliding_window:
            mask = ops.logical_and(mask, columns > positions[:, None] - self.model.config.sliding_window)
        hidden, cache = self.model.transformer(
            tokens[:, None],
            positions=positions[:, None],
            cache=cache,
            update_cache=lambda pair, new: tuple(_write(old, row, positions) for old, row in zip(pair, new)),
            attention_mask=mask[:, None, None, :],
            training=False,
        )
        return self._logits(hidden[:, 0]), cache

    def _decode_greedy(self, cache, tokens, positions):
        logits, cache = self._decode(cache, tokens, positions)
        return greedy(logits), cache

    def _decode_sample(self, cache, tokens, positions, *settings):
        logits, cache = self._decode(cache, tokens, positions)
        return sample(logits, *settings), cache

    def _logits(self, hidden):
        logits = ops.cast(self.model.transformer.embedding.logits(hidden), "float32")
        tokenizer, size = self.model.tokenizer, self.model.config.vocabulary_size
        if tokenizer is None or tokenizer.vocabulary_size == size:
            return logits
        # A padded vocabulary: the ids that no token has are never made.
        return ops.where(ops.arange(size)[None, :] < tokenizer.vocabulary_size, logits, -1e30)


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
            tensors = (ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a for a in arguments)
            return function(*tensors)

    return run
