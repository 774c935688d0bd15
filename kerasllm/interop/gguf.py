"""GGUF, the file of llama.cpp: GPT-2 and Llama models written with float32, float16, 8-bit or 4-bit weights."""

import math
from pathlib import Path

import numpy as np
from keras import ops

from kerasllm.files import written_aside
from kerasllm.generation.prompts import stop_token_ids_of
from kerasllm.interop import gpt2, llama
from kerasllm.interop.gguf_vocabulary import write_vocabulary
from kerasllm.layers.positions import rotary_rates
from kerasllm.layers.quantized import float_embeddings, float_head, float_kernel
from kerasllm.models.causal_lm import CausalLM

KINDS = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}  # our name → gguf's
BLOCK = 32  # weights that share a scale in q8_0 and q4_0
ACTIVATIONS = {"gpt2": "gelu_tanh", "llama": "silu"}  # the only ones that llama.cpp runs them with
ATTENTION = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output_dense": "attn_output"}


def export_gguf(model, path, kind: str = "f16", vocabulary: bool = True) -> None:
    """Writes a GPT-2 or a Llama for llama.cpp; whole or not at all.

    The file has a vocabulary if llama.cpp reads text with it just as the model's tokenizer does: a byte-level BPE that
    cuts texts as GPT-2, Llama 3, Qwen2 (without its normalizer) or SmolLM, and SentencePiece's BPE as Llama 2 has it.
    Without one, which is said in a warning, text is turned into ids, and back, by the model's own tokenizer.

    Args:
        model: a `CausalLM`, quantized or not; the weights of a quantized one are made floating point again first.
        path: of the file.
        kind: "f32", "f16", "q8_0" (8.5 bits a weight) or "q4_0" (4.5 bits). Norms, biases and positions are float32,
            and matrices whose rows are no multiple of 32 are float16.
        vocabulary: bool. `False` leaves it out, for a program that gives and takes token ids.

    Raises:
        ImportError: gguf is not installed.
        ValueError: an unknown kind, or a model of another family.

    Example:
    ```python
    export_gguf(model, "mine.gguf", "q8_0")
    ```
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize
    except ImportError as error:
        raise ImportError('GGUF files need gguf: pip install "kerasllm[llama-cpp]"') from error
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}")
    family = _family_of(model)
    with written_aside(path) as aside:
        writer = GGUFWriter(Path(aside), family)
        _write_config(writer, family, model.config)
        ends = sorted(stop_token_ids_of(model, None))
        write_vocabulary(writer, model.tokenizer if vocabulary else None, model.config.vocabulary_size, ends)
        for name, values in _tensors(model, family):
            values = np.ascontiguousarray(ops.convert_to_numpy(ops.cast(values, "float32")), "float32")
            its = "f32" if values.ndim == 1 or name == "position_embd.weight" else kind
            if its.startswith("q") and values.shape[-1] % BLOCK:
                its = "f16"
            form = GGMLQuantizationType[KINDS[its]]
            writer.add_tensor(name, values if its == "f32" else quantize(values, form), raw_dtype=form)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _family_of(model) -> str:
    config = model.config
    for family in (gpt2.FAMILY, llama.FAMILY):
        runs = config.activation == ACTIVATIONS[family.model_type]
        if runs and isinstance(model, CausalLM) and family.covers(model, "CausalLM"):
            return family.model_type
    raise ValueError(
        f"llama.cpp runs a CausalLM that is a GPT-2 (with gelu_tanh) or a Llama (with silu). Received: a "
        f"{type(model).__name__} with positions={config.positions!r}, norm={config.norm!r}, gated={config.gated}, "
        f"activation={config.activation!r}, num_heads={config.num_heads}, head_dim={config.head_dim}, "
        f"hidden_dim={config.hidden_dim}"
    )


def _write_config(writer, family: str, c) -> None:
    writer.add_context_length(c.max_sequence_length)
    writer.add_embedding_length(c.hidden_dim)
    writer.add_block_count(c.num_layers)
    writer.add_feed_forward_length(c.intermediate_dim)
    writer.add_head_count(c.num_heads)
    writer.add_vocab_size(c.vocabulary_size)
    if family == "gpt2":
        writer.add_layer_norm_eps(c.norm_epsilon)
        return
    writer.add_head_count_kv(c.num_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_epsilon)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)


def _tensors(model, family: str):
    """(name, values) of each tensor; matrices (out, in), as llama.cpp has them."""
    network, c = model.transformer, model.config
    tokens = network.embedding.tokens
    yield "token_embd.weight", float_embeddings(tokens)
    if not c.tie_embeddings:
        yield "output.weight", ops.transpose(float_head(tokens))
    if family == "gpt2":
        yield "position_embd.weight", network.embedding.positions.embeddings
    elif c.rope_scaling is not None:
        yield "rope_freqs.weight", _slowing(c)
    yield from _norm("output_norm", network.final_norm)
    for i, block in enumerate(network.blocks):
        name = f"blk.{i}"
        yield from _norm(f"{name}.attn_norm", block.attention_norm)
        yield from _norm(f"{name}.ffn_norm", block.feed_forward_norm)
        layers = {theirs: getattr(block.attention, ours) for ours, theirs in ATTENTION.items()}
        if family == "gpt2":
            parts = [[*_dense("", layers.pop(f"attn_{which}"))] for which in "qkv"]
            for same in zip(*parts):
                yield f"{name}.attn_qkv{same[0][0]}", ops.concatenate([values for _, values in same], axis=0)
        layers |= {f"ffn_{which}": getattr(block.feed_forward, which) for which in ("up", "down")}
        if c.gated:
            layers["ffn_gate"] = block.feed_forward.gate
        for theirs, layer in layers.items():
            for part, values in _dense(f"{name}.{theirs}", layer):
                yield part, _interleaved(values, c.head_dim) if theirs in ("attn_q", "attn_k") else values


def _dense(name: str, layer):
    yield f"{name}.weight", ops.transpose(float_kernel(layer))
    if layer.bias is not None:
        yield f"{name}.bias", ops.convert_to_tensor(layer.bias)


def _norm(name: str, layer):
    if hasattr(layer, "scale") and not hasattr(layer, "gamma"):
        yield f"{name}.weight", ops.convert_to_tensor(layer.scale)
        return
    yield f"{name}.weight", ops.convert_to_tensor(layer.gamma)
    if layer.beta is not None:
        yield f"{name}.bias", ops.convert_to_tensor(layer.beta)


def _interleaved(values, head_dim: int):
    """The outputs of each head in the order in which llama.cpp rotates them: those of a pair side by side."""
    shape = tuple(values.shape)
    heads = ops.reshape(values, (shape[0] // head_dim, 2, head_dim // 2, math.prod(shape[1:])))
    return ops.reshape(ops.transpose(heads, (0, 2, 1, 3)), shape)


def _slowing(c):
    """What each rotary frequency is divided by."""
    return (rotary_rates(c.head_dim, c.rope_theta) / rotary_rates(c.head_dim, c.rope_theta, c.rope_scaling)).astype(
        "float32"
    )
