"""What an engine of another library needs to take the place of a model's compiled programs: logits of a step."""

import os

import numpy as np

from kerasllm.generation.programs import CHUNK, NOT_A_NUMBER, Programs


class StepPrograms:
    """What the engine asks of `kerasllm.generation.programs.Programs`, for one that has `logits` and caches.

    Args:
        model: a `CausalLM`. Later changes of its weights do not count.
        threads: as many as there are cores, when left out.
    """

    has_encoder, compilations = False, 0

    def __init__(self, model, threads: int | None = None):
        self.limit, self.vocabulary_size = model.config.max_sequence_length, model.config.vocabulary_size
        self.known = model.tokenizer.vocabulary_size if model.tokenizer else self.vocabulary_size
        self.threads = threads or _cores()
        self._keras = Programs(model)
        self.choose = self._keras.choose

    def fits(self, model) -> bool:
        return self._keras.fits(model)

    def empty_source(self, slots: int, length: int):
        return ()

    def extend(self, cache, part, token_ids, positions, source):
        cache.feed([int(row) for row in part[0]], token_ids, positions)
        return cache

    def copy_slots(self, cache, rows):
        cache.copy([int(row) for row in rows])
        return cache

    def read_piece(self, cache, slot, start):
        raise ValueError("A prefix cache needs the engine 'keras'.")

    write_slot = read_piece

    def logits(self, cache, token_ids, positions, source):
        """float32 (slots, width, vocabulary), no hidden states, and the cache."""
        logits = cache.feed(range(cache.slots), token_ids, positions, with_logits=True)
        logits[..., self.known :] = -1e30  # A padded vocabulary.
        return logits, None, cache

    def verify(self, cache, token_ids, positions, source):
        logits, _, cache = self.logits(cache, token_ids, positions, source)
        return np.where(np.isnan(logits[..., 0]), NOT_A_NUMBER, logits.argmax(axis=-1)).astype("int32"), cache

    def make_greedy(self, cache, part, tokens, positions, source, ends):
        def likeliest(logits, count):
            return logits.argmax(axis=-1)

        return self._loop(likeliest, cache, tokens, positions, ends)

    def make_sampled(self, cache, part, tokens, positions, source, ends, draw):
        mu, counts = draw["mu"], np.array(draw["counts"])
        uniforms = np.asarray(draw["uniforms"])

        def chosen(logits, count):
            nonlocal mu
            tokens, mu = self.choose(logits, {**draw, "uniforms": uniforms[:, count], "mu": mu, "counts": counts})
            tokens = np.asarray(tokens)
            counts[np.arange(len(counts)), tokens] += 1
            return tokens

        made, count, cache = self._loop(chosen, cache, tokens, positions, ends)
        return made, count, mu, cache

    def _loop(self, choose, cache, tokens, positions, ends):
        made, running, count = np.zeros((len(tokens), CHUNK), "int32"), ends["running"].copy(), 0
        while count < ends["limit"] and running.sum() >= ends["least"]:
            # Slots that ended compute along elsewhere; here they are left out.
            logits, _, cache = self.logits(cache, np.asarray(tokens)[:, None], np.asarray(positions) + count, ())
            tokens = choose(logits[:, 0], count)
            made[:, count] = np.where(np.isnan(logits[:, 0, 0]), NOT_A_NUMBER, tokens)
            running &= (tokens[:, None] != ends["stops"]).all(axis=1)
            count += 1
        return made, count, cache


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
