"""What a request's next token may not be, told on the host from its tokens so far.

A constraint adds to a bias that is added to the logits. The bias of some holds for many tokens, which can then be
made in one call; of others for one.
"""

import math
import numbers
from collections.abc import Iterable, Sequence

import numpy as np

from kerasllm.generation.sampling import NEVER

FOREVER = 2**31 - 1
MAX_BIAS = 1e4  # more would drown the logits' own differences in rounding


class Constraint:
    """One of the things below; a request's own, where it follows the tokens."""

    def add_to(self, bias: np.ndarray, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Adds to `bias`, float32 (vocabulary,), in place; `NEVER` forbids.

        Args:
            prompt: the prompt's token ids.
            tokens: the answer's, so far.
        """
        raise NotImplementedError

    def holds_for(self, count: int) -> int:
        """How many more tokens can be made with one bias, when `count` have been made."""
        return 1

    def finished(self, tokens: Sequence[int]) -> bool:
        """Whether no token can follow, so that the answer ends here even without a stop token."""
        return False

    def complete(self, tokens: Sequence[int]) -> bool:
        """Whether the answer may end here."""
        return True

    def forces(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether the next token is given, so that a search does not count its likelihood."""
        return False


def bias_of(constraints, prompt, tokens, vocabulary_size: int) -> np.ndarray | None:
    """The bias of all of a request's constraints, float32 (vocabulary_size,); `None` if there are no constraints."""
    if not constraints:
        return None
    bias = np.zeros(vocabulary_size, "float32")
    for constraint in constraints:
        constraint.add_to(bias, prompt, tokens)
    return bias


def holds_for(constraints, count: int) -> int:
    """How many more tokens can be made with one `bias_of`, when `count` have been made."""
    return min((constraint.holds_for(count) for constraint in constraints), default=FOREVER)


def constraints_of(
    vocabulary_size: int,
    stop_token_ids: Iterable[int] = (),
    no_repeat_ngram_size: int = 0,
    bad_words: Sequence[Sequence[int]] = (),
    min_new_tokens: int = 0,
    logit_bias: dict[int, float] | None = None,
    suppress_tokens: Sequence[int] = (),
    begin_suppress_tokens: Sequence[int] = (),
    forced_bos_token_id: int | None = None,
    forced_eos_token_id: int | Sequence[int] | None = None,
    max_new_tokens: int | None = None,
) -> list[Constraint]:
    """The constraints that `generate`'s arguments mean; those left at their defaults make none.

    Args:
        vocabulary_size: ids must be below it.
        stop_token_ids: what `min_new_tokens` forbids.
        no_repeat_ngram_size: see `NoRepeatNGram`.
        bad_words: see `BadWords`.
        min_new_tokens: see `MinNewTokens`.
        logit_bias: see `LogitBias`.
        suppress_tokens: see `Suppress`.
        begin_suppress_tokens: see `SuppressAtBegin`.
        forced_bos_token_id: see `ForcedBegin`.
        forced_eos_token_id: see `ForcedEnd`, for which `max_new_tokens` is needed.

    Raises:
        ValueError: a value of another kind, out of range, or an id outside the vocabulary.

    Example:
    ```python
    constraints = constraints_of(1000, stop_token_ids=[0], min_new_tokens=3, logit_bias={7: -100.0})
    bias = bias_of(constraints, prompt=[5, 6], tokens=[], vocabulary_size=1000)
    ```
    """
    made = []
    if logit_bias:
        made.append(LogitBias(logit_bias))
    if no_repeat_ngram_size:
        made.append(NoRepeatNGram(no_repeat_ngram_size))
    if len(bad_words):
        made.append(BadWords(bad_words))
    if min_new_tokens:
        made.append(MinNewTokens(min_new_tokens, stop_token_ids))
    if forced_bos_token_id is not None:
        made.append(ForcedBegin(forced_bos_token_id))
    if forced_eos_token_id is not None:
        made.append(ForcedEnd(forced_eos_token_id, max_new_tokens))
    if len(suppress_tokens):
        made.append(Suppress(suppress_tokens))
    if len(begin_suppress_tokens):
        made.append(SuppressAtBegin(begin_suppress_tokens, forced_bos_token_id is not None))
    for constraint in made:
        outside = [i for i in getattr(constraint, "token_ids", ()) if i >= vocabulary_size]
        if outside:
            raise ValueError(
                f"`{constraint.argument}` has token ids outside the vocabulary of {vocabulary_size}. "
                f"Received: {outside[:5]}"
            )
    return made


class LogitBias(Constraint):
    """Adds a number to some tokens' logits.

    Args:
        values: {token id: what is added}; −∞ forbids the token.

    Raises:
        ValueError: not ids and numbers, or numbers beyond ±10⁴.
    """

    argument = "logit_bias"

    def __init__(self, values: dict[int, float]):
        if not isinstance(values, dict):
            raise ValueError(f"`logit_bias` must be a dict of token ids and numbers. Received: {values!r}")
        for token, value in values.items():
            _check_id("logit_bias", token)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not (abs(value) <= MAX_BIAS or value == -math.inf):
                raise ValueError(
                    f"`logit_bias` must be numbers in [-{MAX_BIAS:g}, {MAX_BIAS:g}], or -inf to forbid a token. "
                    f"Received: {{{token}: {value!r}}}"
                )
        self.token_ids = list(values)
        self.values = np.maximum(np.array(list(values.values()), "float32"), NEVER)

    def add_to(self, bias, prompt, tokens):
        bias[self.token_ids] += self.values

    def holds_for(self, count):
        return FOREVER


class NoRepeatNGram(Constraint):
    """Forbids what would complete a run of `size` tokens that the prompt and the answer have had already.

    Args:
        size: of the runs, in tokens; 1 lets no token come twice.

    Raises:
        ValueError: `size` is not a whole number above 0.

    Reference: Paulus et al. (2017).
    """

    def __init__(self, size: int):
        self.size = _whole("no_repeat_ngram_size", size)

    def add_to(self, bias, prompt, tokens):
        ids = np.array([*prompt, *tokens], "int64")
        if len(ids) < self.size:
            return
        runs = np.lib.stride_tricks.sliding_window_view(ids, self.size)
        begun = (runs[:, :-1] == ids[len(ids) + 1 - self.size :]).all(axis=1)
        bias[runs[begun, -1]] = NEVER


class BadWords(Constraint):
    """Forbids the last token of each of some sequences where the ones before it are the last of prompt and answer.

    Args:
        words: sequences of token ids. A word may be spelled in more ways than one, such as after a space.

    Raises:
        ValueError: a word is empty, or not of ids.
    """

    argument = "bad_words"

    def __init__(self, words: Sequence[Sequence[int]]):
        if isinstance(words, str) or any(isinstance(word, str | int) or not len(word) for word in words):
            raise ValueError(
                f"`bad_words` must be a list of lists of token ids, none empty. Received: {words!r}. "
                "Words become ids with tokenizer.encode(word), once as they are and once after a space."
            )
        self.words = [list(word) for word in words]
        self.token_ids = sorted({_check_id("bad_words", token) for word in self.words for token in word})

    def add_to(self, bias, prompt, tokens):
        longest = max(len(word) for word in self.words) - 1
        recent = [*prompt[-longest:], *tokens[-longest:]] if longest else []
        for *begin, last in self.words:
            if len(begin) <= len(recent) and recent[len(recent) - len(begin) :] == begin:
                bias[last] = NEVER

    def holds_for(self, count):
        return FOREVER if all(len(word) == 1 for word in self.words) else 1


class MinNewTokens(Constraint):
    """Forbids the stop tokens until the answer has `count` tokens.

    Args:
        count: tokens.
        stop_token_ids: what is forbidden.

    Raises:
        ValueError: `count` is not a whole number above 0.
    """

    argument = "stop_token_ids"

    def __init__(self, count: int, stop_token_ids: Iterable[int]):
        self.count = _whole("min_new_tokens", count)
        self.token_ids = [_check_id("stop_token_ids", token) for token in stop_token_ids]

    def add_to(self, bias, prompt, tokens):
        if len(tokens) < self.count:
            bias[self.token_ids] = NEVER

    def holds_for(self, count):
        return self.count - count if count < self.count else FOREVER


class ForcedBegin(Constraint):
    """Lets only one token follow a prompt of one token: a decoder's start, which the language follows.

    Args:
        token: its id.
    """

    argument = "forced_bos_token_id"

    def __init__(self, token: int):
        self.token_ids = [_check_id(self.argument, token)]

    def forces(self, prompt, tokens):
        return len(prompt) == 1 and not len(tokens)

    def add_to(self, bias, prompt, tokens):
        if self.forces(prompt, tokens):
            _force(bias, self.token_ids)

    def holds_for(self, count):
        return FOREVER if count else 1


class ForcedEnd(Constraint):
    """Lets only some tokens be the last of an answer that has become as long as it may.

    Args:
        tokens: an id, or several.
        max_new_tokens: of the answer.
    """

    argument = "forced_eos_token_id"

    def __init__(self, tokens: int | Sequence[int], max_new_tokens: int):
        tokens = tokens if isinstance(tokens, list | tuple) else [tokens]
        self.token_ids = [_check_id(self.argument, token) for token in tokens]
        self.last = max_new_tokens - 1

    def forces(self, prompt, tokens):
        return len(tokens) == self.last

    def add_to(self, bias, prompt, tokens):
        if self.forces(prompt, tokens):
            _force(bias, self.token_ids)

    def holds_for(self, count):
        return self.last - count if count < self.last else 1


class Suppress(Constraint):
    """Forbids tokens.

    Args:
        token_ids: what is forbidden.
    """

    argument = "suppress_tokens"

    def __init__(self, token_ids: Sequence[int]):
        self.token_ids = [_check_id(self.argument, token) for token in token_ids]

    def add_to(self, bias, prompt, tokens):
        bias[self.token_ids] = NEVER

    def holds_for(self, count):
        return FOREVER


class SuppressAtBegin(Suppress):
    """Forbids tokens as the first of an answer, or as the second where the first one is forced.

    Args:
        token_ids: what is forbidden.
        forced: whether there is a `ForcedBegin`.
    """

    argument = "begin_suppress_tokens"

    def __init__(self, token_ids: Sequence[int], forced: bool):
        super().__init__(token_ids)
        self.forced = forced

    def add_to(self, bias, prompt, tokens):
        if len(tokens) == (self.forced and len(prompt) == 1):
            super().add_to(bias, prompt, tokens)

    def holds_for(self, count):
        return FOREVER if count > self.forced else 1


def _force(bias, token_ids) -> None:
    bias[:] = NEVER
    bias[token_ids] = 0


def _whole(name, value) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number above 0. Received: {name}={value!r}")
    return int(value)


def _check_id(name, token) -> int:
    if isinstance(token, bool) or not isinstance(token, numbers.Integral) or token < 0:
        raise ValueError(f"`{name}` must be of token ids, whole numbers from 0 on. Received: {token!r}")
    return int(token)
