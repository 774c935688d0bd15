"""Long texts in parts that a tokenizer reads as it reads the whole: its own memory is then that of a part.

The `tokenizers` library keeps about 130 bytes for each byte of a text until it is done with it.
"""

import re
from collections.abc import Iterator

LONG = 1 << 18  # characters
PART = 1 << 16
LONG_WORD = 20_000
# The end of a line between a visible character and the next line's first. What is white, or a letter, differs between
# tables of Unicode; none takes these for white, or joins them over the end of a line.
_LINE_END = re.compile(r"(?:(?<=[!-~])|(?<=[^\W_]))\n(?=[!-~]|[^\W_])")
_ONE_WORD = re.compile(rf"\w{{{LONG_WORD}}}")


def cuts_lines(description: dict) -> bool:
    """Whether a tokenizer certainly cuts a text after such a line end, as far as it is known.

    Args:
        description: its tokenizer.json.
    """
    normalizer, cut = description["normalizer"] or {}, description["pre_tokenizer"] or {}
    added = "".join(token["content"] for token in description["added_tokens"])
    flags = any(token[flag] for token in description["added_tokens"] for flag in ("lstrip", "rstrip", "single_word"))
    if flags or re.search(r"\s", added) or normalizer.get("type") not in (None, "NFC", "NFKC", "BertNormalizer"):
        return False
    model = description["model"]
    if model["type"] == "BPE" and not model["merges"] and not model.get("fuse_unk"):
        return not cut or (cut["type"] == "ByteLevel" and not cut["add_prefix_space"])
    if cut.get("type") == "ByteLevel":
        return cut["use_regex"] and not cut["add_prefix_space"]
    if cut.get("type") == "Sequence":  # as `Tokenizer.train` makes a Unigram
        lines, *spaces = cut["pretokenizers"]
        return lines == {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False} and [
            part.get("prepend_scheme") for part in spaces
        ] == ["never"]
    return cut.get("type") == "BertPreTokenizer"


def line_parts(text: str) -> Iterator[str]:
    """A text in parts of at least `PART` characters, cut after line ends."""
    start = 0
    while start + PART < len(text) and (end := _LINE_END.search(text, start + PART)):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def has_long_word(text: str) -> bool:
    """Whether a text has a word that merging takes long to learn from: its time grows with the square of the length."""
    return len(text) >= LONG_WORD and _ONE_WORD.search(text) is not None
