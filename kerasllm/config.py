"""TransformerConfig: one frozen dataclass that says how a Transformer behaves.

The fields name behaviour ("rotary", "rms_norm"), never a family, so that a new family is a new row of
values and no new code.
"""

import dataclasses
import difflib
from typing import Any

from kerasllm.named_sizes import NAMED_SIZES

ACTIVATIONS = ("gelu_tanh", "gelu", "relu", "silu")
POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "none")
NORMS = ("layer_norm", "rms_norm")
NORM_POSITIONS = ("pre", "post")

# Larger than any published model, small enough that a damaged or hostile config is refused at the door.
MAX_SIZE = 2**24
MAX_LAYERS = 2**12
MAX_POSITION_VALUES = 2**28  # of a table of rotary or sinusoidal positions, which no weights file bounds


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What a Transformer is made of.

    Args:
        vocabulary_size: number of token ids.
        max_sequence_length: longest sequence the model reads, in tokens.
        num_layers: number of blocks; of the decoder, if there is an encoder.
        num_encoder_layers: blocks of an encoder, which reads a source that every decoder block attends to; 0 for
            a model of one stack.
        num_heads: query heads of each attention.
        hidden_dim: width of the residual stream.
        intermediate_dim: width inside the feed-forward; 4 × `hidden_dim` when left out.
        num_kv_heads: key and value heads. Fewer than `num_heads` is grouped-query attention
            (Ainslie et al., 2023), 1 is multi-query (Shazeer, 2019).
        head_dim: size of a head; `hidden_dim // num_heads` when left out.
        causal: whether a token sees only itself and what came before.
        positions: "learned", "sinusoidal" (Vaswani et al., 2017), "rotary" (Su et al., 2021), "relative" (a bias
            on attention scores by distance, shared by all blocks of a stack; Raffel et al., 2019) or "none".
        rope_theta: base of the rotary frequencies.
        rope_scaling: how rotary frequencies are stretched to longer texts: `None`, `{"type": "linear", "factor": f}`
            or Llama 3's `{"type": "llama3", "factor", "low_freq_factor", "high_freq_factor",
            "original_max_sequence_length"}`.
        relative_buckets, relative_max_distance: distances that "relative" tells apart; beyond the largest, none.
        num_segments: kinds of segments that tokens are marked with (BERT's sentence A and B); 0 for none.
        embedding_norm: whether embeddings are normalized before the first block (BERT).
        sliding_window: a token sees at most this many tokens, itself included; `None` for all.
        norm: "layer_norm" or "rms_norm".
        norm_position: "pre" (GPT-2, with a final norm) or "post" (the 2017 Transformer, BERT).
        norm_epsilon: added to the variance.
        activation: "gelu_tanh" (GPT-2's approximation), "gelu", "relu" or "silu".
        gated: whether the feed-forward is gated (GLU; Shazeer, 2020).
        use_bias: whether projections and layer norms have biases.
        tie_embeddings: whether the output projection is the token embedding.
        scale_embeddings: whether token embeddings are multiplied by √`hidden_dim` (2017).
        scale_logits: whether the last hidden states are divided by √`hidden_dim` before the head (T5 1.0).
        attention_scale: what attention scores are multiplied by; 1 / √`head_dim` when left out, 1.0 for T5.
        pooler: whether the first token's state goes through a tanh layer of its own, for classification (BERT).
        dropout: rate on embeddings and on each residual branch.
        attention_dropout: rate on attention weights.
        initializer_range: standard deviation of the initial weights.

    Raises:
        ValueError: a value is out of range, or two of them disagree.

    Example:
    ```python
    config = TransformerConfig.from_name("gpt2_tiny", vocabulary_size=512)
    config.num_parameters()  # counted without allocating anything
    ```
    """

    vocabulary_size: int
    max_sequence_length: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    intermediate_dim: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = True
    positions: str = "learned"
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    num_segments: int = 0
    embedding_norm: bool = False
    sliding_window: int | None = None
    norm: str = "layer_norm"
    norm_position: str = "pre"
    norm_epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    gated: bool = False
    use_bias: bool = True
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    scale_logits: bool = False
    attention_scale: float | None = None
    pooler: bool = False
    num_encoder_layers: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self):
        for name in ("vocabulary_size", "max_sequence_length", "num_heads", "hidden_dim"):
            self._check_size(name)
        self._check_size("num_layers", MAX_LAYERS)
        self._derive("intermediate_dim", 4 * self.hidden_dim)
        self._derive("num_kv_heads", self.num_heads)
        if self.head_dim is None and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"`hidden_dim` must be a multiple of `num_heads`, unless `head_dim` is given. "
                f"Received: hidden_dim={self.hidden_dim}, num_heads={self.num_heads}"
            )
        self._derive("head_dim", self.hidden_dim // self.num_heads)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"`num_heads` must be a multiple of `num_kv_heads`. "
                f"Received: num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"
            )
        if self.sliding_window is not None:
            self._check_size("sliding_window")
        self._check_size("num_encoder_layers", MAX_LAYERS, least=0)
        self._check_size("num_segments", least=0)
        self._check_size("relative_buckets", least=4)
        self._check_size("relative_max_distance")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                "`relative_max_distance` must be more than half of `relative_buckets`. Received: "
                f"relative_max_distance={self.relative_max_distance}, relative_buckets={self.relative_buckets}"
            )
        if self.num_encoder_layers and not self.causal:
            raise ValueError("A decoder that attends to an encoder is causal. Received: causal=False")
        if self.attention_scale is not None:
            self._check_number("attention_scale", at_least=0.0, below=1e12)
        check_rope_scaling(self.rope_scaling)
        for name, choices in (
            ("positions", POSITIONS),
            ("norm", NORMS),
            ("norm_position", NORM_POSITIONS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={getattr(self, name)!r}")
        flags = ("causal", "gated", "use_bias", "tie_embeddings", "scale_embeddings", "scale_logits", "pooler")
        for name in (*flags, "embedding_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False. Received: {name}={getattr(self, name)!r}")
        for name in ("dropout", "attention_dropout"):
            self._check_number(name, at_least=0.0, below=1.0)
        for name in ("norm_epsilon", "initializer_range"):
            self._check_number(name, at_least=0.0, below=1e12)
        self._check_number("rope_theta", at_least=1.0, below=1e12)
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"Rotary positions need an even `head_dim`. Received: head_dim={self.head_dim}")
        width = {"rotary": self.head_dim, "sinusoidal": self.hidden_dim}.get(self.positions, 0)
        if self.max_sequence_length * width > MAX_POSITION_VALUES:
            raise ValueError(
                f"A table of {self.positions} positions has at most {MAX_POSITION_VALUES} values. "
                f"Received: max_sequence_length={self.max_sequence_length}, times a width of {width}"
            )

    def _derive(self, name: str, default: int) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, default)
        self._check_size(name)

    def _check_size(self, name: str, largest: int = MAX_SIZE, least: int = 1) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
            raise ValueError(f"`{name}` must be a whole number from {least} to {largest}. Received: {name}={value!r}")

    def _check_number(self, name: str, at_least: float, below: float) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < below:
            raise ValueError(f"`{name}` must be a number in [{at_least}, {below}). Received: {name}={value!r}")

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> "TransformerConfig":
        """The config of a published (or tiny) size, with any field replaced.

        Raises:
            ValueError: no size or no field of that name; the message lists near ones.
        """
        if name not in NAMED_SIZES:
            raise ValueError(
                f"Unknown model size {name!r}.{_near(name, NAMED_SIZES)} Sizes: {', '.join(sorted(NAMED_SIZES))}"
            )
        return cls.from_dict({**NAMED_SIZES[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """Builds a config from a dict whose keys must all be fields (the schema is closed)."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise ValueError(f"Unknown config key {key!r}.{_near(key, fields)} Keys: {', '.join(fields)}")
        missing = [
            name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise ValueError(f"The config lacks {', '.join(missing)}. Received keys: {', '.join(values)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> "TransformerConfig":
        """A copy with some fields replaced."""
        return self.from_dict({**self.to_dict(), **changes})

    def num_parameters(self, embeddings: bool = True) -> int:
        """Number of weights, counted from the config alone.

        Args:
            embeddings: whether token and position tables (and an untied head) are counted.
        """
        d, f, bias = self.hidden_dim, self.intermediate_dim, int(self.use_bias)
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = d * (1 + (bias if self.norm == "layer_norm" else 0))
        attention = d * (q + 2 * kv) + q * d + bias * (q + 2 * kv + d)
        feed_forward = (2 + self.gated) * d * f + bias * ((1 + self.gated) * f + d)
        stacks = 2 if self.num_encoder_layers else 1
        blocks = (self.num_layers + self.num_encoder_layers) * (attention + feed_forward + 2 * norm)
        blocks += self.num_layers * (attention + norm) * (stacks - 1)
        blocks += stacks * norm if self.norm_position == "pre" else 0
        blocks += stacks * self.relative_buckets * self.num_heads if self.positions == "relative" else 0
        blocks += d * d + d if self.pooler else 0
        if not embeddings:
            return blocks
        tables = self.vocabulary_size * d * (1 if self.tie_embeddings else 2)
        tables += self.num_segments * d + (norm if self.embedding_norm else 0)
        return blocks + tables + (self.max_sequence_length * d if self.positions == "learned" else 0)

    def flops_per_token(self, sequence_length: int | None = None) -> int:
        """Multiply-adds × 2 of one forward pass, per token, at a sequence length (PaLM's count, appendix B:
        2 per weight that multiplies plus 2 · 2 · layers · heads · head size · length for attention).

        A training step is three times this: one forward, two for the backward pass.
        """
        length = sequence_length or self.max_sequence_length
        multiplied = self.num_parameters(embeddings=False) + self.vocabulary_size * self.hidden_dim
        return 2 * multiplied + 4 * self.num_layers * self.num_heads * self.head_dim * length

    def kv_cache_bytes(self, batch_size: int = 1, bytes_per_value: int = 4) -> int:
        """Bytes of a full key/value cache."""
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        return per_token * self.max_sequence_length * batch_size * bytes_per_value


ROPE_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_sequence_length"),
}


def check_rope_scaling(values: Any) -> None:
    """Raises a ValueError unless `values` is `None` or a complete `rope_scaling`."""
    if values is None:
        return
    kind = values.get("type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
        raise ValueError(
            f"`rope_scaling` must be null or a mapping whose type is one of {', '.join(ROPE_SCALINGS)}. "
            f"Received: rope_scaling={values!r}"
        )
    if set(values) != {"type", *ROPE_SCALINGS[kind]}:
        raise ValueError(
            f"`rope_scaling` of type {kind!r} has the keys {', '.join(ROPE_SCALINGS[kind])}. "
            f"Received: rope_scaling={values!r}"
        )
    for key in ROPE_SCALINGS[kind]:
        value = values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise ValueError(f"`rope_scaling[{key!r}]` must be a positive number. Received: {value!r}")


def _near(name: str, names) -> str:
    near = difflib.get_close_matches(str(name), list(names), n=3)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
