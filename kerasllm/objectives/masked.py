"""Masked language modelling: hide some tokens, predict them from both sides."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows
from kerasllm.objectives.corruption import check_rate, choose, inputs, is_special
from kerasllm.tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """BERT's masked language model: of the chosen tokens most are masked, some replaced at random, some kept.

    The choice is another one in each pass over the data (as RoBERTa's, Liu et al., 2019).

    Source: Devlin et al. (2018), "BERT: Pre-training of Deep Bidirectional Transformers".

    Args:
        mask_token_id: the token that hides another.
        vocabulary_size: tokens there are; a random replacement is any of them that is not special.
        rate: part of the tokens to choose, in (0, 1].
        special_token_ids: tokens that are never chosen; the mask token need not be listed.
        mask_fraction, random_fraction: parts of the chosen tokens that become the mask token, and a random one. The
            rest are kept, and count as well.
        word_starts: bool (vocabulary,): True where a token begins a word, to choose whole words (see
            `word_starts`). `None` chooses single tokens.

    Called with `Rows` of n positions, returns:
        x: `"token_ids"` int32 (b, n), corrupted; `"document_ids"` and `"positions"` if the rows have them, else
            `"padding_mask"` bool (b, n) if they may have padding.
        y: int32 (b, n), the original tokens.
        sample_weight: float32 (b, n), 1 where a token was chosen: at least one in each row that has an ordinary
            token.

    Raises:
        ValueError: a setting out of range, or rows without `keys`.

    Example:

    ```python
    objective = MaskedLM(mask_token_id=4, vocabulary_size=100, special_token_ids=range(5))
    x, y, weights = objective(Rows(tokens, keys=row_keys(0, 0, np.arange(len(tokens)))))
    ```
    """

    mask_token_id: int
    vocabulary_size: int
    rate: float = 0.15
    special_token_ids: Sequence[int] = ()
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    word_starts: np.ndarray | None = None

    def __post_init__(self):
        check_rate(self.rate)
        if min(self.mask_fraction, self.random_fraction) < 0 or self.mask_fraction + self.random_fraction > 1:
            raise ValueError(
                "`mask_fraction` and `random_fraction` must not be negative, and at most 1 together. Received: "
                f"mask_fraction={self.mask_fraction}, random_fraction={self.random_fraction}"
            )
        if self.word_starts is not None and np.shape(self.word_starts) != (self.vocabulary_size,):
            raise ValueError(
                f"`word_starts` must have an entry for each of the {self.vocabulary_size} tokens. "
                f"Received: shape={np.shape(self.word_starts)}"
            )
        if self._special.all():
            raise ValueError(
                f"All {self.vocabulary_size} tokens are special: there is none to mask. "
                f"Received: special_token_ids={self.special_token_ids}"
            )

    def __call__(self, rows: Rows) -> tuple:
        tokens = rows.tokens[:, :-1]
        present = np.ones(tokens.shape, bool) if rows.present is None else rows.present
        corrupted, chosen = self.corrupt(tokens, rows.keys, present)
        return inputs(rows, corrupted), tokens, chosen.astype(np.float32)

    def corrupt(self, tokens: np.ndarray, keys: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrupted tokens int32 (b, n), and which were chosen, bool (b, n), of tokens and where they are present.

        Draws from streams 0, 1 and 2 of the keys.
        """
        n = tokens.shape[1]
        starts = None if self.word_starts is None else np.asarray(self.word_starts, bool)
        chosen = choose(tokens, keys, self.rate, present & ~self._special[tokens], starts)
        fate = uniforms(keys, n, stream=1)
        ordinary = np.flatnonzero(~self._special)
        drawn = ordinary[(uniforms(keys, n, stream=2) * len(ordinary)).astype(np.int64)]
        replacement = np.where(fate < self.mask_fraction, self.mask_token_id, drawn)
        corrupted = chosen & (fate < self.mask_fraction + self.random_fraction)
        return np.where(corrupted, replacement, tokens).astype(np.int32), chosen

    @cached_property
    def _special(self) -> np.ndarray:
        return is_special(self.vocabulary_size, (*self.special_token_ids, self.mask_token_id))


def word_starts(tokenizer: Tokenizer) -> np.ndarray:
    """bool (vocabulary,): True for the tokens that begin a word, by how the tokenizer spells them.

    WordPiece marks what continues a word (`##`); the others mark, or are, the space before it, and there whatever
    begins with a letter or digit continues a word. Punctuation is a word of its own.

    Example:

    ```python
    objective = MaskedLM(4, tokenizer.vocabulary_size, word_starts=word_starts(tokenizer))
    ```
    """
    tokens = [tokenizer.id_to_token(token_id) or "" for token_id in range(tokenizer.vocabulary_size)]
    if tokenizer.kind == "wordpiece":
        return np.array([not token.startswith("##") for token in tokens])
    # GPT-2 spells the bytes of space, tab, new line and return as these letters.
    blanks = ("Ġ", "ĉ", "Ċ", "č") if tokenizer.kind in ("bpe", "byte") else ()
    return np.array([token.startswith(blanks) or not token[:1].isalnum() for token in tokens])
