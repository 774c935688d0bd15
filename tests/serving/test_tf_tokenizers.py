"""A tokenizer's graph gives the tokenizer's ids, for every text."""

import random

import pytest
from odd_texts import odd_texts

import kerasllm

tf = pytest.importorskip("tensorflow")

pytestmark = pytest.mark.one_backend

CORPUS = "To be, or not to be: that's the question.\nWhether 'tis nobler in the mind to suffer it I'll naïvely know "
TRICKY = [
    "",
    " ",
    "  a  b\n\n c\t\td ",
    "that's  the question!! I'll they've 'sx 'S",
    "naïve ÀÉÎ ß İstanbul ǅ Σίσυφος ΣΑΣ",
    "日本語 中文字 한국어 각",
    "🙂👩‍👩‍👧 x🇩🇪",
    "a\u00a0b\u2003\u2003c\u3000 d\x0b\x0ce\x85f\r\n",
    "x<|endoftext|>y[MASK] [SEP]<|endoftext|><|endoftext|>",
    "\x00\x01a\u200bb\ufeffc\u0300\u0301e\u0301\u302e",
    "1234 5½ ² ٣٤ x1y2",
    "...---!!  ?\n",
    "\u1c89 \U000105c0\U0002ee5d",  # letters to some Unicode tables, and not to others
    "nobler" * 40,
    " \n \n  x",
]


@pytest.fixture(scope="module", params=["char", "byte", "bpe", "wordpiece"])
def pair(request):
    from kerasllm.serving.tf_tokenizers import graph_tokenizer

    kind = request.param
    size = 400 if kind in ("bpe", "wordpiece") else None
    special = ["<|endoftext|>", "<unk>"] if kind == "char" else None
    tokenizer = kerasllm.Tokenizer.train(CORPUS * 3, kind=kind, vocabulary_size=size, special_tokens=special)
    return tokenizer, graph_tokenizer(tokenizer)


def test_ids_are_the_tokenizers(pair):
    tokenizer, graph = pair
    encode = tf.function(graph.encode, input_signature=[tf.TensorSpec((None,), "string")])
    rows = sorted(TRICKY + odd_texts(), key=len)  # A batch is as wide as its longest word.
    batches = [rows[start : start + 250] for start in range(0, len(rows), 250)]
    made = [ids for batch in batches for ids in encode(tf.constant([text.encode() for text in batch])).to_list()]
    for text, ids, wanted in zip(rows, made, tokenizer.encode(rows)):
        assert ids == wanted, text
    assert encode(tf.constant([], "string")).to_list() == []


def test_text_is_the_tokenizers(pair):
    tokenizer, graph = pair
    if not graph.decodes:
        pytest.skip("WordPiece's spaces are guessed")
    draw = random.Random(1)
    rows = [[draw.randrange(tokenizer.vocabulary_size) for _ in range(draw.randint(0, 12))] for _ in range(200)]
    made = graph.decode(tf.ragged.constant(rows, dtype="int32")).numpy()
    for ids, text in zip(rows, made):
        assert text.decode() == tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_character_that_is_not_known_is_an_error():
    from kerasllm.serving.tf_tokenizers import graph_tokenizer

    graph = graph_tokenizer(kerasllm.Tokenizer.train("abc", kind="char"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not in the tokenizer's vocabulary"):
        graph.encode(tf.constant(["abcd"]))


def test_tokenizers_without_an_exact_graph_are_refused():
    from tokenizers import normalizers, pre_tokenizers

    from kerasllm.serving.tf_tokenizers import graph_tokenizer

    with pytest.raises(ValueError, match=r"unigram tokenizer: its normalization .* text=False"):
        graph_tokenizer(kerasllm.Tokenizer.train(CORPUS, kind="unigram", vocabulary_size=60))
    tokenizer = kerasllm.Tokenizer.train(CORPUS, kind="bpe", vocabulary_size=300)
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="cuts texts by 'ByteLevel' in a way of its own"):
        graph_tokenizer(tokenizer)
    tokenizer._tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(ValueError, match="it has the normalizer 'NFC'"):
        graph_tokenizer(tokenizer)
