"""Talking with a model: answers to conversations, and a session that goes on where it was."""

import dataclasses
from collections.abc import Iterator, Sequence

from kerasllm.chat.messages import check_messages
from kerasllm.chat.tokens import encode_prompt, stop_token_ids
from kerasllm.generation.constraints import constraints_of
from kerasllm.generation.defaults import constraint_settings, default_sampler
from kerasllm.generation.engine import Engine
from kerasllm.generation.pieces import REPLACEMENT, Pieces
from kerasllm.generation.prefix_cache import PrefixCache
from kerasllm.generation.prompts import stop_token_ids_of
from kerasllm.generation.requests import Request
from kerasllm.generation.sampling import Sampler
from kerasllm.generation.text import streamed
from kerasllm.models.inputs import tokenizer_of


def answers(model, conversations: Sequence[list[dict]], max_new_tokens: int = 100, **options) -> list[str]:
    """What the assistant would say next in each conversation.

    Args:
        model: a `CausalLM` with a tokenizer.
        conversations: lists of messages.
        max_new_tokens, options: see `CausalLM.generate`. The end of a turn ends the answer.

    Raises:
        ValueError: a message or the template is wrong, or a conversation does not fit the model.

    Example:

    ```python
    [answer] = answers(model, [[{"role": "user", "content": "3rd of May 2021 as ISO, please."}]])
    ```
    """
    tokenizer = tokenizer_of(model)
    prompts = [encode_prompt(tokenizer, messages) for messages in conversations]
    options = {"stop_token_ids": chat_stops(model), "strip_prompt": True, **options}
    made = model.generate(prompts, max_new_tokens, **options)
    return [tokenizer.decode(ids).rstrip(REPLACEMENT) for ids in made]  # It may have ended in half a character.


def chat_stops(model) -> frozenset[int]:
    """Tokens at which an answer is over: the end of a turn, and what ends any text of the model."""
    return stop_token_ids_of(model, None) | frozenset(stop_token_ids(tokenizer_of(model)))


class Chat:
    """A conversation with a model.

    What was read of it is kept, so each turn reads only what is new. When it no longer fits the model, the oldest
    exchanges are left out; the system message stays.

    Args:
        model: a `CausalLM` with a tokenizer.
        system: the system message; none when left out.
        max_new_tokens: of an answer at the most, and so the room that is kept for it; a quarter of the model's
            context when that is less.
        sampler: a `Sampler`; when left out, that of the model's generation_config.json, or greedy.

    Attributes:
        messages: the conversation so far.
        dropped: messages that the latest answer was made without, because they no longer fit.

    Raises:
        ValueError: the model has an encoder, no tokenizer, or neither a chat template nor an end token.

    Example:

    ```python
    chat = Chat(model)
    for piece in chat.send("3rd of May 2021 as ISO, please."):
        print(piece, end="")
    ```
    """

    def __init__(self, model, system: str | None = None, max_new_tokens: int = 256, sampler: Sampler | None = None):
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be a whole number above 0. Received: {max_new_tokens!r}")
        if model.config.num_encoder_layers:
            raise ValueError("A chat needs a model without an encoder, a CausalLM. Use a Seq2SeqLM's `generate`.")
        self.tokenizer = tokenizer_of(model)
        self.limit = model.config.max_sequence_length
        self.max_new_tokens = min(max_new_tokens, max(1, self.limit // 4))
        self.sampler = sampler or default_sampler(model)
        self.stop_token_ids = chat_stops(model)
        self.engine = Engine(model, slots=1, prefix_cache=PrefixCache())
        self._system = [] if system is None else check_messages([{"role": "system", "content": system}])
        self.reset()

    def reset(self) -> None:
        """Begins anew; the system message stays."""
        self.engine.prefix_cache.clear()
        self.messages, self.dropped = list(self._system), 0

    def send(self, text: str) -> Iterator[str]:
        """Says something, and yields the answer in pieces as they are made.

        The exchange becomes part of the conversation with the first piece that is asked for. An answer that is not
        read to its end is part of it as far as it came.

        Raises:
            ValueError: the text alone does not fit the model, or cannot be encoded. The conversation is then as it was.
        """
        said = {"role": "user", "content": text}
        prompt, dropped = self._fit([*self.messages, said])
        sampler = dataclasses.replace(self.sampler, seed=self.sampler.seed + len(self.messages))
        size = self.engine.model.config.vocabulary_size
        constraints = constraints_of(size, self.stop_token_ids, **constraint_settings(self.engine.model))
        request = Request(prompt, self.max_new_tokens, sampler, self.stop_token_ids, constraints=constraints)
        return self._answer(said, request, dropped)

    def _answer(self, said: dict, request: Request, dropped: int) -> Iterator[str]:
        pieces = Pieces(self.tokenizer, request)
        answer = {"role": "assistant", "content": ""}
        self.messages += [said, answer]
        self.dropped = dropped
        try:
            yield from streamed(self.engine, request, pieces)
        finally:
            answer["content"] = pieces.finish()

    def _fit(self, messages: list[dict]) -> tuple[list[int], int]:
        """The prompt of the conversation, and how many messages it had to leave out."""
        kept, first = list(messages), len(self._system)
        while len(prompt := encode_prompt(self.tokenizer, kept)) + self.max_new_tokens > self.limit:
            asked = [place for place, message in enumerate(kept) if message["role"] == "user"]
            if len(asked) < 2:
                raise ValueError(
                    f"The message is too long: {len(prompt)} tokens with what the template adds, where the model's "
                    f"context of {self.limit} has room for {self.limit - self.max_new_tokens} beside an answer of "
                    f"{self.max_new_tokens}. Shorten it, or ask for fewer new tokens."
                )
            kept[first : asked[1]] = []
        return prompt, len(messages) - len(kept)
