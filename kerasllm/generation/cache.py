"""The cache of keys and values: a list of a (key, value) pair a layer, each (slots, kv_heads, length, head_dim).

Heads stand before places, as products of matrices want them: a step then copies nothing but what is new. For the same
reason a compiled loop over one slot holds it without the axis of slots, (kv_heads, length, head_dim): XLA drops that
axis from the products, and would copy the cache at each step to write into it with the axis.

It may be kept in another dtype than the model computes in: in a smaller float, or as in `eight_bits`. XLA keeps
bfloat16 as its bits: on a CPU it would make float32 of a whole bfloat16 array, and that again, to write into it.
"""

import keras
from keras import ops

from kerasllm.generation import eight_bits

DTYPES = ("float32", "bfloat16", "float16", "int8")
BITS = "uint16"
PIECE = 64  # places that are read of a slot in one go
MOST_PIECES, MOST_WIDE = 64, 8  # places in all, and of a slot, written one by one; more in one go, which copies it all


def empty(config, slots: int, length: int, dtype):
    """Room for so many tokens in each slot.

    Raises:
        ValueError: a dtype that is not in `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"`cache_dtype` must be one of {', '.join(DTYPES)}. Received: cache_dtype={dtype!r}")
    shape = (slots, config.num_kv_heads, length, config.head_dim + (eight_bits.EXTRA if dtype == "int8" else 0))
    if dtype == "bfloat16" and keras.backend.backend() != "torch":
        dtype = BITS
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in range(config.num_layers)]


def bytes_a_slot(model, length: int) -> int:
    """What a slot with room for so many tokens takes in a model's cache, about."""
    config = model.config
    size = {"int8": 1, "bfloat16": 2, "float16": 2}.get(model.cache_dtype or model.compute_dtype, 4)
    return config.kv_cache_bytes(1, size) * length // config.max_sequence_length


def length_of(cache) -> int:
    return cache[0][0].shape[-2]


def grown(cache, length: int):
    """The cache with room for `length` tokens a slot."""
    more = ((0, 0), (0, 0), (0, length - length_of(cache)), (0, 0))
    return [tuple(ops.pad(x, more) for x in pair) for pair in cache]


def seen(pair):
    """A layer's pair in attention's order of axes, (slots, length, kv_heads, head_dim)."""
    return tuple(ops.transpose(x if len(x.shape) == 4 else x[None], (0, 2, 1, 3)) for x in pair)


def computed(pair, dtype):
    """A layer's pair in the dtype that attention computes in."""

    def unpacked(x):
        if _dtype(x) == "int8":
            return eight_bits.unpacked(x, dtype)
        return ops.cast(ops.view(x, "bfloat16") if _dtype(x) == BITS else x, dtype)

    return tuple(unpacked(x) for x in pair)


def _dtype(x) -> str:
    return keras.backend.standardize_dtype(x.dtype)


def _like(new, old):
    """New keys or values as the old ones are kept."""
    if _dtype(new) == _dtype(old):
        return new
    if _dtype(old) == "int8":
        return eight_bits.packed(new)
    return ops.view(ops.cast(new, "bfloat16"), BITS) if _dtype(old) == BITS else ops.cast(new, old.dtype)


def kept(pair):
    """A layer's pair from attention's order back to the cache's."""
    return tuple(ops.transpose(x, (0, 2, 1, 3)) for x in pair)


def for_loop(cache):
    """The cache as a compiled loop holds it."""
    return [tuple(x[0] for x in pair) for pair in cache] if cache[0][0].shape[0] == 1 else cache


def after_loop(cache):
    """The cache that a compiled loop held, with its axis of slots."""
    return [tuple(x if len(x.shape) == 4 else x[None] for x in pair) for pair in cache]


def as_places(places):
    """Places as `write` takes them; on PyTorch indices are 64-bit, and changed once for all layers."""
    return places.long() if keras.backend.backend() == "torch" else places


def write(old, new, places):
    """Writes a layer's new keys and values, (slots, width, kv_heads, head_dim), at `as_places(...)`, (slots, width).

    Of each row, places go up one by one, as far as the last one of the cache; what is beyond shares it.
    """
    return tuple(_write(x, y, places) for x, y in zip(old, new))


