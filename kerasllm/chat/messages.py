"""What a conversation is: a list of messages, each a dict with a role and a content."""

import json
from collections.abc import Sequence

ROLES = ("system", "user", "assistant", "tool")

Messages = list[dict]


def check_messages(messages: Sequence[dict], place: str = "The conversation", needs_answer: bool = False) -> Messages:
    """A conversation as plain lists, dicts and strings, which is all that a template of somebody else's gets to see.

    Args:
        messages: dicts with a "role", one of `ROLES`, and a "content", text. Other keys are passed on, unless they
            are `None`. Roles need not alternate.
        place: what the conversation is called in errors.
        needs_answer: whether there must be an assistant turn to learn from: one without a "weight" of 0.

    Raises:
        ValueError: no messages, one that is not a dict, an unknown role, a content that is not text, or no assistant
            turn where one is needed, or a weight there that is neither 0 nor 1. The message's number is named, from 1.

    Example:

    ```python
    messages = check_messages([{"role": "user", "content": "Hello"}])
    ```
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"{place} must be a list of messages, at least one. Received: {_short(messages)}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(
                f'{place}, message {number} must be a dict with "role" and "content". Received: {_short(message)}'
            )
        if message["role"] not in ROLES:
            raise ValueError(
                f"{place}, message {number}: the role must be one of {', '.join(ROLES)}. "
                f"Received: role={message['role']!r}"
            )
        if not isinstance(message["content"], str):
            raise ValueError(
                f"{place}, message {number}: the content must be text. Received: {_short(message['content'])} of type "
                f"{type(message['content']).__name__}"
            )
        weight = message.get("weight")
        if needs_answer and (isinstance(weight, bool) or weight not in (None, 0, 1)):
            raise ValueError(
                f"{place}, message {number}: the weight is 1 for an answer to learn, and 0 for one to read only. "
                f"Received: weight={weight!r}"
            )
    if needs_answer and not any(is_learned(message) for message in messages):
        roles = ", ".join(message["role"] + " (weight 0)" * (message.get("weight") == 0) for message in messages[:8])
        raise ValueError(f"{place} has no assistant turn, so there is nothing to learn from it. Roles: {roles}")
    try:
        plain = json.loads(json.dumps(messages))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{place} must be made of what JSON can hold: {error}") from None
    return [{key: value for key, value in message.items() if value is not None} for message in plain]


def is_learned(message: dict) -> bool:
    """Whether a message is an answer to train on."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
