"""What a model runs to make tokens: pure functions of a cache and the model's weights, compiled.

All of them are the same network over a few new tokens a row, each of which sees what its row has cached and the
new ones before it. A prompt is many new tokens, a step of decoding is one, checking a draft is a few.
"""

import functools
import threading

import keras
import numpy as np
from keras import ops

from kerasllm.generation import cache as caches
from kerasllm.generation.compiled import compiled
from kerasllm.generation.sampling import choose, greedy

CHUNK = 32  # tokens a row that one call makes at most
NOT_A_NUMBER = -1  # noted for a token whose logits are not numbers
MAX_STOP_IDS = 4  # stop tokens a row that end a call early; further ones are noticed after it
_MAKING = threading.RLock()


class Programs:
    """The compiled functions of one model, for any number of slots and any length of cache.

    Shapes: token ids (slots, width) int32; `positions` (slots,) int32, how many tokens each slot has cached, and so
    where the first new one goes; `cache` as in `kerasllm.generation.cache`; `source` empty, or for a model with an
    encoder the pair (what the blocks' cross-attention makes of the sources, their lengths (slots,)); `part` the slots
    that compute and the places of them that attention reads, (rows, columns) as in `caches.read_part`: what is given
    of slots beside it, but for `cache` and `source`, is given of these rows.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`.
    """

    def __init__(self, model):
        self.model, config = model, model.config
        self.limit = config.max_sequence_length
        self.has_encoder = config.num_encoder_layers > 0
        self._weights = _identity(model)
        self._all = []

        def made(function, donate=None, reads=model):
            self._all.append(compiled(reads, function, donate))
            return self._all[-1]

        def moved(function, donate=None):
            return made(function, donate, reads=None)

        self.extend = made(self._extend, donate=0)
        self.logits = made(self._logits, donate=0)
        self.encode = made(self._encode)
        self.copy_slots = moved(caches.copy_slots, donate=0)
        self.merge = moved(caches.merge, donate=0)
        self.write_slot = moved(caches.write_slot, donate=0)
        self.read_piece = moved(caches.read_piece)
        self.verify = made(self._verify, donate=0)
        if keras.backend.backend() == "torch":
            from kerasllm.generation import torch_loop

            step, sampled_step = made(self._greedy_step), made(self._step)
            self.choose = torch_loop.chosen
            self.make_greedy = functools.partial(torch_loop.make_greedy, step)
            self.make_sampled = functools.partial(torch_loop.make_sampled, sampled_step)
        else:
            self.choose = made(_choose)
            self.make_greedy = made(self._make_greedy, donate=0)
            self.make_sampled = made(self._make_sampled, donate=0)

    @property
    def compilations(self) -> int:
        """How often anything was compiled so far."""
        return sum(function.compilations() for function in self._all)

    def fits(self, model) -> bool:
        """Whether the model still has the weights these were made for."""
        return _identity(model) == self._weights

    def empty_cache(self, slots: int, length: int):
        return caches.empty(self.model.config, slots, length, self.model.cache_dtype or self.model.compute_dtype)

    def empty_source(self, slots: int, length: int):
        """Room for sources of up to `length` tokens; nothing for a model without an encoder."""
        if not self.has_encoder:
            return ()
        return self.empty_cache(slots, length + self.model.transformer.source_vectors), np.ones(slots, "int32")

    # The network ---------------------------------------------------------------------------------------------

    def _hidden(self, cache, token_ids, positions, source):
        """(slots, width, hidden_dim) of the new tokens, and the cache with them in it."""
        length, window = caches.length_of(cache), self.model.config.sliding_window
        places = positions[:, None] + ops.arange(token_ids.shape[1], dtype="int32")[None, :]
        # Tokens that fill up a row may lie beyond the end: they go where nothing is read any more.
        places = caches.as_places(ops.minimum(places, length - 1))
        columns = ops.arange(length, dtype="int32")[None, None, :]
        mask = columns <= places[:, :, None]
        if window:
            mask = ops.logical_and(mask, columns > places[:, :, None] - window)
        written, dtype = [], self.model.compute_dtype

        def update(_, new):  # Layers cast what they are given; the cache itself stays as it is kept.
            written.append(caches.write(cache[len(written)], new, places))
            return caches.computed(caches.seen(written[-1]), dtype)

        arguments = {
            "positions": places,
            "attention_mask": mask[:, None],
            "cache": [caches.seen(pair) for pair in cache],
            "update_cache": update,
            "training": False,
        }
        network = self.model.transformer
        if self.has_encoder:
            pairs, lengths = source
            source_mask = _before(lengths, caches.length_of(pairs))
            pairs = [caches.computed(caches.seen(pair), dtype) for pair in pairs]
            hidden, _ = network.decode(token_ids, pairs, source_mask, **arguments)
        else:
            hidden, _ = network(token_ids, **arguments)
        return hidden, written

    def _encode(self, token_ids, lengths):
        network = self.model.transformer
        hidden = network.encode(token_ids, _before(lengths, token_ids.shape[1]), training=False)
        return [caches.kept(pair) for pair in network.decoder.project_source(hidden)]

    def _extend(self, cache, part, token_ids, positions, source):
        rows, columns = part
        read = caches.read_part(cache, rows, columns)
        _, read = self._hidden(read, token_ids, positions, source_of(source, rows))
        return caches.write_part(cache, read, rows)

    def _logits(self, cache, token_ids, positions, source):
        """Logits of what follows each new token, float32 (slots, width, vocabulary), their last hidden states, and
        the cache."""
        hidden, cache = self._hidden(cache, token_ids, positions, source)
        return self._head(hidden), hidden, cache

    def _head(self, hidden):
        logits = ops.cast(self.model.logits(hidden), "float32")
        tokenizer, size = self.model.tokenizer, self.model.config.vocabulary_size
        if tokenizer is None or tokenizer.vocabulary_size == size:
            return logits
        # A padded vocabulary: the ids that no token has are never made.
        return ops.where(ops.arange(size) < tokenizer.vocabulary_size, logits, -1e30)

    # Making tokens -------------------------------------------------------------------------------------------

    def _step(self, tokens, positions, cache, source):
        hidden, cache = self._hidden(cache, tokens[:, None], positions, source)
        return self._head(hidden[:, 0]), cache

    def _greedy_step(self, tokens, positions, cache, source):
        """The likeliest tokens, the first logit of each row, which tells whether they are numbers, and the cache."""
        logits, cache = self._step(tokens, positions, cache, source)
        return greedy(logits), logits[:, 0], cache

    def _make_greedy(self, cache, part, tokens, positions, source, ends):
        """Up to CHUNK tokens a row, each fed back; see `ends_of`.

        Returns:
            tokens (rows, CHUNK), how many columns were made, and the cache.
        """
        rows, columns = part
        read, source, last = caches.read_part(cache, rows, columns), source_of(source, rows), columns.shape[0] - 1

        def body(step, tokens, positions, running, made, cache):
            tokens, first, cache = self._greedy_step(tokens, positions, cache, source)
            running, made = _note(made, step, running, as_noted(tokens, first), ends)
            return step + 1, tokens, ops.minimum(positions + 1, last), running, made, cache

        state = (*_start(tokens, positions, ends), caches.for_loop(read))
        step, *_, made, read = ops.while_loop(_goes_on(ends), body, state)
        return made, step, caches.write_part(cache, caches.after_loop(read), rows)

    def _make_sampled(self, cache, part, tokens, positions, source, ends, draw):
        """`_make_greedy` with `choose`; `draw` is what it reads beside logits. Also returns `mu`, before the cache."""
        rows, columns = part
        read, source, last = caches.read_part(cache, rows, columns), source_of(source, rows), columns.shape[0] - 1
        constant = {name: draw[name] for name in ("settings", "seen", "bias")}

        def body(step, tokens, positions, running, made, cache, mu, counts):
            logits, cache = self._step(tokens, positions, cache, source)
            uniforms = ops.take(draw["uniforms"], step, axis=1)
            tokens, mu = choose(logits, uniforms=uniforms, mu=mu, counts=counts, **constant)
            counts = counts + ops.one_hot(tokens, counts.shape[1], dtype=counts.dtype)
            running, made = _note(made, step, running, as_noted(tokens, logits[:, 0]), ends)
            return step + 1, tokens, ops.minimum(positions + 1, last), running, made, cache, mu, counts

        state = (*_start(tokens, positions, ends), caches.for_loop(read), draw["mu"], draw["counts"])
        step, _, _, _, made, read, mu, _ = ops.while_loop(_goes_on(ends), body, state)
        return made, step, mu, caches.write_part(cache, caches.after_loop(read), rows)

    def _verify(self, cache, token_ids, positions, source):
        """The likeliest token after each new one, (slots, width), and the cache."""
        logits, _, cache = self._logits(cache, token_ids, positions, source)
        return as_noted(ops.cast(ops.argmax(logits, axis=-1), "int32"), logits[..., 0]), cache