def _write(old, new, places):
    new = _like(new, old)
    slots, width = new.shape[:2]
    if keras.backend.backend() == "torch":
        import torch

        rows = torch.arange(slots, device=old.device)[:, None]
        old.transpose(1, 2).index_put_((rows, places), new)
        return old
    new = ops.transpose(new, (0, 2, 1, 3))
    if len(old.shape) == 3:
        return ops.slice_update(old, (0, places[0, 0], 0), new[0])
    if slots * width <= MOST_PIECES and width <= MOST_WIDE:
        for slot in range(slots):
            for place in range(width):
                piece = new[slot : slot + 1, :, place : place + 1]
                old = ops.slice_update(old, (slot, 0, places[slot, place], 0), piece)
        return old
    # What each place of the cache gets, if anything.
    offsets = ops.arange(old.shape[2], dtype="int32")[None, :] - places[:, :1]
    spread = ops.take_along_axis(new, ops.clip(offsets, 0, width - 1)[:, None, :, None], axis=2)
    inside = ops.logical_and(offsets >= 0, offsets < width)
    return ops.where(inside[:, None, :, None], spread, old)


def read_part(cache, rows, columns):
    """The slots `rows`, (some,), all different or all in their order, and of each as many places as `columns` has.

    On PyTorch, what is read of all slots is still the cache's own memory.
    """
    places = columns.shape[0]

    def read(x):
        if rows.shape[0] == x.shape[0]:
            return x if places == x.shape[2] else x[:, :, :places]
        if keras.backend.backend() == "torch":
            return x[:, :, :places].index_select(0, rows.long())
        if rows.shape[0] == 1:
            return _cut(x, (rows[0], 0, 0, 0), (1, x.shape[1], places, x.shape[3]))
        return ops.take(x[:, :, :places], rows, axis=0)

    return [tuple(read(x) for x in pair) for pair in cache]


def _cut(x, starts, shape):
    if keras.backend.backend() == "tensorflow":
        from tensorflow.compiler.tf2xla.python.xla import dynamic_slice

        return dynamic_slice(x, starts, shape)  # `tf.slice` is compiled again for each start.
    return ops.slice(x, starts, shape)


def write_part(cache, part, rows):
    """The cache with what `read_part` read of these slots, and was then written to, in its place."""

    def put(old, new):
        every = rows.shape[0] == old.shape[0]
        if keras.backend.backend() == "torch":
            return old if every else _put_rows(old, new, rows)
        if every:
            return new if new.shape == old.shape else ops.slice_update(old, (0, 0, 0, 0), new)
        for row in range(new.shape[0]):
            old = ops.slice_update(old, (rows[row], 0, 0, 0), new[row : row + 1])
        return old

    return [tuple(put(x, y) for x, y in zip(pair, new)) for pair, new in zip(cache, part)]


def _put_rows(old, new, rows):
    old[:, :, : new.shape[2]].index_copy_(0, rows.long(), new)
    return old


def read_piece(cache, slot, start):
    """PIECE places of one slot, from `start` on, which must be that far from the end; all of a shorter one."""
    width = min(PIECE, length_of(cache))

    def read(x):
        if keras.backend.backend() == "torch":
            import torch

            places = start.long() + torch.arange(width, device=x.device)
            return x.transpose(1, 2)[slot.reshape(1, 1).long(), places[None]].transpose(1, 2)
        return _cut(x, (slot, 0, start, 0), (1, x.shape[1], width, x.shape[3]))

    return [tuple(read(x) for x in pair) for pair in cache]


def write_slot(cache, row, slot):
    """The cache with one slot's beginning replaced by what `row`, a cache of one slot, holds."""

    def put(old, new):
        new = _like(new, old)[:, :, : old.shape[2]]
        if keras.backend.backend() == "torch":
            return _put_rows(old, new, slot.reshape(1))
        return ops.slice_update(old, (slot, 0, 0, 0), new)

    return [tuple(put(x, y) for x, y in zip(pair, new)) for pair, new in zip(cache, row)]


def copy_slots(cache, rows):
    """The slots of a cache in another order, `rows` (slots,); one may come more than once."""
    return [tuple(ops.take(x, rows, axis=0) for x in pair) for pair in cache]


def merge(cache, new, chosen):
    """The cache with the beginning of the chosen slots, (slots,) bool, replaced by that of `new`."""

    def put(old, fresh):
        fresh = ops.pad(_like(fresh, old), ((0, 0), (0, 0), (0, old.shape[2] - fresh.shape[2]), (0, 0)))
        return ops.where(chosen[:, None, None, None], fresh, old)

    return [tuple(put(x, y) for x, y in zip(pair, other)) for pair, other in zip(cache, new)]
