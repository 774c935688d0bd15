"""Our tokenizers as TensorFlow graphs, of TensorFlow's own operations alone: what loads them needs nothing else.

Only those are built that give the same ids for every text. Which characters are letters, and what a text becomes before
it is cut, is asked of the tokenizer itself, character by character, so that no two Unicode tables have to agree.
"""

import json

import tensorflow as tf

from kerasllm.tokenizers import byte_alphabet

MARK = b"\xff"  # between pieces: a byte that no UTF-8 text has
WHITE = r"\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"  # Unicode's, for good
ASSIGNED = 0x40000  # code points from here on are neither letters nor numbers; a normalizer may drop some
NEVER = 2**31 - 1  # the rank of a pair that is not merged
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PLAIN_BPE = {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}  # must be empty
PLAIN_FLAGS = {"fuse_unk", "byte_fallback", "ignore_merges"}  # must be false
BERT_WORDS = 100  # characters of a word, at most


def graph_tokenizer(tokenizer) -> "GraphTokenizer":
    """A `Tokenizer` as a graph.

    Raises:
        ValueError: there is no exact graph of it; says why.
    """
    description = json.loads(tokenizer.get_config()["tokenizer"])
    kind, model = tokenizer.kind, description["model"]
    if kind in ("char", "byte", "bpe"):
        _check_bpe(kind, description)
        return (CharTokenizer if kind == "char" else ByteTokenizer)(tokenizer, description)
    if kind == "wordpiece":
        normalizer, cut = description["normalizer"] or {}, description["pre_tokenizer"] or {}
        prefix = model["continuing_subword_prefix"] == "##" and model["max_input_chars_per_word"] == BERT_WORDS
        if normalizer.get("type") == "BertNormalizer" and cut.get("type") == "BertPreTokenizer" and prefix:
            return WordPieceTokenizer(tokenizer, description)
        _refuse(kind, "only BERT's normalizer and words are known")
    _refuse(kind, "its normalization looks at more than one character at a time")


def _refuse(kind: str, reason: str):
    raise ValueError(
        f"There is no exact TensorFlow graph of this {kind} tokenizer: {reason}. There is one of char, byte, "
        "GPT-2's bpe and BERT's wordpiece tokenizers. Export with text=False, and make ids outside of the graph."
    )


def _check_bpe(kind: str, description: dict) -> None:
    model, cut = description["model"], description["pre_tokenizer"]
    allowed = PLAIN_BPE - ({"unk_token"} if kind == "char" else set())
    wrong = [name for name in allowed if model.get(name)] + [name for name in PLAIN_FLAGS if model.get(name)]
    if description["normalizer"] is not None:
        _refuse(kind, f"it has the normalizer {description['normalizer']['type']!r}")
    if wrong:
        _refuse(kind, f"it sets {', '.join(wrong)}")
    if kind == "char" and cut is None:
        return
    if kind == "char" or cut is None or {**cut, "use_regex": True} != {**BYTE_LEVEL, "use_regex": True}:
        _refuse(kind, f"it cuts texts by {cut and cut.get('type')!r} in a way of its own")


