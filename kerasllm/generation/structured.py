"""Answers of a given form: a regular expression, a JSON schema or one of a list, kept to by llguidance.

A token is spelled in bytes, and llguidance tells which tokens the bytes so far may be followed by. The end of an
answer is no token of the grammar's: the request's own stop tokens are allowed where the grammar is complete.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np

from kerasllm.generation.constraints import Constraint
from kerasllm.generation.sampling import NEVER
from kerasllm.tokenizers import Tokenizer, byte_alphabet

# As json.dumps writes it. With free whitespace a model may write spaces without end.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """The form of an answer; made once and used for any number of requests.

    Give one of `regex`, `json_schema` and `choice`.

    Args:
        tokenizer: of the model. Its tokens must spell text one after another: char, byte, BPE and Unigram
            do, WordPiece does not.
        regex: what the whole answer matches. Without look-around and references back; `\\d`, `\\w` and `\\s` of
            ASCII only.
        json_schema: a dict, or a JSON string of one. The answer is written as `json.dumps` does by default.
        choice: strings, one of which is the answer.

    Raises:
        ImportError: llguidance is not installed.
        ValueError: malformed, impossible, not supported by llguidance, or not to be begun with this tokenizer.

    Example:
    ```python
    grammar = Grammar(model.tokenizer, choice=["yes", "no"])
    constraint = grammar.constraint(stop_token_ids=[model.tokenizer.end_token_id])
    bias = bias_of([constraint], prompt=[5, 6], tokens=[], vocabulary_size=model.config.vocabulary_size)
    ```

    Reference: https://github.com/guidance-ai/llguidance
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        regex: str | None = None,
        json_schema: dict | str | None = None,
        choice: Sequence[str] | None = None,
    ):
        given = {"regex": regex, "json_schema": json_schema, "choice": choice}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"Give one of `regex`, `json_schema` and `choice`. Received: {', '.join(given) or 'none of them'}"
            )
        ((name, value),) = given.items()
        llguidance = _llguidance()
        source = {"regex": _regex, "json_schema": _json_schema, "choice": _choice}[name](value)
        vocabulary = _vocabulary(tokenizer)
        error = llguidance.LLMatcher.validate_grammar(source, vocabulary)
        if error and not error.startswith("WARNING"):
            raise ValueError(f"`{name}` is impossible or not supported: {error.strip()}. Received: {name}={value!r}")
        self.size = tokenizer.vocabulary_size
        self._matcher = llguidance.LLMatcher(vocabulary, source, log_level=0)
        if not _allowed(self._matcher, self.size).any():
            raise ValueError(
                f"No token of this tokenizer ({self.size} of kind {tokenizer.kind!r}) can begin an answer of this "
                f"form. Received: {name}={value!r}"
            )

    def constraint(self, stop_token_ids: Iterable[int] = ()) -> "GrammarConstraint":
        """One request's constraint to this form; `stop_token_ids` may come once the answer is complete."""
        return GrammarConstraint(self._matcher.deep_copy(), self.size, stop_token_ids)


class GrammarConstraint(Constraint):
    """Lets through what a grammar allows next; made by `Grammar.constraint`.

    It follows the tokens that it is shown, also back, where some of them were taken away again.
    """

    def __init__(self, matcher, size, stop_token_ids):
        self._matcher, self._size, self._stop_token_ids = matcher, size, list(stop_token_ids)
        self._tokens, self._taken = [], 0  # shown, and how many of them the grammar took
        self._allowed = _allowed(matcher, size)

    def add_to(self, bias, prompt, tokens):
        self._follow(tokens)
        stops = bias[self._stop_token_ids]
        bias[: self._size][~self._allowed] = NEVER
        bias[self._size :] = NEVER  # a padded vocabulary's
        # Where nothing can follow, the stop tokens are all there is.
        ends = self._matcher.is_accepting() or not self._allowed.any()
        bias[self._stop_token_ids] = stops if ends else NEVER

    def finished(self, tokens):
        self._follow(tokens)
        return not self._allowed.any()

    def complete(self, tokens: Sequence[int]) -> bool:
        """Whether the answer so far is of the form; more may still follow, unless it is also `finished`."""
        self._follow(tokens)
        return self._taken == len(tokens) and self._matcher.is_accepting()

    def _follow(self, tokens):
        tokens = list(tokens)
        if tokens == self._tokens:
            return
        shared = min(len(tokens), len(self._tokens))
        while self._tokens[:shared] != tokens[:shared]:
            shared -= 1
        if shared < self._taken:
            self._matcher.rollback(self._taken - shared)
            self._taken = shared
        if self._taken == shared:
            known = itertools.takewhile(lambda token: token < self._size, tokens[shared:])
            self._taken += self._matcher.try_consume_tokens(list(known))
        self._tokens = tokens
        if self._taken == len(tokens):
            self._allowed = _allowed(self._matcher, self._size)
        else:
            self._allowed = np.zeros(self._size, bool)  # other constraints left it nothing that it allows


