"""The cache of keys and values: a list of a (key, value) pair a layer, each (slots, length, kv_heads, head_dim)."""

import keras
from keras import ops


def empty(config, slots: int, length: int, dtype):
    shape = (slots, length, config.num_kv_heads, config.head_dim)
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in range(config.num_layers)]


def length_of(cache) -> int:
    return cache[0][0].shape[1]


def as_places(places):
    """Places as `write` takes them; on PyTorch indices are 64-bit, and changed once for all layers."""
    return places.long() if keras.backend.backend() == "torch" else places


def write(old, new, places):
    """Writes a layer's new keys and values, (slots, width, kv_heads, head_dim), at `as_places(...)`, (slots, width)."""
    return tuple(_write(x, y, places) for x, y in zip(old, new))


def _write(old, new, places):
    if keras.backend.backend() == "torch":
        import torch

        rows = torch.arange(old.shape[0], device=old.device)[:, None]
        return old.index_put_((rows, places), new)
    slots, width = new.shape[:2]
    if slots == 1 and width == 1:
        return ops.slice_update(old, (0, places[0, 0], 0, 0), new)
    rows = ops.broadcast_to(ops.arange(slots, dtype="int32")[:, None], (slots, width))
    indices = ops.reshape(ops.stack([rows, places], axis=-1), (-1, 2))
    return ops.scatter_update(old, indices, ops.reshape(new, (-1, *new.shape[2:])))


def read_slot(cache, slot):
    """The cache of one slot alone."""

    def read(x):
        if keras.backend.backend() == "torch":
            return x.index_select(0, slot.reshape(1).long())
        return ops.slice(x, (slot, 0, 0, 0), (1, *x.shape[1:]))

    return [tuple(read(x) for x in pair) for pair in cache]


def write_slot(cache, row, slot):
    """The cache with one slot's beginning replaced by what `row`, a cache of one slot, holds."""

    def put(old, new):
        new = new[:, : old.shape[1]]
        if keras.backend.backend() == "torch":
            old[:, : new.shape[1]].index_copy_(0, slot.reshape(1).long(), new)
            return old
        return ops.slice_update(old, (slot, 0, 0, 0), new)

    return [tuple(put(x, y) for x, y in zip(pair, new)) for pair, new in zip(cache, row)]


def copy_slots(cache, rows):
    """The slots of a cache in another order, `rows` (slots,); one may come more than once."""
    return [tuple(ops.take(x, rows, axis=0) for x in pair) for pair in cache]


def merge(cache, new, chosen):
    """The cache with the beginning of the chosen slots, (slots,) bool, replaced by that of `new`."""

    def put(old, fresh):
        fresh = ops.pad(fresh, ((0, 0), (0, old.shape[1] - fresh.shape[1]), (0, 0), (0, 0)))
        return ops.where(chosen[:, None, None, None], fresh, old)

    return [tuple(put(x, y) for x, y in zip(pair, other)) for pair, other in zip(cache, new)]