def programs_of(model) -> Programs:
    """A model's programs: made once, and again only after it got other weights, such as those of an adapter."""
    with _MAKING:  # Two threads may call `generate` for the first time.
        if model._programs is None or not model._programs.fits(model):
            model._programs = Programs(model)
        return model._programs


def as_noted(tokens, first):
    """Tokens as they are noted: those whose first logit is not a number as `NOT_A_NUMBER`.

    A hidden state that is not a number makes all logits of its row so: one of them is looked at, which costs a step
    nothing. One token's own weights in the head are not noticed.
    """
    return ops.where(ops.isnan(first), NOT_A_NUMBER, tokens)


def ends_of(slots: int, stop_ids: dict[int, frozenset], running: list[int], least: int, limit: int) -> dict:
    """When a call that makes many tokens returns.

    Args:
        slots: that compute.
        stop_ids: of each running slot.
        running: the slots in use.
        least: return when fewer than this are still running.
        limit: tokens a row at the most.
    """
    stops = np.full((slots, MAX_STOP_IDS), -1, "int32")
    for slot, ids in stop_ids.items():
        ids = sorted(ids)[:MAX_STOP_IDS]
        stops[slot, : len(ids)] = ids
    alive = np.zeros(slots, "bool")
    alive[running] = True
    return {"stops": stops, "running": alive, "least": np.int32(least), "limit": np.int32(min(limit, CHUNK))}