class GraphTokenizer(tf.Module):
    """What the graphs of all kinds share: special tokens, and tokens back to text.

    Args:
        tokenizer: a `Tokenizer`.
        description: its tokenizer.json.
    """

    decodes = True

    def __init__(self, tokenizer, description):
        super().__init__()
        self.kind = tokenizer.kind
        special = {}
        for token in description["added_tokens"]:
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            if any(token[flag] for flag in flags):
                _refuse(self.kind, f"the token {token['content']!r} is matched in a way of its own")
            special[token["content"].encode()] = token["id"]
        # The longest first, as the tokenizer matches them.
        names = sorted(special, key=len, reverse=True)
        self.special_pattern = b"|".join(_quoted(name) for name in names)
        self.special = _table(special, -1) if special else None
        vocabulary = description["model"]["vocab"]
        texts = {i: self.token_bytes(token) for token, i in vocabulary.items()}
        texts |= {i: name for name, i in special.items()}
        self.texts = [texts.get(i, b"") for i in range(tokenizer.vocabulary_size)]

    def token_bytes(self, token: str) -> bytes:
        return token.encode()

    def encode(self, texts):
        """Token ids of texts (batch,), ragged (batch, tokens) int32; text that spells a special token is that token."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8")
        if self.special is None:
            return self.encode_plain(texts)
        marked = tf.strings.regex_replace(texts, self.special_pattern, MARK + rb"\0" + MARK)
        pieces = tf.strings.split(marked, MARK)
        ids = self.special.lookup(pieces.flat_values)
        is_special = ids >= 0
        plain = self.encode_plain(tf.where(is_special, b"", pieces.flat_values))
        ids = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(ids, is_special), tf.cast(is_special, "int64"))
        return pieces.with_flat_values(tf.concat([plain, ids], axis=1)).merge_dims(1, 2)

    def encode_plain(self, texts):
        """Token ids of texts (pieces,) without special tokens, ragged (pieces, tokens) int32."""
        raise NotImplementedError

    def decode(self, ids):
        """Texts (batch,) of ragged ids; without the half of a character that one may end in."""
        joined = tf.strings.reduce_join(tf.gather(tf.constant(self.texts), ids), axis=-1)
        whole = tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8")
        return tf.strings.regex_replace(whole, r"\x{FFFD}+$", "")


class CharTokenizer(GraphTokenizer):
    """Characters; one that is not in the vocabulary is the unknown token or, without one, an error."""

    def __init__(self, tokenizer, description):
        super().__init__(tokenizer, description)
        self.unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
        vocabulary = description["model"]["vocab"]
        self.characters = _table({t.encode(): i for t, i in vocabulary.items() if len(t) == 1}, self.unknown)

    def encode_plain(self, texts):
        ids = tf.ragged.map_flat_values(self.characters.lookup, tf.strings.unicode_split(texts, "UTF-8"))
        known = tf.reduce_all(ids.flat_values >= 0)
        tf.debugging.Assert(known, ["A text has a character that is not in the tokenizer's vocabulary"])
        return ids


class ByteTokenizer(GraphTokenizer):
    """Bytes, alone or merged within words in the order that merges were learned (byte-level BPE)."""

    def __init__(self, tokenizer, description):
        self.alphabet = {character: bytes([i]) for i, character in enumerate(byte_alphabet())}
        super().__init__(tokenizer, description)
        model = description["model"]
        vocabulary, size = model["vocab"], tokenizer.vocabulary_size
        missing = [character for character in self.alphabet if character not in vocabulary]
        if missing:
            _refuse(self.kind, f"{len(missing)} of the 256 bytes have no token")
        self.bytes = _table({raw: vocabulary[character] for character, raw in self.alphabet.items()}, -1)
        self.word_pattern = None
        if description["pre_tokenizer"].get("use_regex", True):
            self.word_pattern = _word_pattern(tokenizer._tokenizer.pre_tokenizer)
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        keys = [vocabulary[left] * size + vocabulary[right] for left, right in pairs]
        self.size, self.ranks = size, None
        if keys:
            self.ranks = _table(dict(zip(keys, range(len(keys)))), NEVER, "int64")
            self.merges = _table(dict(zip(keys, (vocabulary[a + b] for a, b in pairs))), -1, "int64")

    def token_bytes(self, token):
        if all(character in self.alphabet for character in token):
            return b"".join(self.alphabet[character] for character in token)
        return token.encode()

    def encode_plain(self, texts):
        if self.word_pattern is None:
            return self._merged(texts)
        # Of several white characters the last goes with the word after it: RE2 cannot look ahead, so it is marked.
        marked = tf.strings.regex_replace(texts, rf"([{WHITE}]+)([{WHITE}][^{WHITE}])".encode(), rb"\1" + MARK + rb"\2")
        parts = tf.strings.split(marked, MARK)
        cut = tf.strings.regex_replace(parts.flat_values, self.word_pattern, rb"\0" + MARK)
        words = tf.strings.split(cut, MARK)
        ids = words.with_flat_values(self._merged(words.flat_values)).merge_dims(1, 2)
        return parts.with_flat_values(ids).merge_dims(1, 2)

    def _merged(self, words):
        ids = tf.ragged.map_flat_values(self.bytes.lookup, tf.strings.bytes_split(words))
        if self.ranks is None:
            return ids
        ids = ids.to_tensor(-1)
        ids = tf.pad(ids, [[0, 0], [0, 2]], constant_values=-1)  # so that there is always a pair

        def merge(ids, _):
            left, right = tf.cast(ids[:, :-1], "int64"), tf.cast(ids[:, 1:], "int64")
            pairs = tf.where(right >= 0, left * self.size + right, -1)
            ranks = self.ranks.lookup(pairs)
            place = tf.argmin(ranks, axis=1, output_type="int32")[:, None]
            found = tf.gather(ranks, place, batch_dims=1) < NEVER
            made = self.merges.lookup(tf.gather(pairs, place, batch_dims=1))
            columns = tf.range(tf.shape(ids)[1])[None, :]
            following = tf.pad(ids[:, 1:], [[0, 0], [0, 1]], constant_values=-1)
            shorter = tf.where(columns < place, ids, tf.where(columns == place, made, following))
            return tf.where(found, shorter, ids), tf.reduce_any(found)

        shape = (tf.TensorShape((None, None)), tf.TensorShape(()))
        ids, _ = tf.while_loop(lambda _, going: going, merge, (ids, tf.constant(True)), shape)
        return tf.RaggedTensor.from_tensor(ids, lengths=tf.reduce_sum(tf.cast(ids >= 0, "int64"), axis=1))


class WordPieceTokenizer(GraphTokenizer):
    """BERT's: words, normalized, as the longest pieces that there are from the left."""

    decodes = False  # Its decoder puts spaces where it thinks that they were.

    def __init__(self, tokenizer, description):
        super().__init__(tokenizer, description)
        vocabulary = description["model"]["vocab"]
        self.unknown = vocabulary[description["model"]["unk_token"]]
        starts = {token.encode(): i for token, i in vocabulary.items()}
        following = {token[2:]: i for token, i in starts.items() if token.startswith(b"##") and len(token) > 2}
        self.starts, self.following = _table(starts, -1), _table(following or {b"": -1}, -1)
        self.longest = max(map(len, starts))
        changed, alone = _bert_characters(tokenizer._tokenizer)
        self.changed = _table(changed, b"")
        self.pattern = f"([{_ranges(alone)}])".encode()
        dropped = _dropped(tokenizer._tokenizer.normalizer)
        self.dropped = f"[{_ranges(dropped)}]".encode() if dropped else None

    def encode_plain(self, texts):
        if self.dropped:
            texts = tf.strings.regex_replace(texts, self.dropped, "")
        characters = tf.strings.unicode_split(texts, "UTF-8")
        characters = tf.ragged.map_flat_values(self._normalized, characters)
        texts = tf.strings.regex_replace(tf.strings.reduce_join(characters, axis=1), self.pattern, rb" \1 ")
        texts = tf.strings.regex_replace(texts, rf"[{WHITE}]+".encode(), b" ")
        words = tf.strings.split(texts)
        return words.with_flat_values(self._pieces(words.flat_values)).merge_dims(1, 2)

    def _normalized(self, characters):
        changed = self.changed.lookup(characters)
        # A character that disappears is in the table as the mark.
        return tf.where(changed == b"", characters, tf.where(changed == MARK, b"", changed))

    def _pieces(self, words):
        lengths = tf.strings.length(words)
        sizes = tf.range(1, self.longest + 1)[None, :]

        def step(table, start, known, ids):
            left = lengths - start
            found = table.lookup(
                tf.strings.substr(words[:, None], start[:, None] + 0 * sizes, sizes + 0 * left[:, None])
            )
            fits = (found >= 0) & (sizes <= left[:, None])
            size = tf.reduce_max(tf.where(fits, sizes, 0), axis=1)
            piece = tf.gather(found, tf.maximum(size - 1, 0)[:, None], batch_dims=1)[:, 0]
            inside = left > 0
            known &= (size > 0) | ~inside
            piece = tf.where(inside & known, piece, -1)
            return start + tf.where(known, size, left), known, tf.concat([ids, piece[:, None]], axis=1)

        start, known = tf.zeros_like(lengths), tf.strings.length(words, "UTF8_CHAR") <= BERT_WORDS
        start = tf.where(known, start, lengths)
        state = step(self.starts, start, known, tf.zeros((tf.shape(words)[0], 0), "int32"))
        shapes = (tf.TensorShape((None,)), tf.TensorShape((None,)), tf.TensorShape((None, None)))
        _, known, ids = tf.while_loop(
            lambda start, *_: tf.reduce_any(start < lengths), lambda *s: step(self.following, *s), state, shapes
        )
        first = tf.range(tf.shape(ids)[1])[None, :] == 0
        ids = tf.where(known[:, None], ids, tf.where(first, self.unknown, -1))
        return tf.RaggedTensor.from_tensor(ids, lengths=tf.reduce_sum(tf.cast(ids >= 0, "int64"), axis=1))


