"""What the server answers, in OpenAI's shapes, made of the events of a model's process."""

import json
import math
from collections.abc import Iterable

from kerasllm.serving.errors import ApiError


def usage(done: dict) -> dict:
    return {**done, "total_tokens": done["prompt_tokens"] + done.get("completion_tokens", 0)}


def data(content: dict) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(content) + b"\n\n"


def to_json(content) -> bytes:
    """JSON in one line, for readers of lines too: many of them end one at these characters.

    Raises:
        ApiError: a number is not finite, which JSON cannot say.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ApiError(500, "The model computed NaN or infinity. Its weights are broken, or overflow.") from None
    for end in "\x85\u2028\u2029":
        text = text.replace(end, f"\\u{ord(end):04x}")
    # A lone surrogate is no UTF-8: written as an escape, which JSON has as well.
    return text.encode("utf-8", "backslashreplace")


class Completions:
    """The shapes of `/v1/completions`.

    Args:
        head: `id`, `created`, `model`.
    """

    def __init__(self, head: dict):
        self.head = {**head, "object": "text_completion"}

    def whole(self, choices: dict[int, list[dict]], done: dict) -> dict:
        """The answer to a request that was not streamed, of all events of each choice."""
        return {
            **self.head,
            "choices": [self._choice(i, _joined(choices[i])) for i in sorted(choices)],
            "usage": usage(done),
        }

    def begin(self, index: int) -> Iterable[dict]:
        return ()

    def chunk(self, event: dict) -> dict:
        """A piece of a streamed answer."""
        return {**self.head, "choices": [self._choice(event["index"], event)]}

    def _choice(self, index: int, event: dict) -> dict:
        return {
            "index": index,
            "text": event["text"],
            "logprobs": self._log_probs(event.get("tokens")),
            "finish_reason": event["finish"] or None,
        }

    @staticmethod
    def _log_probs(tokens: list[dict] | None) -> dict | None:
        if tokens is None:
            return None
        return {
            "tokens": [_spelled(token) for token in tokens],
            "token_logprobs": [_finite(token["log_prob"]) for token in tokens],
            "top_logprobs": [_best(token) if token["log_prob"] is not None else None for token in tokens],
            "text_offset": [token["offset"] for token in tokens],
        }


class Chats:
    """The shapes of `/v1/chat/completions`; see `Completions`."""

    def __init__(self, head: dict):
        self.head = head

    def whole(self, choices: dict[int, list[dict]], done: dict) -> dict:
        answers = []
        for index in sorted(choices):
            event = _joined(choices[index])
            message = {"role": "assistant", "content": event["text"], "refusal": None}
            answers.append({**self._rest(index, event), "message": message})
        return {**self.head, "object": "chat.completion", "choices": answers, "usage": usage(done)}

    def begin(self, index: int) -> Iterable[dict]:
        yield self._chunk({"index": index, "finish": ""}, {"role": "assistant", "content": ""})

    def chunk(self, event: dict) -> dict:
        return self._chunk(event, {"content": event["text"]} if event["text"] else {})

    def _chunk(self, event: dict, delta: dict) -> dict:
        choice = {**self._rest(event["index"], event), "delta": delta}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    @staticmethod
    def _rest(index: int, event: dict) -> dict:
        tokens = event.get("tokens")
        content = None if tokens is None else [{**_token(t), "top_logprobs": [*map(_token, t["top"])]} for t in tokens]
        return {
            "index": index,
            "logprobs": None if content is None else {"content": content, "refusal": None},
            "finish_reason": event["finish"] or None,
        }


def _joined(events: list[dict]) -> dict:
    joined = {"text": "".join(event["text"] for event in events), "finish": events[-1]["finish"]}
    if any("tokens" in event for event in events):
        joined["tokens"] = [token for event in events for token in event.get("tokens", ())]
    return joined


def _token(token: dict) -> dict:
    return {"token": _spelled(token, ""), "logprob": _finite(token["log_prob"]), "bytes": token["bytes"]}


def _best(token: dict) -> dict[str, float]:
    """The alternatives with the token itself, as OpenAI lists them. What is spelled like another goes by its id."""
    best = {_spelled(token): token}
    for other in token["top"]:
        spelled = _spelled(other)
        if best.setdefault(spelled, other)["id"] != other["id"]:
            best[f"token_id:{other['id']}"] = other
    ranked = sorted(best.items(), key=lambda item: -item[1]["log_prob"])
    return {spelled: _finite(other["log_prob"]) for spelled, other in ranked}


def _finite(log_prob: float | None) -> float | None:
    """OpenAI's number for what is impossible, since JSON has no infinity."""
    return -9999.0 if log_prob == -math.inf else log_prob


def _spelled(token: dict, prefix: str = "bytes:") -> str:
    """A token's text; parts of a character, which have none, by their bytes, as OpenAI writes them."""
    if "\N{REPLACEMENT CHARACTER}" not in token["text"]:
        return token["text"]
    try:
        return bytes(token["bytes"]).decode()
    except UnicodeDecodeError:
        return prefix + "".join(f"\\x{byte:02x}" for byte in token["bytes"])
