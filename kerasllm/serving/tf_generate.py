"""Making tokens inside a TensorFlow graph: the prompt's keys and values, then a loop of steps.

The same network as in `kerasllm.generation.programs` and the same choice of tokens, but of any number of rows and any
lengths, which a SavedModel does not know beforehand.
"""

import tensorflow as tf

from kerasllm.generation.sampling import SETTINGS, Sampler, choose

_PHILOX_FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_PHILOX_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


def continue_prompts(model, token_ids, lengths, max_new_tokens, settings, stop_ids, pad_id):
    """Prompts with what a `CausalLM` makes of them.

    Args:
        model: a `CausalLM`.
        token_ids: (batch, length) int32, each row a prompt and then anything.
        lengths: (batch,) int32, of the prompts.
        max_new_tokens: int32 scalar.
        settings: temperature, top_k, top_p and seed, scalars.
        stop_ids: token ids that end a row, and are not part of it.
        pad_id: what fills up rows.

    Returns:
        token ids (batch, length + max_new_tokens), and how many of each row are prompt or new, (batch,).
    """
    token_ids, lengths = _checked(model, token_ids, lengths, max_new_tokens, settings)
    width = tf.shape(token_ids)[1]
    # Whatever is beyond the longest prompt is not read.
    prompts = tf.where(_before(lengths, width), token_ids, pad_id)[:, : tf.reduce_max(lengths)]
    _, pairs = model.transformer(prompts, update_cache=lambda _, new: new, training=False)
    room = tf.reduce_max(lengths) + max_new_tokens
    cache = [tuple(_with_room(x, room) for x in pair) for pair in pairs]

    def network(tokens, places, mask, cache):
        return model.transformer(
            tokens, positions=places, attention_mask=mask, cache=cache, update_cache=_writer(places), training=False
        )

    last = tf.gather(token_ids, lengths - 1, axis=1, batch_dims=1)
    new, made = _loop(model, network, last, lengths - 1, cache, max_new_tokens, settings, stop_ids)
    whole = tf.pad(
        tf.where(_before(lengths, width), token_ids, pad_id), [[0, 0], [0, max_new_tokens]], "CONSTANT", pad_id
    )
    rows, columns = tf.meshgrid(tf.range(tf.shape(new)[0]), tf.range(max_new_tokens), indexing="ij")
    new = tf.where(columns < made[:, None], new, pad_id)
    whole = tf.tensor_scatter_nd_update(whole, tf.stack([rows, lengths[:, None] + columns], axis=-1), new)
    return whole, lengths + made


def answer_sources(model, token_ids, lengths, max_new_tokens, settings, stop_ids, pad_id):
    """What a `Seq2SeqLM` writes for sources: as `continue_prompts`, but without what was read.

    Returns:
        token ids (batch, max_new_tokens), and how many of each row were made, (batch,).
    """
    token_ids, lengths = _checked(model, token_ids, lengths, max_new_tokens, settings, decoder_length=1)
    network, batch = model.transformer, tf.shape(token_ids)[0]
    token_ids = token_ids[:, : tf.reduce_max(lengths)]
    source_mask = _before(lengths, tf.shape(token_ids)[1])
    token_ids = tf.where(source_mask, token_ids, pad_id)
    hidden = network.encode(token_ids, source_mask, training=False)
    source = network.decoder.project_source(hidden)
    shape = (batch, max_new_tokens, model.config.num_kv_heads, model.config.head_dim)
    cache = [(tf.zeros(shape, model.compute_dtype),) * 2 for _ in range(model.config.num_layers)]

    def decode(tokens, places, mask, cache):
        return network.decode(
            tokens,
            source,
            source_mask,
            positions=places,
            attention_mask=mask,
            cache=cache,
            update_cache=_writer(places),
            training=False,
        )

    first = tf.fill((batch,), model.start_token_id)
    new, made = _loop(model, decode, first, tf.zeros_like(lengths), cache, max_new_tokens, settings, stop_ids)
    columns = tf.range(max_new_tokens)[None, :]
    return tf.where(columns < made[:, None], new, pad_id), made


def _checked(model, token_ids, lengths, max_new_tokens, settings, decoder_length=None):
    """The prompts, once the graph has found that `model.generate` would take them and the settings."""
    limit, size = model.config.max_sequence_length, model.config.vocabulary_size
    inside = _before(lengths, tf.shape(token_ids)[1])
    read = lengths if decoder_length is None else tf.fill((1,), decoder_length)
    promises = (
        (tf.reduce_all((lengths >= 1) & (lengths <= tf.shape(token_ids)[1])), "lengths must be from 1 to the width"),
        (tf.reduce_all(lengths <= limit), f"lengths must be at most {limit}, which is what the model reads"),
        (
            tf.reduce_all(tf.where(inside, (token_ids >= 0) & (token_ids < size), True)),
            f"token_ids must be below {size}",
        ),
        (max_new_tokens >= 1, "max_new_tokens must be at least 1"),
        (
            tf.reduce_all(read + max_new_tokens <= limit),
            f"lengths + max_new_tokens exceed the model's context of {limit}",
        ),
        ((settings["temperature"] >= 0) & (settings["temperature"] <= 100), "temperature must be in [0, 100]"),
        (
            (settings["top_k"] >= 0) & (settings["top_k"] <= size),
            f"top_k must be from 1 to {size}, or 0 for all tokens",
        ),
        ((settings["top_p"] > 0) & (settings["top_p"] <= 1), "top_p must be in (0, 1]"),
        (settings["seed"] >= 0, "seed must not be negative"),
    )
    with tf.control_dependencies([tf.debugging.Assert(holds, [message]) for holds, message in promises]):
        return tf.identity(token_ids), tf.identity(lengths)


