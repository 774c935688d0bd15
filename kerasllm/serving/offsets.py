"""Where tokens begin in a text, in characters; a part of a character begins where the character does."""

import codecs
from collections.abc import Iterable, Sequence

from kerasllm.generation.pieces import REPLACEMENT


class Offsets:
    """Follows a text as its tokens come."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = 0

    def of(self, before: str, spelled: Iterable[int]) -> int:
        """Where the next token begins.

        Args:
            before: the text of the tokens before it, which may end in half a character.
            spelled: the token's bytes.
        """
        half, _ = self._decoder.getstate()
        spelled = bytes(spelled)
        decoded = self._decoder.decode(spelled)
        settled = len(before)
        if half and ((half + spelled).startswith(REPLACEMENT.encode()) or not decoded.startswith(REPLACEMENT)):
            # It goes on. A decoder makes one replacement character of it so far, or one of each byte.
            settled -= min(len(half), settled - len(before.rstrip(REPLACEMENT)))
        self._last = max(self._last, settled)
        return self._last


def starts_of(places: Sequence[tuple[int, int]], tokens: Sequence[dict]) -> list[int]:
    """Where tokens begin, of the `(start, stop)` that a tokenizer tells: some leave out a space that begins a token."""
    starts, last, stop = [], 0, 0
    for (first, end), token in zip(places, tokens):
        last = max(last, min(first, stop) if token["bytes"][:1] == [ord(" ")] else first)
        stop = max(stop, end)
        starts.append(last)
    return starts
