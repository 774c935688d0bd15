"""Slots of a cache, and what each of them has read."""

import numpy as np

from kerasllm.generation import cache as caches
from kerasllm.generation.programs import Programs

SMALLEST_BUCKET = 16
GROWTH = 4  # of a cache's room at once: few sizes, few compilations


def bucket(size: int, largest: int, smallest: int = 1) -> int:
    """The power of two that `size` fits in, within [smallest, largest]: few shapes, few compilations."""
    return min(largest, max(smallest, 1 << max(0, size - 1).bit_length()))


class Slots:
    """Some sequences that share a batch, each in a slot of its own.

    Args:
        programs: of the model.
        size: number of slots.
        length: tokens that a slot has room for.
        source_length: tokens that a slot's source has room for, in models with an encoder.
        room: tokens that a slot has memory for at first, which grows as they come; all of it when left out. Attention
            reads all that there is, held or not.

    Attributes:
        positions: int32 (size,), how many tokens each slot has cached.
        held: tokens that a slot has memory for now.
        cache, source: as `Programs` reads them.
    """

    def __init__(self, programs: Programs, size: int, length: int, source_length: int = 0, room: int | None = None):
        self.programs, self.size, self.length = programs, size, length
        self.room = self.held = min(room or length, length)
        self.positions = np.zeros(size, "int32")
        self.cache = programs.empty_cache(size, self.room)
        self.source = programs.empty_source(size, source_length)

    def rooms(self) -> list[int]:
        """What a slot may have memory for: from `room` to `length`."""
        sizes = [self.room]
        while sizes[-1] < self.length:
            sizes.append(min(GROWTH * sizes[-1], self.length))
        return sizes

    def make_room(self, places: int) -> None:
        """Lets the cache grow, until each slot has memory for so many tokens or for `length`."""
        places = min(places, self.length)
        if self.held < places:
            self.held = next(size for size in self.rooms() if size >= places)
            self.cache = caches.grown(self.cache, self.held)

    def empty(self) -> None:
        """Forgets what all slots hold, and gives back the memory by which the cache has grown."""
        self.positions[:] = 0
        if self.held != self.room:
            self.held, self.cache = self.room, None  # It goes before the other comes.
            self.cache = self.programs.empty_cache(self.size, self.room)

    def read(self, rows: dict[int, list[int]]) -> None:
        """Reads tokens into slots, after what they hold."""
        rows = {slot: ids for slot, ids in rows.items() if ids}
        if not rows:
            return
        self.make_room(1 + max(int(self.positions[slot]) + len(ids) for slot, ids in rows.items()))
        # Slots that read nothing compute along, beyond what they hold: worth it for half of them.
        if self.size == 1 or len(rows) > self.size // 2:
            self._extend(np.arange(self.size, dtype="int32"), rows)
        else:
            for slot, ids in rows.items():
                self._extend(np.array([slot], "int32"), {0: ids})
        for slot, ids in rows.items():
            self.positions[slot] += len(ids)

    def _extend(self, slots: np.ndarray, rows: dict[int, list[int]]) -> None:
        """Reads tokens into some of these slots, known by their place among them."""
        width = bucket(max(map(len, rows.values())), self.length, SMALLEST_BUCKET)
        positions = self.positions[slots]
        places = self.held if positions.any() else min(width, self.held)
        arguments = _filled(rows, len(slots), width), positions, self.source
        self.cache = self.programs.extend(self.cache, self.part(slots, places), *arguments)

    def read_sources(self, rows: dict[int, list[int]]) -> None:
        """Runs sources through the encoder, into their slots."""
        if not rows or not self.programs.has_encoder:
            return
        pairs, lengths = self.source
        room = caches.length_of(pairs) - self.programs.model.transformer.source_vectors
        width = bucket(max(map(len, rows.values())), room, SMALLEST_BUCKET)
        for slot, ids in rows.items():
            lengths[slot] = len(ids)
        if len(rows) > self.size // 4 and self.size > 1:
            made = self.programs.encode(_filled(rows, self.size, width), lengths)
            chosen = np.zeros(self.size, "bool")
            chosen[list(rows)] = True
            pairs = self.programs.merge(pairs, made, chosen)
        else:
            for slot, ids in rows.items():
                made = self.programs.encode(_filled({0: ids}, 1, width), lengths[slot : slot + 1])
                pairs = self.programs.write_slot(pairs, made, np.int32(slot))
        self.source = pairs, lengths

    def part(self, rows: np.ndarray | None = None, places: int | None = None) -> tuple:
        """Some slots and how much of them is read, all when left out, as `Programs` wants to know it."""
        rows = np.arange(self.size, dtype="int32") if rows is None else rows
        return rows, np.arange(places or self.held, dtype="int32")

    def copy(self, sources: dict[int, int]) -> None:
        """Lets slot `new` hold what slot `old` holds, for each `{new: old}`."""
        if all(new == old for new, old in sources.items()):
            return
        rows = np.arange(self.size, dtype="int32")
        for new, old in sources.items():
            rows[new] = old
        self.cache = self.programs.copy_slots(self.cache, rows)
        self.positions = self.positions[rows]
        if self.source:
            pairs, lengths = self.source
            self.source = self.programs.copy_slots(pairs, rows), lengths[rows]


def _filled(rows: dict[int, list[int]], size: int, width: int) -> np.ndarray:
    token_ids = np.zeros((size, width), "int32")
    for slot, ids in rows.items():
        token_ids[slot, : len(ids)] = ids
    return token_ids
