"""Objectives: what a model learns to predict. Token rows in, `(x, y[, sample_weight])` out; numpy only.

An objective is a function of `Rows`; one that has settings is a frozen dataclass which is called like a function.
Whatever it draws at random is a function of the rows' keys, so the same (seed, epoch, step) is the same batch.
"""

import functools

from kerasllm.lazy import submodule
from kerasllm.objectives.contrastive import info_nce, pair_rows
from kerasllm.objectives.infilling import FillInTheMiddle
from kerasllm.objectives.instruction import Instruction
from kerasllm.objectives.masked import MaskedLM, word_starts
from kerasllm.objectives.named import OBJECTIVES, build
from kerasllm.objectives.next_sentence import NextSentence
from kerasllm.objectives.next_token import causal
from kerasllm.objectives.prefix import prefix_lm
from kerasllm.objectives.replaced_tokens import GeneratedTokens, ReplacedTokens, corrupt, replaced
from kerasllm.objectives.seq2seq import seq2seq_batch
from kerasllm.objectives.spans import SpanCorruption
from kerasllm.objectives.viewer import show

__all__ = [
    "OBJECTIVES",
    "FillInTheMiddle",
    "GeneratedTokens",
    "Instruction",
    "MaskedLM",
    "NextSentence",
    "ReplacedTokens",
    "SpanCorruption",
    "build",
    "causal",
    "corrupt",
    "info_nce",
    "pair_rows",
    "prefix_lm",
    "replaced",
    "seq2seq_batch",
    "show",
    "word_starts",
]

__getattr__ = functools.partial(submodule, __name__)