def _loop(model, network, tokens, places, cache, max_new_tokens, settings, stop_ids):
    """Feeds back `tokens`, which stand at `places`; new tokens (batch, max_new_tokens) and how many of each row."""
    batch = tf.shape(tokens)[0]
    rows = {name: tf.fill((batch,), tf.cast(getattr(Sampler, name), kind)) for name, kind in SETTINGS.items()}
    rows |= {name: tf.fill((batch,), settings[name]) for name in ("temperature", "top_k", "top_p")}
    keys = tf.range(tf.shape(cache[0][0])[1])[None, :]
    window = model.config.sliding_window

    def body(step, tokens, running, new, made, cache):
        now = (places + step)[:, None]
        mask = keys <= now
        if window:
            mask &= keys > now - window
        hidden, cache = network(tokens[:, None], now, mask[:, None, None, :], cache)
        uniforms = tf.fill((batch,), counted_uniform(settings["seed"], step))
        tokens, _ = choose(_head(model, hidden[:, 0]), rows, uniforms, tf.zeros((batch,)))
        stops = tf.reduce_any(tokens[:, None] == tf.constant(stop_ids, "int32", (1, len(stop_ids))), axis=1)
        running &= ~stops
        return step + 1, tokens, running, new.write(step, tokens), made + tf.cast(running, "int32"), cache

    new = tf.TensorArray("int32", max_new_tokens, element_shape=(None,))
    state = (tf.constant(0), tokens, tf.ones((batch,), "bool"), new, tf.zeros((batch,), "int32"), cache)
    going = lambda step, tokens, running, *_: (step < max_new_tokens) & tf.reduce_any(running)  # noqa: E731
    step, _, _, new, made, _ = tf.while_loop(going, body, state)
    new = tf.transpose(new.gather(tf.range(step)))
    return tf.pad(new, [[0, 0], [0, max_new_tokens - step]]), made


def counted_uniform(seed, count):
    """The number in [0, 1) of `Sampler.uniform`: Philox 4×64 with ten rounds, of which the first word is used.

    Args:
        seed, count: integer scalars, not negative.

    Reference: Salmon et al. (2011), "Parallel Random Numbers: As Easy as 1, 2, 3".
    """
    word = lambda value: tf.constant(value, "uint64")  # noqa: E731
    # NumPy counts up before it draws.
    counter = [tf.cast(count, "uint64") + word(1), word(0), word(0), word(0)]
    key = [tf.cast(seed, "uint64"), word(0)]
    for _ in range(10):
        (high_0, low_0), (high_1, low_1) = (_wide(word(f), counter[i]) for f, i in zip(_PHILOX_FACTORS, (0, 2)))
        mixed = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(high_1, counter[1]), key[0])
        other = tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(high_0, counter[3]), key[1])
        counter = [mixed, low_1, other, low_0]
        key = [part + word(weyl) for part, weyl in zip(key, _PHILOX_WEYL)]
    return tf.cast(tf.bitwise.right_shift(counter[0], word(40)), "float32") / 2.0**24


def _wide(a, b):
    """The high and the low half of the 128 bits of a product."""
    half, mask = tf.constant(32, "uint64"), tf.constant(0xFFFFFFFF, "uint64")
    (a_1, a_0), (b_1, b_0) = ((tf.bitwise.right_shift(x, half), tf.bitwise.bitwise_and(x, mask)) for x in (a, b))
    middle = a_1 * b_0 + tf.bitwise.right_shift(a_0 * b_0, half)
    other = a_0 * b_1 + tf.bitwise.bitwise_and(middle, mask)
    return a_1 * b_1 + tf.bitwise.right_shift(middle, half) + tf.bitwise.right_shift(other, half), a * b


def _head(model, hidden):
    """Logits, float32 (batch, vocabulary); the ids of a padded vocabulary, that no token has, are never made."""
    logits = tf.cast(model.logits(hidden), "float32")
    tokenizer, size = model.tokenizer, model.config.vocabulary_size
    if tokenizer is None or tokenizer.vocabulary_size == size:
        return logits
    return tf.where(tf.range(size) < tokenizer.vocabulary_size, logits, -1e30)


def _writer(places):
    """`update_cache` of one new token a row, at `places` (batch, 1)."""
    indices = tf.concat([tf.range(tf.shape(places)[0])[:, None], places], axis=1)

    def write(old, new):
        return tuple(tf.tensor_scatter_nd_update(x, indices, y[:, 0]) for x, y in zip(old, new))

    return write


def _with_room(x, room):
    return tf.pad(x, [[0, 0], [0, room - tf.shape(x)[1]], [0, 0], [0, 0]])


def _before(lengths, width):
    """(batch, width): True at the places before each row's length."""
    return tf.range(width)[None, :] < lengths[:, None]
