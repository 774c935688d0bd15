"""What the Tokens tab computes: a text cut in several ways, and as a model in training sees it."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasllm.data.rows import Rows
from kerasllm.objectives import SpanCorruption, build, show
from kerasllm.tokenizers import Tokenizer
from kerasllm.training.tasks import TASKS

KINDS = {"char": "Characters", "bpe": "Byte-level BPE", "wordpiece": "WordPiece"}
VOCABULARY = 1024
CORRUPTIONS = {"masked": "Masked (BERT)", "span": "Spans taken out (T5)"}


@dataclass(frozen=True)
class Cut:
    """A text in tokens.

    Attributes:
        name: of the way it was cut.
        unknown: how many tokens stand for characters that the vocabulary has not.
    """

    name: str
    tokens: list[str]
    ids: list[int]
    unknown: int


def cut(tokenizer: Tokenizer, text: str, name: str) -> Cut:
    """Tokens and ids of a text. What spells a special token is one only where that is how masks are written."""
    ids = tokenizer.encode(text)
    tokens = [tokenizer.id_to_token(i) for i in ids]
    unknown = tokenizer.role_tokens.get("unk_token")
    return Cut(name, tokens, ids, sum(token == unknown for token in tokens))


@functools.lru_cache(maxsize=8)
def trained(kind: str, file: Path) -> Tokenizer:
    """A tokenizer that learned from the built-in text."""
    text = Path(file).read_text(encoding="utf-8")
    if kind == "char":
        return Tokenizer.train(text, "char", special_tokens=["<unk>"])
    if kind == "unigram":
        return Tokenizer.train(text, kind, VOCABULARY, TASKS["span-corruption"].tokens(kind))
    return Tokenizer.train(text, kind, VOCABULARY)


def corrupted(kind: str, text: str, tokenizer: Tokenizer, draw: int) -> str:
    """A text as a model sees it in training, with what it has to predict; another draw hides other tokens."""
    ids = tokenizer.encode(text)
    ends = [] if tokenizer.end_token_id is None else [tokenizer.end_token_id]
    rows = np.array([[*ids, *(ends or ids[-1:])]], "int32")
    weights = np.ones((1, len(ids)), "float32")
    objective = build(kind, tokenizer)
    if isinstance(objective, SpanCorruption) and len(ids) < 4:
        raise ValueError("A text of fewer than four tokens is too short to take spans out of. Write more.")
    return show(objective, Rows(rows, weights, keys=np.array([draw], "uint64")), tokenizer)