def _llguidance():
    try:
        import llguidance
    except ImportError:
        raise ImportError(
            "Structured output needs llguidance. Install it with: pip install 'kerasllm[structured]'"
        ) from None
    return llguidance


def _regex(regex) -> str:
    if not isinstance(regex, str) or not regex:
        raise ValueError(f"`regex` must be a string, and not empty. Received: regex={regex!r}")
    ascii_classes = _llguidance().regex_to_lark(_encodable("regex", regex), use_ascii="dws")
    return _llguidance().LLMatcher.grammar_from_lark(f"start: /{ascii_classes}/")


def _json_schema(schema) -> str:
    try:
        schema = json.loads(schema if isinstance(schema, str) else json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`json_schema` is no JSON: {error}. Received: json_schema={schema!r}") from error
    if not isinstance(schema, dict):
        raise ValueError(f"`json_schema` must be a JSON object, a dict. Received: json_schema={schema!r}")
    return _llguidance().LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)


def _choice(strings) -> str:
    strings = [] if isinstance(strings, str) else list(strings)
    if not strings or not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"`choice` must be a list of strings, none empty. Received: choice={strings!r}")
    return _regex("|".join("".join(f"\\x{{{ord(c):x}}}" for c in _encodable("choice", s)) for s in strings))


def _encodable(name, text) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` holds a lone surrogate, which is no character. Received: {text!r}") from None
    return text


def _allowed(matcher, size) -> np.ndarray:
    """Mask of the tokens that may come next, bool (size,)."""
    return np.frombuffer(matcher.compute_logit_bias(), "uint8")[:size] > 0


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer):
    """A tokenizer as llguidance knows it."""
    return _llguidance().LLTokenizer(_Spelling(tokenizer))


class _Spelling:
    """What llguidance asks of a tokenizer, under its names: the tokens' bytes, one more for the end, and an encoder."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        spelled = [*token_bytes(tokenizer), None]
        self.tokens = [b"\xff<%d>" % i if text is None else text for i, text in enumerate(spelled)]
        self.special_token_ids = [i for i, text in enumerate(spelled) if text is None]
        self.eos_token_id = len(spelled) - 1
        self._ids = {text: i for i, text in enumerate(spelled) if text}
        self._longest = max(map(len, self._ids))

    def __call__(self, text):
        """Ids of what the grammar leaves no choice about: the tokenizer's own, where they spell just that."""
        try:
            ids = self._tokenizer.encode(text, parse_special=False)
        except ValueError:
            ids = []
        return ids if b"".join(self.tokens[i] for i in ids) == text.encode() else self._greedy(text.encode())

    def _greedy(self, text):
        """Ids of the longest tokens from the left, ending the answer where no token goes on."""
        ids = []
        while text:
            sizes = range(min(self._longest, len(text)), 0, -1)
            size = next((size for size in sizes if text[:size] in self._ids), 0)
            if not size:
                return [*ids, self.eos_token_id]
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """The bytes that each token adds to a text; `None` for special tokens and ids that no token has.

    Raises:
        ValueError: a token's bytes depend on its neighbours, as WordPiece's do.
    """
    rust = tokenizer._tokenizer
    decoder = json.dumps(json.loads(rust.to_str())["decoder"], ensure_ascii=False)
    added = rust.get_added_tokens_decoder()
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    spelled = []
    for i in range(tokenizer.vocabulary_size):
        token = rust.id_to_token(i)
        if token is None or (i in added and added[i].special):
            spelled.append(None)
        elif i in added:
            spelled.append(token.encode())
        elif "ByteLevel" in decoder:
            spelled.append(bytes(byte_of[character] for character in token))
        elif "ByteFallback" in decoder and len(token) == 6 and token.startswith("<0x"):
            spelled.append(bytes([int(token[3:5], 16)]))
        else:
            spelled.append((token.replace("▁", " ") if "▁" in decoder else token).encode())
    _check_spelling(tokenizer, spelled)
    return spelled


def _check_spelling(tokenizer, spelled):
    """Decodes some whole-character tokens in a row, to see that they come out as they are spelled."""
    whole = [i for i, text in enumerate(spelled) if text and b"\xff" not in text and _is_text(text)]
    sample = whole[:: max(1, len(whole) // 256)]
    expected = b"".join(spelled[i] for i in sample).decode()
    if tokenizer.decode(sample) not in (expected, expected.removeprefix(" ")):
        raise ValueError(
            f"Structured output needs tokens that spell text one after another, and those of this {tokenizer.kind} "
            "tokenizer do not. Use a char, byte, bpe or unigram tokenizer."
        )


def _is_text(text) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
