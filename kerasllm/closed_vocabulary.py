"""Tokenizers whose model never makes a special token of text: what only spells one stays text."""

import json

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models


def closed(tokenizer: RustTokenizer) -> RustTokenizer:
    """A copy in which special tokens come from their literal spelling alone, and never out of the model.

    The `tokenizers` library has one switch for text that spells a special token, `encode_special_tokens`, and it stops
    the search for added tokens only. The model may still have the token among its pieces: Unigram then takes it (its
    score is 0, the best there is), also where the normalizer made it of other characters. BPE may merge its way to it,
    and WordPiece and WordLevel may find it as a word. Here the model has the same ids without these pieces. The
    unknown token stays: it says that something is not in the vocabulary.

    Args:
        tokenizer: is not changed.

    Returns:
        A tokenizer of the same ids, in whose search the text of a special token is not normalized.
    """
    text = tokenizer.to_str()
    description = json.loads(text)
    tokens = [token for token in description["added_tokens"] if token["special"]]
    special = {token["content"] for token in tokens}
    if any(token["normalized"] for token in tokens):
        for token in tokens:
            token["normalized"] = False
        text = json.dumps(description)
    copy = RustTokenizer.from_str(text)
    model = description["model"]
    if special:
        copy.model = _MODELS[model.pop("type")](model, special)
    return copy


def _unigram(model: dict, special: set[str]):
    # An empty piece keeps the id and the score, on which the score of what is unknown depends, and matches nothing.
    pieces = [("" if text in special else text, score) for text, score in model["vocab"]]
    return models.Unigram(pieces, model["unk_id"], model["byte_fallback"])


def _bpe(model: dict, special: set[str]):
    gone = special - {model["unk_token"]}
    vocabulary = {token: i for token, i in model["vocab"].items() if token not in gone}
    inner = len(model["continuing_subword_prefix"] or "")
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    merges = [(a, b) for a, b in merges if not {a, b, a + b[inner:]} & special]
    options = {name: value for name, value in model.items() if value is not None}
    return models.BPE(**{**options, "vocab": vocabulary, "merges": merges})


def _words(make):
    def words(model: dict, special: set[str]):
        gone = special - {model["unk_token"]}
        return make(**{**model, "vocab": {token: i for token, i in model["vocab"].items() if token not in gone}})

    return words


_MODELS = {
    "Unigram": _unigram,
    "BPE": _bpe,
    "WordPiece": _words(models.WordPiece),
    "WordLevel": _words(models.WordLevel),
}
