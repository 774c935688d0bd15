"""llama.cpp as a contestant: a random GPT-2 in its own file format, float32, decoded by its C functions."""

import functools
import tempfile
from pathlib import Path
from typing import Any

from decode_contestants import Contestant, Tokens
from decode_shapes import PROMPT_LENGTH, Workload
from peers import Shape


def write_gguf(path: Path, shape: Shape) -> None:
    """Write a GPT-2 with random weights and without a vocabulary's texts."""
    import numpy as np
    from gguf import GGUFWriter

    width, random = shape.hidden_dim, np.random.default_rng(0)
    writer = GGUFWriter(path, "gpt2")
    writer.add_context_length(shape.sequence_length)
    writer.add_embedding_length(width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(shape.num_heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape.vocabulary_size)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, "float32"))
        writer.add_tensor(f"{name}.bias", np.zeros(width, "float32"))

    def matrix(name: str, outputs: int, inputs: int) -> None:
        writer.add_tensor(f"{name}.weight", np.float32(0.02) * random.standard_normal((outputs, inputs), "float32"))

    def dense(name: str, outputs: int, inputs: int) -> None:
        matrix(name, outputs, inputs)
        writer.add_tensor(f"{name}.bias", np.zeros(outputs, "float32"))

    matrix("token_embd", shape.vocabulary_size, width)
    matrix("position_embd", shape.sequence_length, width)
    norm("output_norm")
    for layer in range(shape.num_layers):
        norm(f"blk.{layer}.attn_norm")
        dense(f"blk.{layer}.attn_qkv", 3 * width, width)
        dense(f"blk.{layer}.attn_output", width, width)
        norm(f"blk.{layer}.ffn_norm")
        dense(f"blk.{layer}.ffn_up", 4 * width, width)
        dense(f"blk.{layer}.ffn_down", width, 4 * width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_llama(workload: Workload, threads: int) -> Contestant:
    """llama.cpp with its own defaults (a float16 cache among them), through llama-cpp-python's C functions.

    A batch is that many sequences in one context, each step one call for all of them.

    Raises:
        ImportError: llama-cpp-python or gguf is not installed.
    """
    try:
        import gguf  # noqa: F401
        import llama_cpp as c
    except ImportError as error:
        raise ImportError('llama.cpp needs `pip install "kerasllm[bench]"`, which compiles it') from error
    import numpy as np

    vocabulary_size = workload.model.vocabulary_size
    c.llama_backend_init()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, workload.model)
        model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp does not read the model that was written for it")

    @functools.cache
    def context_for(sequences: int, length: int) -> tuple[Any, Any]:
        """A context for so many sequences of at most this length, and the buffers of a batch."""
        settings = c.llama_context_default_params()
        settings.n_ctx = sequences * length
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        context = c.llama_init_from_model(model, settings)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context for {sequences} sequences of {length} tokens")
        return context, c.llama_batch_init(sequences * PROMPT_LENGTH, 0, 1)

    def step(context: Any, batch: Any, tokens: Any, position: int) -> Any:
        """Read tokens (sequences, length) at `position` and what follows it; returns the next, (sequences, 1)."""
        sequences, length = tokens.shape
        batch.n_tokens = tokens.size
        for place, token in enumerate(tokens.flat):
            sequence, i = divmod(place, length)
            batch.token[place] = int(token)
            batch.pos[place] = position + i
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = i == length - 1
        if status := c.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode ended with status {status}")
        logits = [c.llama_get_logits_ith(context, length * (i + 1) - 1) for i in range(sequences)]
        return np.array([[np.ctypeslib.as_array(row, (vocabulary_size,)).argmax()] for row in logits])

    def answer(prompts: Any, new_tokens: int) -> Tokens:
        context, batch = context_for(len(prompts), PROMPT_LENGTH + new_tokens)
        c.llama_memory_clear(c.llama_get_memory(context), True)
        made = [step(context, batch, prompts, 0)]
        for position in range(PROMPT_LENGTH, PROMPT_LENGTH + new_tokens - 1):
            made.append(step(context, batch, made[-1], position))
        return np.concatenate(made, axis=1).tolist()

    return Contestant(answer, lambda prompts, new_tokens: answer(prompts, 1)[0][0])
