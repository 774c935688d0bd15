"""llama.cpp in the place of a model's compiled programs: everything that makes tokens then runs on it."""

import ctypes
import functools
import tempfile
from pathlib import Path

import numpy as np

from kerasllm.compression.step_programs import StepPrograms
from kerasllm.interop.gguf import export_gguf

MOST_TOKENS = 512  # in one of its calls


class LlamaCpp(StepPrograms):
    """What makes tokens with llama.cpp.

    Args:
        model: a `CausalLM` that `export_gguf` takes. Later changes of its weights do not count.
        kind: of the weights, as in `export_gguf`.
        threads: as many as there are cores, when left out.

    Raises:
        ImportError: llama-cpp-python or gguf is not installed.
        ValueError: llama.cpp does not run such a model.
    """

    def __init__(self, model, kind: str = "q8_0", threads: int | None = None):
        try:
            import llama_cpp
        except ImportError as error:
            raise ImportError('llama.cpp needs `pip install "kerasllm[llama-cpp]"`, which compiles it') from error
        super().__init__(model, threads)
        self._c, self.kind = llama_cpp, kind
        _quieten()
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.gguf"
            export_gguf(model, path, kind, vocabulary=False)
            self.num_bytes = path.stat().st_size
            settings = llama_cpp.llama_model_default_params()
            settings.use_mmap = False  # The file goes away.
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise RuntimeError("llama.cpp does not read the file that was written for it.")

    def __del__(self):
        if getattr(self, "_model", None):
            self._c.llama_model_free(self._model)

    def empty_cache(self, slots: int, length: int) -> "_Context":
        return _Context(self, slots, length)


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
        for new, old in enumerate(rows):
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


@functools.cache
def _quieten():
    """Lets llama.cpp print nothing. What it calls instead must live as long as the library, so it is kept."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    return quiet
