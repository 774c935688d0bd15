"""Tokens to pieces of text that never end in half a character, nor in what may be a stop string."""

from collections.abc import Sequence

from kerasllm.generation.requests import Request

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MOST_AGAIN = 16  # tokens that are decoded again with each new one, or as many as half a character is away


class Pieces:
    """Decodes a request's tokens as they come, holding back what may still change or be a stop string.

    Args:
        tokenizer: of the model.
        request: whose tokens are decoded. It is ended when a stop string comes, and its tokens cut to those that the
            text and the stop string are made of.
        stop: the stop strings.
    """

    def __init__(self, tokenizer, request: Request, stop: Sequence[str] = ()):
        self.tokenizer, self.request, self.stop = tokenizer, request, stop
        # Decoded with the prompt before them: some decoders drop a leading space of what they are given.
        self.context = request.prompt[-8:]
        self.before = len(tokenizer.decode(self.context))
        self.text = self.settled = ""
        self.start = 0  # the first token whose text is not settled
        self.read = self.sent = 0  # tokens, characters
        self.ended = False

    def advance(self) -> str:
        """What became certain since the last call."""
        if self.stop:  # It may come with any token, and be gone with the next.
            return "".join(self.each())
        if self.read == len(self.request.new_tokens):
            return ""
        self.read = len(self.request.new_tokens)
        return self._next()

    def each(self):
        """Yields what became certain with each token since the last call; an empty piece where nothing did."""
        while self.read < len(self.request.new_tokens) and not self.ended:
            self.read += 1
            yield self._next()

    def finish(self) -> str:
        """The whole answer; the half of a character that it may have ended in is left out."""
        self.advance()
        return self.text if self.ended else self.text.rstrip(REPLACEMENT)

    def rest(self) -> str:
        """What of the whole answer was held back."""
        return self.finish()[self.sent :]

    def _next(self) -> str:
        new = self.request.new_tokens[self.start : self.read]
        self.text = self.settled + self.tokenizer.decode(self.context + new)[self.before :]
        if len(new) >= MOST_AGAIN and not self.text.endswith(REPLACEMENT):
            # Both ends of `new` are ends of characters: what comes is decoded after it alone.
            self.context, self.start, self.settled = new, self.read, self.text
            self.before = len(self.tokenizer.decode(new))
        certain = self.text.rstrip(REPLACEMENT)  # What comes may make one character of it, and no stop string.
        certain = self.text[: max(len(certain), self.sent)]
        found = [certain.find(string) for string in self.stop if string in certain]
        safe = len(certain)
        if found:
            safe = min(found)
            self.text, self.ended = self.text[:safe], True
            self._end()
        else:
            safe = min([safe, *(safe - _overlap(certain, string) for string in self.stop)])
        piece = self.text[self.sent : safe]
        self.sent = max(self.sent, safe)
        return piece

    def _end(self):
        request = self.request
        request.finished = "stop"
        for made in (request.new_tokens, request.log_probs, request.alternatives):
            del made[self.read :]


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    for size in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:size]):
            return size
    return 0
