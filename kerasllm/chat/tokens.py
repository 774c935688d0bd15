"""A conversation's tokens, and which of them are the assistant's answers."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kerasllm.chat.messages import check_messages, is_learned
from kerasllm.chat.template import DEFAULT_TEMPLATE, render_template
from kerasllm.tokenizers import Tokenizer

# Noncharacters of Unicode: they go around what only spells a special token.
_PLAIN, _END = "\ufdd2", "\ufdd3"
_SPELLED = re.compile(f"{_PLAIN}(.*?){_END}", re.DOTALL)
_ALL_MARKS = re.compile("[\ufdd0-\ufdd3]")


class ChatTokens(NamedTuple):
    """A conversation as a model reads it.

    Attributes:
        token_ids: int32 (length,).
        is_answer: bool (length,), True on the tokens that the assistant would write, the one that ends its turn
            included.
    """

    token_ids: np.ndarray
    is_answer: np.ndarray


def render(tokenizer: Tokenizer, messages: Sequence[dict], add_generation_prompt: bool = False) -> str:
    """A conversation as text, by the tokenizer's chat template, or by `DEFAULT_TEMPLATE` if it has none.

    Args:
        tokenizer: whose template and special tokens are used.
        messages: dicts with "role" and "content"; see `check_messages`.
        add_generation_prompt: end with what the assistant's turn begins with.

    Raises:
        ValueError: a message or the template is wrong, or there is neither a template nor an end token.

    Example:

    ```python
    text = render(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    ```
    """
    messages = check_messages(messages)
    return render_template(template_of(tokenizer), messages, tokenizer.role_tokens, add_generation_prompt).text


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[dict]) -> list[int]:
    """Token ids of a conversation, up to where the assistant goes on.

    What only spells a special token in a message is read as plain text, so nobody can end a turn, or begin another,
    from inside a message.

    Args, Raises: as in `render`.

    Example:

    ```python
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
    ```
    """
    return _encode(tokenizer, _rendered(tokenizer, _marked(tokenizer, messages), True).text)[0]


def encode_conversation(tokenizer: Tokenizer, messages: Sequence[dict]) -> ChatTokens:
    """Token ids of a whole conversation, and which of them are answers. One whose "weight" is 0 does not count.

    Where the template has `{% generation %}` blocks, these are the answers. Otherwise an answer is what the text has
    more with an assistant turn than without it, the generation prompt left out, up to the last special token.

    Args, Raises: as in `render`; and a ValueError where the template does not let answers be told.

    Example:

    ```python
    tokens = encode_conversation(tokenizer, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    print(tokenizer.decode(tokens.token_ids[tokens.is_answer]))
    ```
    """
    messages = _marked(tokenizer, messages)
    whole, answers = _rendered(tokenizer, messages)
    ids, offsets = _encode(tokenizer, whole)
    starts, stops = np.array(offsets).reshape(-1, 2).T
    is_answer, derived = np.zeros(len(ids), bool), answers is None
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    for start, stop in _answers(tokenizer, messages, whole) if derived else _learned(answers, messages):
        places = np.flatnonzero((starts < stop) & (stops > start))
        ends = [place for place in places if ids[place] in special]
        is_answer[places[places <= ends[-1]] if derived and ends else places] = True
    return ChatTokens(np.array(ids, np.int32), is_answer)


def stop_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Tokens at which an answer is over: the one that ends the assistant's turn, and the tokenizer's end token."""
    exchange = [{"role": role, "content": ""} for role in ("user", "assistant")]
    ids, is_answer = encode_conversation(tokenizer, exchange)
    ends = ids[is_answer][-1:].tolist()
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    return sorted(({tokenizer.end_token_id} - {None}) | (special & set(ends)))


def template_of(tokenizer: Tokenizer) -> str:
    """The tokenizer's chat template, or the default one.

    Raises:
        ValueError: it has none, and no end token for the default one.
    """
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    if "eos_token" not in tokenizer.role_tokens:
        raise ValueError(
            "The tokenizer has no chat template, and no end token for the default one. Set `tokenizer.chat_template`, "
            'or train it with special_tokens=[..., "<|endoftext|>"]. '
            f"Received: {tokenizer} with special_tokens={tokenizer.special_tokens}"
        )
    return DEFAULT_TEMPLATE


def _rendered(tokenizer, messages, add_generation_prompt=False):
    return render_template(template_of(tokenizer), messages, tokenizer.role_tokens, add_generation_prompt)


def _learned(blocks, messages):
    """The blocks of a template that are of answers to learn."""
    turns = [message for message in messages if message["role"] == "assistant"]
    if all(map(is_learned, turns)):
        return blocks
    if len(blocks) != len(turns):
        raise ValueError(
            f"The chat template has {len(blocks)} {{% generation %}} blocks for {len(turns)} answers, so those of "
            "weight 0 cannot be told. Leave these conversations out."
        )
    return [block for block, turn in zip(blocks, turns) if is_learned(turn)]


def _answers(tokenizer, messages, whole):
    """Where the answers are in the text, found by leaving them out."""
    for number, message in enumerate(messages):
        if not is_learned(message):
            continue
        before = _rendered(tokenizer, messages[:number], True).text
        after = _rendered(tokenizer, messages[: number + 1]).text
        if not (after.startswith(before) and whole.startswith(after)):
            raise ValueError(
                "The chat template writes the beginning of a conversation in another way once it goes on, so what "
                f"message {number + 1} adds cannot be told. Put {{% generation %}} and {{% endgeneration %}} around "
                "the answer in the template."
            )
        yield len(before), len(after)


def _marked(tokenizer, messages):
    """The conversation, checked, with marks around what spells a special token."""
    longest_first = sorted(map(re.escape, tokenizer.special_tokens), key=len, reverse=True)
    special = re.compile("|".join(longest_first) or "(?!)")

    def mark(value):
        if isinstance(value, str):
            return special.sub(f"{_PLAIN}\\g<0>{_END}", _ALL_MARKS.sub("", value))
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        return [mark(item) for item in value] if isinstance(value, list) else value

    return mark(check_messages(messages))


def _encode(tokenizer, text):
    """Token ids of a text with such marks, and the place of each token in it."""
    ids, offsets, start = [], [], 0
    pieces = [(match.start(), match.end()) for match in _SPELLED.finditer(text)]
    for plain_start, plain_stop in [*pieces, (len(text), len(text))]:
        parts = [(start, plain_start, True), (plain_start + 1, plain_stop - 1, False)]
        start = plain_stop
        for first, last, parse_special in parts:
            if first < last:
                # A mark that the template has torn from its partner says nothing.
                piece_ids, places = tokenizer.encode_with_offsets(_ALL_MARKS.sub("", text[first:last]), parse_special)
                ids += piece_ids
                offsets += [(first + a, first + b) for a, b in places]
    return ids, offsets