def _table(entries: dict, default, keys="string"):
    values = tf.constant([*entries.values()], "string" if isinstance(default, bytes) else "int32")
    contents = tf.lookup.KeyValueTensorInitializer(tf.constant([*entries], keys), values)
    return tf.lookup.StaticHashTable(contents, default)


def _quoted(name: bytes) -> bytes:
    return b"".join(b"\\x{%x}" % ord(character) for character in name.decode())


def _characters():
    """Every character that may be anything but a symbol."""
    return [chr(i) for i in range(ASSIGNED) if not 0xD800 <= i < 0xE000]


def _ranges(characters) -> str:
    """The inside of a bracket expression of RE2, from characters in order."""
    runs = []
    for code in map(ord, characters):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in runs)


def _word_pattern(pre_tokenizer) -> bytes:
    """GPT-2's words, with the letters and numbers that the pre-tokenizer knows."""
    characters, found = _characters(), {}
    for like in "a1":
        text = "".join(f"\n{like}{character}" for character in characters)
        pieces = (text[start:stop] for _, (start, stop) in pre_tokenizer.pre_tokenize_str(text))
        found[like] = _ranges(piece[1] for piece in pieces if len(piece) == 2 and piece[0] == like)
    letters, numbers = found["a"], found["1"]
    return (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^{WHITE}{letters}{numbers}]+|[{WHITE}]+"
    ).encode()


def _bert_characters(tokenizer) -> tuple[dict[bytes, bytes], list[str]]:
    """What the normalizer changes a character to (nothing is the mark), and the characters that are words alone."""
    changed, seen = {}, set()
    for character in _characters():
        normal = tokenizer.normalizer.normalize_str(character)
        seen.update(normal)
        if normal != character:
            changed[character.encode()] = normal.encode() or MARK
    alone = [c for c in sorted(seen) if not c.isspace() and len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{c}")) == 2]
    return changed, alone


def _dropped(normalizer) -> list[str]:
    """The characters beyond all letters that a normalizer drops: tags of flags, and what is for private use."""
    dropped = []
    for start in range(ASSIGNED, 0x110000, 0x10000):
        plane = list(map(chr, range(start, start + 0x10000)))
        dropped += sorted({*plane} - {*normalizer.normalize_str("".join(plane))})
    return dropped
