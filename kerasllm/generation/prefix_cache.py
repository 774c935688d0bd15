"""What was read of prompts, kept for later prompts that begin alike."""

import collections
import hashlib

import numpy as np
from keras import ops

from kerasllm.generation.cache import PIECE
from kerasllm.generation.slots import Slots
from kerasllm.generation.weights import Weights

BLOCK = 16  # tokens


class PrefixCache:
    """Keys and values of whole blocks of tokens, each found by its own content and all that came before it.

    All are forgotten when the model's weights have changed, and those of other active adapters are not found.

    Args:
        max_bytes: of what is kept; the blocks that were not used for longest go first.
        name: of what else changes the model's answers; blocks of another name are not found.

    Attributes:
        hits, misses: tokens of prompts that were found, and those that had to be read.

    Raises:
        ValueError: `max_bytes` is not positive.

    Example:
    ```python
    engine = Engine(model, prefix_cache=PrefixCache(max_bytes=2**28))
    ```

    Reference: Kwon et al. (2023), "Efficient Memory Management for Large Language Model Serving with PagedAttention".
    """

    def __init__(self, max_bytes: int = 2**28, name: str = ""):
        if not max_bytes > 0:
            raise ValueError(f"`max_bytes` must be positive. Received: max_bytes={max_bytes!r}")
        self.max_bytes, self.name = max_bytes, name
        self.hits = self.misses = 0
        self._blocks: collections.OrderedDict[bytes, list] = collections.OrderedDict()
        self.num_bytes = 0
        self._weights: Weights | None = None
        self._state: tuple = ()

    def __len__(self) -> int:
        return len(self._blocks)

    def clear(self) -> None:
        """Forgets everything."""
        self._blocks.clear()
        self.num_bytes = 0

    def follow(self, model) -> None:
        """Forgets what was computed with other weights than the model has now."""
        if self._weights is None or self._weights.model is not model:
            self.clear()
            self._weights = Weights(model)
        if self._weights.changed(thorough=True):
            self.clear()
        self._state = model.adapter_state

    def restore(self, slots: Slots, slot: int, tokens: list[int]) -> int:
        """Puts the known beginning of `tokens` into an empty slot, and returns how many tokens that are."""
        found = []
        for key in self._keys(tokens):
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            found.append(self._blocks[key])
        known = BLOCK * len(found)
        self.hits += known
        self.misses += len(tokens) - known
        if found:
            slots.make_room(known + 1)
            fill = [(0, 0), (0, 0), (0, slots.held - known), (0, 0)]  # One shape, whatever was found.
            row = [tuple(np.pad(np.concatenate(parts, axis=2), fill) for parts in zip(*layer)) for layer in zip(*found)]
            slots.cache = slots.programs.write_slot(slots.cache, row, np.int32(slot))
            slots.positions[slot] = known
        return known

    def keep(self, slots: Slots, slot: int, tokens: list[int]) -> None:
        """Keeps the whole blocks of what a slot holds: the beginning of `tokens`."""
        keys = self._keys(tokens[: slots.positions[slot]])
        width = min(PIECE, slots.held)
        piece, start = None, 0
        for count, key in enumerate(keys):
            if key in self._blocks:
                continue
            first = count * BLOCK
            if piece is None or first + BLOCK > start + width:
                start = min(first, slots.held - width)
                piece = slots.programs.read_piece(slots.cache, np.int32(slot), np.int32(start))
                piece = [tuple(ops.convert_to_numpy(x) for x in pair) for pair in piece]
            place = slice(first - start, first - start + BLOCK)
            block = [tuple(x[:, :, place].copy() for x in pair) for pair in piece]
            self._blocks[key] = block
            self.num_bytes += _size(block)
        while self.num_bytes > self.max_bytes:
            _, block = self._blocks.popitem(last=False)
            self.num_bytes -= _size(block)

    def _keys(self, tokens: list[int]) -> list[bytes]:
        keys, key = [], f"{self.name} {self._state}".encode()
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            content = np.asarray(tokens[start : start + BLOCK], "int32").tobytes()
            key = hashlib.sha256(key + content).digest()
            keys.append(key)
        return keys


def _size(block) -> int:
    return sum(x.nbytes for pair in block for x in pair)
