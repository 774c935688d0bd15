"""Objectives by name, built from a tokenizer's special tokens."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from kerasllm.data.rows import Rows
from kerasllm.objectives.infilling import FillInTheMiddle
from kerasllm.objectives.masked import MaskedLM, word_starts
from kerasllm.objectives.next_sentence import NextSentence
from kerasllm.objectives.next_token import causal
from kerasllm.objectives.prefix import prefix_lm
from kerasllm.objectives.replaced_tokens import GeneratedTokens, ReplacedTokens
from kerasllm.objectives.spans import SpanCorruption
from kerasllm.tokenizers import Tokenizer

# Prefix, middle and suffix as the tokenizers of Qwen, StarCoder and Code Llama spell them.
FILL_TOKENS = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("▁<PRE>", "▁<MID>", "▁<SUF>"),
)


def build(objective: str | Callable[[Rows], tuple], tokenizer: Tokenizer) -> Callable[[Rows], tuple]:
    """The objective of a name, with the usual settings and the tokenizer's special tokens; others as they are.

    Raises:
        ValueError: an unknown name, or a special token that the tokenizer lacks.

    Example:

    ```python
    objective = build("masked", tokenizer)
    ```
    """
    if callable(objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(
            f"`objective` must be one of {', '.join(OBJECTIVES)}, or a function of `Rows`. "
            f"Received: objective={objective!r}"
        )
    return OBJECTIVES[objective](tokenizer)


def _masked(tokenizer: Tokenizer, starts: np.ndarray | None = None) -> MaskedLM:
    mask = _needed(tokenizer, tokenizer.mask_token_id, "a mask token", "[MASK]")
    return MaskedLM(mask, tokenizer.vocabulary_size, special_token_ids=_special(tokenizer), word_starts=starts)


def _whole_word(tokenizer: Tokenizer) -> MaskedLM:
    return _masked(tokenizer, word_starts(tokenizer))


def _span(tokenizer: Tokenizer) -> SpanCorruption:
    sentinels = tuple(_sentinels(tokenizer))
    _needed(tokenizer, sentinels or None, "sentinels", "<extra_id_0>", "<extra_id_1>")
    end = _needed(tokenizer, tokenizer.end_token_id, "an end token", "</s>")
    pad = tokenizer.pad_token_id or 0
    return SpanCorruption(sentinels, end, pad, start_token_id=pad)


def _fill_in_the_middle(tokenizer: Tokenizer) -> FillInTheMiddle:
    spellings = ([_id(tokenizer, token) for token in tokens] for tokens in FILL_TOKENS)
    ids = next((ids for ids in spellings if None not in ids), None)
    ids = _needed(tokenizer, ids, "the three tokens of fill-in-the-middle", *FILL_TOKENS[0])
    return FillInTheMiddle(*ids, end_token_id=tokenizer.end_token_id)


def _replaced(tokenizer: Tokenizer) -> ReplacedTokens:
    return ReplacedTokens(np.ones(tokenizer.vocabulary_size), special_token_ids=_special(tokenizer))


def _generated(tokenizer: Tokenizer) -> GeneratedTokens:
    mask = _needed(tokenizer, tokenizer.mask_token_id, "a mask token", "[MASK]")
    return GeneratedTokens(mask, tokenizer.vocabulary_size, special_token_ids=_special(tokenizer))


def _next_sentence(tokenizer: Tokenizer) -> NextSentence:
    first = _needed(tokenizer, tokenizer.start_token_id, "a token that begins a text", "[CLS]")
    separator = _needed(tokenizer, tokenizer.end_token_id, "a token that separates texts", "[SEP]")
    return NextSentence(first, separator, tokenizer.pad_token_id or 0, masked=_masked(tokenizer))


OBJECTIVES: dict[str, Callable[[Tokenizer], Callable[[Rows], tuple]]] = {
    "causal": lambda tokenizer: causal,
    "masked": _masked,
    "whole_word": _whole_word,
    "span": _span,
    "prefix": lambda tokenizer: prefix_lm,
    "fim": _fill_in_the_middle,
    "replaced": _replaced,
    "generated": _generated,
    "next_sentence": _next_sentence,
}


def _needed(tokenizer: Tokenizer, value, what: str, *tokens: str):
    if value is None:
        spelled = ", ".join(f'"{token}"' for token in tokens)
        raise ValueError(
            f"This objective needs {what}, which the tokenizer lacks. Train it with "
            f"Tokenizer.train(..., special_tokens=[..., {spelled}]), or load one that has them. Received: {tokenizer} "
            f"with special_tokens={tokenizer.special_tokens}"
        )
    return value


def _special(tokenizer: Tokenizer) -> tuple[int, ...]:
    return tuple(tokenizer.token_to_id(token) for token in tokenizer.special_tokens)


def _sentinels(tokenizer: Tokenizer) -> Iterator[int]:
    for i in count():
        sentinel = _id(tokenizer, f"<extra_id_{i}>")
        if sentinel is None:
            return
        yield sentinel


def _id(tokenizer: Tokenizer, token: str) -> int | None:
    try:
        return tokenizer.token_to_id(token)
    except KeyError:
        return None
