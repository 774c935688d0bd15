"""What happened inside a model while it read a text."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

STACKS = ("decoder", "encoder", "cross")


class AttentionMaps(NamedTuple):
    """The attention weights of one kind: (layers, heads, queries, keys), and what its queries and keys are."""

    weights: np.ndarray
    query_tokens: list[str]
    key_tokens: list[str]


class _Plotted:
    """The pictures of a trace. Each is a matplotlib `Figure`, which a notebook shows and `savefig` writes."""

    def plot_heads(self, kind: str = "decoder"):
        """All heads of all layers at a glance; see `kerasllm.inspection.plots.plot_heads`."""
        from kerasllm.inspection.plots import plot_heads

        return plot_heads(self, kind)

    def plot_attention(self, layer: int, head: int, kind: str = "decoder"):
        """One head, token by token; see `kerasllm.inspection.plots.plot_attention`."""
        from kerasllm.inspection.plots import plot_attention

        return plot_attention(self, layer, head, kind)

    def plot_logit_lens(self):
        """What each layer would answer; see `kerasllm.inspection.plots.plot_logit_lens`."""
        from kerasllm.inspection.plots import plot_logit_lens

        return plot_logit_lens(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace(_Plotted):
    """What happened inside a model of one stack.

    Attributes:
        tokens: strings, of what was read.
        attentions: a (1, heads, query, key) array a layer.
        hidden_states: the embeddings, then each layer's output, (1, length, dim).
        logits: what `predict` returns.
        model: that was traced.
    """

    tokens: list[str]
    attentions: list
    hidden_states: list
    logits: Any
    model: Any = dataclasses.field(repr=False)

    def attention_maps(self, kind: str = "decoder") -> AttentionMaps:
        """The weights as one array. There is one stack, which "decoder" and "encoder" both mean.

        Raises:
            ValueError: another kind.
        """
        check_stack(kind, has_encoder=False, name="kind")
        return AttentionMaps(np.concatenate(self.attentions), self.tokens, self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class Seq2SeqTrace(_Plotted):
    """What happened inside while a target was written for a source.

    Attributes:
        source_tokens, tokens: strings, of what the encoder and the decoder read.
        encoder_attentions, attentions, cross_attentions: a (1, heads, query, key) array a layer; the keys of
            `cross_attentions` are the source's tokens.
        encoder_hidden_states, hidden_states: the embeddings, then each layer's output, (1, length, dim).
        logits: (1, length, vocabulary_size).
        model: that was traced.
    """

    source_tokens: list[str]
    tokens: list[str]
    encoder_attentions: list
    attentions: list
    cross_attentions: list
    encoder_hidden_states: list
    hidden_states: list
    logits: Any
    model: Any = dataclasses.field(repr=False)

    def attention_maps(self, kind: str = "decoder") -> AttentionMaps:
        """The weights of the "decoder", the "encoder", or of "cross"-attention from one to the other, as one array.

        Raises:
            ValueError: another kind.
        """
        check_stack(kind, has_encoder=True, name="kind")
        weights, queries, keys = {
            "decoder": (self.attentions, self.tokens, self.tokens),
            "encoder": (self.encoder_attentions, self.source_tokens, self.source_tokens),
            "cross": (self.cross_attentions, self.tokens, self.source_tokens),
        }[kind]
        return AttentionMaps(np.concatenate(weights), queries, keys)


def check_stack(stack: str, has_encoder: bool, name: str = "stack") -> None:
    """Raises a ValueError unless a model has this stack; a model of one stack has no "cross"."""
    stacks = STACKS if has_encoder else STACKS[:2]
    if stack not in stacks:
        alone = "" if has_encoder else " The model has one stack, and no cross-attention."
        raise ValueError(f"`{name}` must be one of {', '.join(stacks)}.{alone} Received: {name}={stack!r}")
