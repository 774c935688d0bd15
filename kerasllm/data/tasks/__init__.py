"""Tasks that every Python carries: pairs of texts that are generated, or read from the standard library.

Nothing is downloaded. Each function gives a list of pairs of texts, or of conversations, and its `part`, `"train"` or
`"validation"`, is a fixed split: what is held out (calendar days, numbers, modules) is in no training example,
whatever the seed.
"""

from kerasllm.data.tasks.conversations import conversations
from kerasllm.data.tasks.date_forms import dates
from kerasllm.data.tasks.docstrings import docstring_pairs
from kerasllm.data.tasks.library_lines import source_lines
from kerasllm.data.tasks.numerals import number_words
from kerasllm.data.tasks.tfidf import tfidf_retrieval

__all__ = ["conversations", "dates", "docstring_pairs", "number_words", "source_lines", "tfidf_retrieval"]
