"""Replaced-token detection: tell which tokens of a text are not its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kerasllm.data.order import uniforms
from kerasllm.data.rows import Rows
from kerasllm.objectives.corruption import check_rate, choose, inputs, is_special
from kerasllm.objectives.masked import MaskedLM

NUM_DRAWS = 2**24  # as many as float32 tells apart in [0, 1)


def corrupt(tokens: np.ndarray, chosen: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """`tokens` with the sampled ones where `chosen`: int32, all of one shape.

    Example:

    ```python
    corrupt(np.array([5, 6, 7]), np.array([False, True, False]), np.array([1, 2, 3]))  # [5, 2, 7]
    ```
    """
    return np.where(chosen, sampled, tokens).astype(np.int32)


def replaced(original: np.ndarray, corrupted: np.ndarray) -> np.ndarray:
    """The discriminator's targets, int32: 1 where a token is not the original one.

    A sample that happens to be the original token counts as original, as in ELECTRA.

    Example:

    ```python
    replaced(np.array([5, 6, 7]), np.array([5, 2, 7]))  # [0, 1, 0]
    ```
    """
    return (np.asarray(original) != np.asarray(corrupted)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class ReplacedTokens:
    """ELECTRA's discriminator with a generator that needs no training: tokens drawn by their frequency.

    Source: Clark et al. (2020), "ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators";
    section 3.2 tries such a unigram generator, too.

    Args:
        frequencies: (vocabulary,), not negative: how often each token is drawn, in any unit. Ones are a uniform
            generator.
        rate: part of the tokens to draw anew, in (0, 1].
        special_token_ids: tokens that are neither replaced nor drawn.

    Called with `Rows` of n positions, returns:
        x: as `MaskedLM`, with the corrupted tokens.
        y: int32 (b, n), 1 where a token was replaced by another.
        sample_weight: float32 (b, n), 0 for padding.

    Raises:
        ValueError: a setting out of range, or rows without `keys`.

    Example:

    ```python
    objective = ReplacedTokens(np.bincount(tokens.ravel(), minlength=100), special_token_ids=range(5))
    x, y, weights = objective(Rows(tokens, keys=row_keys(0, 0, np.arange(len(tokens)))))
    ```
    """

    frequencies: np.ndarray
    rate: float = 0.15
    special_token_ids: Sequence[int] = ()

    def __post_init__(self):
        check_rate(self.rate)
        frequencies = np.asarray(self.frequencies, np.float64)
        if frequencies.ndim != 1 or (frequencies < 0).any() or not np.isfinite(frequencies).all():
            raise ValueError(
                "`frequencies` must be one finite number for each token, none negative. "
                f"Received: shape={frequencies.shape}, smallest={frequencies.min(initial=np.inf)}"
            )
        if not frequencies[~self._special].any():
            raise ValueError("`frequencies` are 0 for all ordinary tokens: there is none to draw. Received: zeros")

    def __call__(self, rows: Rows) -> tuple:
        tokens = rows.tokens[:, :-1]
        present = np.ones(tokens.shape, bool) if rows.present is None else rows.present
        chosen = choose(tokens, rows.keys, self.rate, present & ~self._special[tokens])
        drawn = np.searchsorted(self._cumulative, uniforms(rows.keys, tokens.shape[1], stream=1), side="right")
        corrupted = corrupt(tokens, chosen, drawn)
        return inputs(rows, corrupted), replaced(tokens, corrupted), present.astype(np.float32)

    @cached_property
    def _special(self) -> np.ndarray:
        return is_special(len(self.frequencies), tuple(self.special_token_ids))

    @cached_property
    def _cumulative(self) -> np.ndarray:
        """Up to and with each token, of a total of exactly 1: what a uniform number falls below."""
        frequencies = np.where(self._special, 0, np.asarray(self.frequencies, np.float64))
        cumulative = np.cumsum(frequencies)
        return cumulative / cumulative[-1]


@dataclass(frozen=True, eq=False)
class GeneratedTokens:
    """ELECTRA's data: hidden tokens for the model's own generator to fill in, and the numbers that it draws with.

    The places are listed, so that the generator's head, the largest product of a step, is computed for them only. One
    number a place decides what is drawn there: the draw is a function of (seed, pass, row) and of the weights.

    Source: Clark et al. (2020), "ELECTRA".

    Args:
        mask_token_id: the token that hides another.
        vocabulary_size: tokens there are.
        rate: part of the tokens to hide, in (0, 1].
        special_token_ids: tokens that are never hidden.

    Called with `Rows` of n positions, returns:
        x: as `MaskedLM`, with all chosen tokens hidden; `"masked_positions"` int32 (b, m), where they are, filled up
            with n; and `"draws"` int32 (b, m), random in [0, 2**24). (Keras would round floats in mixed precision.)
        y: int32 (b, n), the original tokens.
        sample_weight: float32 (b, n), 0 for padding.

    Raises:
        ValueError: a setting out of range, or rows without `keys`.

    Example:

    ```python
    objective = GeneratedTokens(mask_token_id=4, vocabulary_size=100, special_token_ids=range(5))
    x, y, weights = objective(Rows(tokens, keys=row_keys(0, 0, np.arange(len(tokens)))))
    ```
    """

    mask_token_id: int
    vocabulary_size: int
    rate: float = 0.15
    special_token_ids: Sequence[int] = ()

    def __post_init__(self):
        _ = self._masked  # checks the settings

    def __call__(self, rows: Rows) -> tuple:
        tokens = rows.tokens[:, :-1]
        n = tokens.shape[1]
        present = np.ones(tokens.shape, bool) if rows.present is None else rows.present
        corrupted, chosen = self._masked.corrupt(tokens, rows.keys, present)
        most = min(n, int(self.rate * n) + 1)
        places = np.argsort(~chosen, axis=1, kind="stable")[:, :most]
        places = np.where(np.take_along_axis(chosen, places, axis=1), places, n).astype(np.int32)
        draws = (uniforms(rows.keys, most, stream=3) * NUM_DRAWS).astype(np.int32)  # streams 0 to 2 are MaskedLM's
        x = {**inputs(rows, corrupted), "masked_positions": places, "draws": draws}
        return x, tokens, present.astype(np.float32)

    @cached_property
    def _masked(self) -> MaskedLM:
        return MaskedLM(
            self.mask_token_id,
            self.vocabulary_size,
            self.rate,
            self.special_token_ids,
            mask_fraction=1.0,
            random_fraction=0.0,
        )
