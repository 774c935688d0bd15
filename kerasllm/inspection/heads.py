"""What heads do by habit: look one token back, or at what came after the same token before."""

import numpy as np
from keras import ops

from kerasllm.models.language_model import no_gradient

ROWS, MOST_TOKENS = 4, 32  # sequences, and tokens in each before they repeat


def previous_token_scores(model, seed: int = 0) -> np.ndarray:
    """How much of each head's attention goes to the token before, on random tokens.

    Args:
        model: of one stack.
        seed: of the tokens.

    Returns:
        (layers, heads), from 0 to 1.

    Raises:
        ValueError: a model with an encoder, or one that reads fewer than four tokens.

    Example:
    ```python
    previous_token_scores(model).argmax()
    ```

    Reference: Olsson et al. (2022), "In-context Learning and Induction Heads".
    """
    weights, _ = _attention_to_repeated(model, seed)
    return np.diagonal(weights, offset=-1, axis1=-2, axis2=-1).mean(axis=(1, 3))


def induction_scores(model, seed: int = 0) -> np.ndarray:
    """How much of each head's attention goes to the token after the same token before, on random tokens that repeat.

    Of `A B C A B C`, an induction head on the second `A` looks at the first `B`, which it then predicts.

    Args:
        model: a causal model of one stack.
        seed: of the tokens.

    Returns:
        (layers, heads), from 0 to 1.

    Raises:
        ValueError: a model with an encoder or one that is not causal, or one that reads fewer than four tokens.

    Example:
    ```python
    induction_scores(model).max()
    ```

    Reference: Olsson et al. (2022), "In-context Learning and Induction Heads".
    """
    if not model.config.causal:
        raise ValueError(f"Induction is of causal models. Received: a {type(model).__name__} with causal=False")
    weights, period = _attention_to_repeated(model, seed)
    return np.diagonal(weights, offset=1 - period, axis1=-2, axis2=-1)[..., 1:].mean(axis=(1, 3))


def _attention_to_repeated(model, seed: int) -> tuple[np.ndarray, int]:
    """(layers, rows, heads, length, length) for random tokens that come twice, and after how many they repeat."""
    if model.config.num_encoder_layers:
        raise ValueError(f"Scores of heads are of models with one stack. Received: a {type(model).__name__}")
    period = min(MOST_TOKENS, model.config.max_sequence_length // 2)
    if period < 2:
        limit = model.config.max_sequence_length
        raise ValueError(f"The model must read at least 4 tokens. Received: max_sequence_length={limit}")
    tokenizer, known = model.tokenizer, np.arange(model.config.vocabulary_size)
    if tokenizer is not None:
        special = [tokenizer.token_to_id(token) for token in tokenizer.special_tokens]
        known = np.setdiff1d(known[: tokenizer.vocabulary_size], special)
    once = np.random.default_rng(seed).choice(known, (ROWS, period)).astype("int32")
    with no_gradient():
        _, _, attentions = model.transformer(np.concatenate([once, once], axis=1), training=False, trace=True)
    return np.stack([ops.convert_to_numpy(each) for each in attentions]).astype("float32"), period
