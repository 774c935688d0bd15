"""llama.cpp in the place of a model's compiled programs: everything that makes tokens then runs on it."""

import ctypes
import os
import tempfile
from pathlib import Path

import numpy as np

from kerasllm.generation.programs import CHUNK, Programs
from kerasllm.interop.gguf import export_gguf

MOST_TOKENS = 512  # in one of its calls


class LlamaCpp:
    """What the engine asks of `kerasllm.generation.programs.Programs`, answered by llama.cpp.

    Args:
        model: a `CausalLM` that `export_gguf` takes. Later changes of its weights do not count.
        kind: of the weights, as in `export_gguf`.
        threads: as many as there are cores, when left out.

    Raises:
        ImportError: llama-cpp-python or gguf is not installed.
        ValueError: llama.cpp does not run such a model.
    """

    has_encoder, compilations = False, 0

    def __init__(self, model, kind: str = "q8_0", threads: int | None = None):
        try:
            import llama_cpp
        except ImportError as error:
            raise ImportError('llama.cpp needs `pip install "kerasllm[llama-cpp]"`, which compiles it') from error
        self._c = llama_cpp
        self.limit, self.kind = model.config.max_sequence_length, kind
        self.vocabulary_size = model.config.vocabulary_size
        self.known = model.tokenizer.vocabulary_size if model.tokenizer else self.vocabulary_size
        self.threads = threads or _cores()
        self._keras = Programs(model)
        self.choose = self._keras.choose
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.gguf"
            export_gguf(model, path, kind)
            self.num_bytes = path.stat().st_size
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False  # The file goes away.
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError("llama.cpp does not read the file that was written for it.")

    def __del__(self):
        if getattr(self, "_model", None):
            self._c.llama_model_free(self._model)

    def fits(self, model) -> bool:
        return self._keras.fits(model)

    def empty_cache(self, slots: int, length: int) -> "_Context":
        return _Context(self, slots, length)

    def empty_source(self, slots: int, length: int):
        return ()

    def extend(self, cache, token_ids, positions, source):
        cache.feed(range(cache.slots), token_ids, positions)
        return cache

    def extend_slot(self, cache, token_ids, positions, source, slot):
        cache.feed([int(slot)], token_ids, positions)
        return cache

    def copy_slots(self, cache, rows):
        cache.copy(rows)
        return cache

    def read_slot(self, cache, slot):
        raise ValueError("A prefix cache needs the engine 'keras'.")

    write_slot = read_slot

    def logits(self, cache, token_ids, positions, source):
        """float32 (slots, width, vocabulary), no hidden states, and the cache."""
        logits = cache.feed(range(cache.slots), token_ids, positions, with_logits=True)
        logits[..., self.known :] = -1e30  # A padded vocabulary.
        return logits, None, cache

    def verify(self, cache, token_ids, positions, source):
        return self.logits(cache, token_ids, positions, source)[0].argmax(axis=-1).astype("int32"), cache

    def make_greedy(self, cache, tokens, positions, source, ends):
        def likeliest(logits, count):
            return logits.argmax(axis=-1)

        return self._loop(likeliest, cache, tokens, positions, ends)

    def make_sampled(self, cache, tokens, positions, source, ends, draw):
        mu, counts = draw["mu"], np.array(draw["counts"])
        uniforms = np.asarray(draw["uniforms"])

        def chosen(logits, count):
            nonlocal mu
            tokens, mu = self.choose(logits, {**draw, "uniforms": uniforms[:, count], "mu": mu, "counts": counts})
            tokens = np.asarray(tokens)
            counts[np.arange(len(counts)), tokens] += 1
            return tokens

        return (*self._loop(chosen, cache, tokens, positions, ends), mu)

    def _loop(self, choose, cache, tokens, positions, ends):
        made, running, count = np.zeros((len(tokens), CHUNK), "int32"), ends["running"].copy(), 0
        while count < ends["limit"] and running.sum() >= ends["least"]:
            # Slots that ended compute along elsewhere; here they are left out.
            logits, _, cache = self.logits(cache, np.asarray(tokens)[:, None], np.asarray(positions) + count, ())
            tokens = made[:, count] = choose(logits[:, 0], count)
            running &= (tokens[:, None] != ends["stops"]).all(axis=1)
            count += 1
        return made, count, cache


class _Context:
    """llama.cpp's memory of some sequences."""

    def __init__(self, programs: LlamaCpp, slots: int, length: int):
        c = self._c = programs._c
        self.programs, self.slots, self.length = programs, slots, length
        settings = c.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = slots * length, slots
        settings.n_batch = settings.n_ubatch = MOST_TOKENS
        settings.n_threads = settings.n_threads_batch = programs.threads
        if programs.kind == "f32":
            settings.type_k = settings.type_v = c.GGML_TYPE_F32
        self._context = c.llama_init_from_model(programs._model, settings)
        if not self._context:
            raise MemoryError(f"llama.cpp has no room for {slots} sequences of {length} tokens.")
        self._memory = c.llama_get_memory(self._context)
        self._batch = c.llama_batch_init(MOST_TOKENS, 0, 1)

    def __del__(self):
        if getattr(self, "_context", None):
            self._c.llama_batch_free(self._batch)
            self._c.llama_free(self._context)

    def feed(self, slots, token_ids, positions, with_logits: bool = False):
        """Reads (slots, width) tokens at `positions`, in place of what was there and after it."""
        token_ids, positions = np.asarray(token_ids), np.asarray(positions)
        width = token_ids.shape[1]
        places = []
        for row, slot in enumerate(slots):
            self._c.llama_memory_seq_rm(self._memory, slot, int(positions[row]), -1)
            room = min(width, self.length - int(positions[row]))  # What fills a row up may lie beyond the end.
            places += [(row, slot, column, int(positions[row]) + column) for column in range(room)]
        logits = np.zeros((*token_ids.shape, self.programs.vocabulary_size), "float32") if with_logits else None
        for begin in range(0, len(places), MOST_TOKENS):
            part = places[begin : begin + MOST_TOKENS]
            self._decode(part, token_ids, with_logits)
            for i, (row, _, column, _) in enumerate(part if with_logits else ()):
                found = self._c.llama_get_logits_ith(self._context, i)
                logits[row, column] = np.ctypeslib.as_array(found, (logits.shape[-1],))
        return logits

    def copy(self, rows) -> None:
        """Slot i holds what slot rows[i] held; a slot that is copied stays as it is."""
        for new, old in enumerate(map(int, rows)):
            if new != old:
                self._c.llama_memory_seq_rm(self._memory, new, -1, -1)
                self._c.llama_memory_seq_cp(self._memory, old, new, -1, -1)

    def _decode(self, places, token_ids, with_logits: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(places)
        for i, (row, slot, column, position) in enumerate(places):
            batch.token[i], batch.pos[i] = int(token_ids[row, column]), position
            batch.n_seq_id[i], batch.logits[i] = 1, with_logits
            batch.seq_id[i][0] = slot
        if status := self._c.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp could not read {len(places)} tokens: llama_decode ended with {status}.")


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
