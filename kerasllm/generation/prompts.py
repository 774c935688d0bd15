"""What is generated from: texts or token ids, fitted to the model, and where answers stop."""

import numbers

import keras
import numpy as np

from kerasllm.generation.defaults import token_ids

WHAT_PROMPTS_ARE = "A prompt is a string or a list of token ids, and prompts are a list of these"


def check_eager() -> None:
    """Refuses to make tokens inside of a function that is being compiled: it decides on their values, token by token.

    Raises:
        RuntimeError: inside `jax.jit`, `tf.function` or `Dataset.map`.
    """
    backend, inside = keras.backend.backend(), None
    if backend == "jax":
        import jax

        traced = isinstance(jax.numpy.zeros(()), jax.core.Tracer)
        inside = "jax.jit or another transformation" if traced else None
    elif backend == "tensorflow":
        import tensorflow as tf

        inside = None if tf.executing_eagerly() else "tf.function or Dataset.map"
    if inside:
        raise RuntimeError(
            f"`generate` cannot run inside {inside}: it looks at each token in Python, and compiles its own steps. "
            "Call it outside; a SavedModel (`export`) has `generate` as a graph."
        )


def outside_of_graphs(function):
    """The function, which torch.compile leaves out of its graphs: it runs as it is, with the values that it gets."""
    if keras.backend.backend() != "torch":
        return function
    import torch

    return torch.compiler.disable(function)


def token_prompts(model, prompts):
    """(list of token id lists, whether they came as text, whether there was only one).

    Raises:
        ValueError: anything but texts or token ids, none of them, or ids out of range.
    """
    texts = [prompts] if isinstance(prompts, str) else _as_list(prompts)
    if not texts:
        raise ValueError("There is no prompt. Received: an empty list")
    if all(isinstance(text, str) for text in texts):
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer, so prompts must be lists of token ids. Received: text")
        texts = [str(text) for text in texts]
        encoder = model.config.num_encoder_layers > 0
        rows = [model.encode_source(text) for text in texts] if encoder else model.tokenizer.encode_texts(texts)
        return rows, True, isinstance(prompts, str)
    if any(isinstance(text, str) for text in texts):
        raise ValueError(f"{WHAT_PROMPTS_ARE}, all texts or all ids. Received: {_shown(prompts)}")
    single = not any(_is_list(ids) for ids in texts)
    batch = [texts] if single else [_as_list(ids) for ids in texts]
    for ids in batch:
        if any(_is_list(i) or isinstance(i, bool | str | bytes) or not hasattr(i, "__index__") for i in ids):
            floats = all(isinstance(i, numbers.Real) for i in ids)
            wanted = "Token ids must be integers" if floats else WHAT_PROMPTS_ARE
            raise ValueError(f"{wanted}. Received: {_shown(prompts)}")
        model.check_token_ids(ids)
    return [[int(i) for i in ids] for ids in batch], False, single


def _as_list(values) -> list:
    """A list, tuple, array or tensor as a list."""
    if hasattr(values, "shape") and not isinstance(values, keras.KerasTensor):
        if len(values.shape) == 0 or "Symbolic" in type(values).__name__ or "Tracer" in type(values).__name__:
            raise ValueError(f"{WHAT_PROMPTS_ARE}. Received: {_shown(values)}")
        if not isinstance(values, np.ndarray):
            values = keras.ops.convert_to_numpy(values)
        return list(values)
    if not isinstance(values, list | tuple):
        remedy = " Make a list of it first: list(prompts)." if hasattr(values, "__iter__") else ""
        raise ValueError(f"{WHAT_PROMPTS_ARE}.{remedy} Received: {_shown(values)}")
    return list(values)


def _is_list(value) -> bool:
    return isinstance(value, list | tuple) or bool(getattr(value, "shape", ()))


def _shown(value) -> str:
    return f"{type(value).__name__}, {str(value)[:60]}"


def fit_prompt(model, ids: list[int]) -> list[int]:
    """A prompt, or the token that a text begins with where it is empty.

    Raises:
        ValueError: there is no such token.
    """
    if ids:
        return list(ids)
    tokenizer = model.tokenizer
    known = [*token_ids(model, "bos_token_id"), tokenizer and tokenizer.start_token_id, *stop_token_ids_of(model, None)]
    known = [token for token in known if token is not None]
    if not known:
        raise ValueError("The prompt is empty. Give at least one token to begin with.")
    return known[:1]  # The end token stands between documents: the model begins a new one.


def fit_context(model, ids, max_new_tokens, truncation):
    """A prompt that fits the model's context, together with its answer unless the context slides."""
    limit = model.config.max_sequence_length
    if truncation:
        return ids[-(limit - 1) :] if len(ids) >= limit else list(ids)
    if len(ids) >= limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, and the model's context is {limit}, with at least one to make. "
            "Shorten it, or pass truncation=True to keep its end."
        )
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"The prompt's {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the model's context of "
            f"{limit}. Ask for at most {limit - len(ids)}, or pass truncation=True to let the context slide."
        )
    return list(ids)


def fit_source(model, ids, truncation):
    limit = model.config.max_sequence_length
    if not ids:
        raise ValueError("The source is empty. Give at least one token.")
    if len(ids) > limit and not truncation:
        raise ValueError(
            f"The source has {len(ids)} tokens, and the encoder reads {limit}. "
            "Shorten it, or pass truncation=True to keep its beginning."
        )
    return list(ids[:limit])


def stop_strings(model, stop):
    if stop is None:
        return ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"`stop` must be a string or a list of strings, none empty. Received: {stop!r}")
    if model.tokenizer is None:
        raise ValueError("Stop strings need a tokenizer, and the model has none. Use `stop_token_ids`.")
    return stop


def stop_token_ids_of(model, ids) -> frozenset[int]:
    """The tokens that end an answer: those given, or all of generation_config.json, or the tokenizer's end token."""
    if ids is None:
        end = model.tokenizer.end_token_id if model.tokenizer else None
        return frozenset(token_ids(model, "eos_token_id") or ([] if end is None else [end]))
    ids = list(ids) if hasattr(ids, "__iter__") else [ids]
    if ids:
        model.check_token_ids(ids)
    return frozenset(int(i) for i in ids)