def source_of(source, rows):
    """Of a source, that of the slots `rows`."""
    if not source or rows.shape[0] == source[1].shape[0]:
        return source
    pairs, lengths = source
    return caches.copy_slots(pairs, rows), ops.take(lengths, rows, axis=0)


def _start(tokens, positions, ends):
    step = ops.zeros((), "int32")
    made = ops.zeros((tokens.shape[0], CHUNK), "int32")
    return step, tokens, positions, ends["running"], made


def _goes_on(ends):
    def condition(step, tokens, positions, running, *_):
        return ops.logical_and(step < ends["limit"], ops.sum(ops.cast(running, "int32")) >= ends["least"])

    return condition


def _note(made, step, running, tokens, ends):
    """What is still running after these tokens, and the tokens made with them in column `step`."""
    running = ops.logical_and(running, ops.all(tokens[:, None] != ends["stops"], axis=1))
    return running, ops.where(ops.arange(CHUNK, dtype="int32")[None, :] == step, tokens[:, None], made)


def _choose(logits, draw):
    tokens, mu = choose(logits, **draw)
    return as_noted(tokens, logits[:, 0]), mu


def _before(lengths, width):
    """(slots, width): True at the places before each row's length."""
    return ops.arange(width, dtype="int32")[None, :] < lengths[:, None]


def _identity(model) -> tuple:
    return tuple(id(v) for v in model.transformer.variables)
