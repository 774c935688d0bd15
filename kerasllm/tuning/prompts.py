"""Trained vectors in front of a text: prompts, read like tokens, and prefixes, attended to in every block.

See `kerasllm.tuning.prompted` for how networks read them.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kerasllm.models.transformer import EncoderDecoder, Transformer
from kerasllm.tuning.delta import Delta
from kerasllm.tuning.prompted import Prompted, PromptedEncoderDecoder
from kerasllm.tuning.settings import Part, Settings


@dataclasses.dataclass(frozen=True)
class PromptTuning(Settings):
    """Trained vectors that stand before each text in place of token vectors; before the source, if there is an encoder.

    The texts may be so many tokens shorter: `model.config.max_sequence_length` is less while the adapter is there.
    A classifier still reads the text's own first token.

    Args:
        also_train: see `Settings`.
        num_tokens: how many vectors.
        initial_ids: ids of tokens whose vectors they begin as, `num_tokens` at the most, repeated as needed; random
            tokens when left out.
        seed: of the random beginning.

    Example:
    ```python
    model.add_adapter("poems", PromptTuning(num_tokens=20))
    ```

    Reference: Lester et al. (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning".
    """

    num_tokens: int = 20
    initial_ids: tuple[int, ...] | None = None
    seed: int = 0

    def check(self):
        if isinstance(self.num_tokens, bool) or not isinstance(self.num_tokens, int) or self.num_tokens < 1:
            raise ValueError(
                f"`num_tokens` must be a whole number of at least 1. Received: num_tokens={self.num_tokens!r}"
            )
        if self.targets is not None:
            raise ValueError(f"A {type(self).__name__} has no `targets`. Received: targets={self.targets!r}")
        if isinstance(getattr(self, "initial_ids", None), list):
            object.__setattr__(self, "initial_ids", tuple(self.initial_ids))
        if self.initial_ids is not None and not 1 <= len(self.initial_ids) <= self.num_tokens:
            raise ValueError(
                f"`initial_ids` must be 1 to num_tokens={self.num_tokens} ids. Received: {len(self.initial_ids)} ids"
            )

    def build(self, model, gate, adapter):
        network = getattr(model, "transformer", None)
        if not isinstance(network, Transformer | EncoderDecoder):
            raise ValueError(
                f"A {type(self).__name__} goes to our models of text (a CausalLM, a Seq2SeqLM, a classifier). "
                f"Received: {type(model).__name__}. Use LoRA, IA3 or Bottleneck there."
            )
        if self.num_tokens >= model.config.max_sequence_length:
            raise ValueError(
                f"The model reads {model.config.max_sequence_length} tokens, which leaves no room for a text behind "
                f"num_tokens={self.num_tokens}."
            )
        if getattr(self, "initial_ids", None) is not None:
            model.check_token_ids(np.asarray(self.initial_ids, "int32"))
        delta = self.make_prompt(model, network, gate, f"prompt_{adapter}")
        parts = [Part("transformer", network, delta.create())]
        return parts + self._whole(model, gate, adapter, parts)

    def make_prompt(self, model, network, gate, name) -> "PromptDelta":
        return PromptDelta(gate, network, name, model, self)


@dataclasses.dataclass(frozen=True)
class PTuning(PromptTuning):
    """A prompt whose vectors are made by a small trained network, which makes training steadier.

    Saved is the prompt that it makes.

    Args:
        also_train, num_tokens, initial_ids, seed: see `PromptTuning`.
        hidden_dim: width of the network; the model's when left out.

    Example:
    ```python
    model.add_adapter("poems", PTuning(num_tokens=20))
    ```

    Reference: Liu et al. (2021), "GPT Understands, Too".
    """

    hidden_dim: int | None = None

    def make_prompt(self, model, network, gate, name):
        return PTuningDelta(gate, network, name, model, self)


@dataclasses.dataclass(frozen=True)
class PrefixTuning(PromptTuning):
    """Trained keys and values that every attention of the stack sees before the text; of the decoder, if there is an
    encoder, where blocks share them as they do in `peft` (see `PrefixDelta`).

    Args:
        also_train, num_tokens, seed: see `PromptTuning`.

    Example:
    ```python
    model.add_adapter("poems", PrefixTuning(num_tokens=20))
    ```

    Reference: Li and Liang (2021), "Prefix-Tuning".
    """

    def make_prompt(self, model, network, gate, name):
        if self.initial_ids is not None:
            raise ValueError(f"A prefix has no token vectors. Received: initial_ids={self.initial_ids!r}")
        return PrefixDelta(gate, network, name, model, self)


class PromptDelta(Delta):
    """The vectors `prompt`, (num_tokens, hidden_dim)."""

    mergeable = False

    def __init__(self, gate, host, name, model, settings):
        super().__init__(gate, host, name)
        self.site.model, self._settings, self.num_tokens = model, settings, settings.num_tokens

    def build(self):
        self.prompt = self._weight("prompt", self._begin())
        self.built = True

    def _weight(self, name, value):
        constant = keras.initializers.Constant(value.astype("float32"))
        return self.add_weight(shape=value.shape, initializer=constant, name=name)

    def _begin(self):
        table, ids = self.site.layer.embedding.tokens.embeddings, self._settings.initial_ids
        if ids is None:
            ids = np.random.default_rng(self._settings.seed).integers(0, table.shape[0], self.num_tokens)
        return np.asarray(ops.convert_to_numpy(ops.take(table, np.resize(ids, self.num_tokens), axis=0)), "float32")

    def vectors(self):
        """(num_tokens, hidden_dim)."""
        return self.prompt

    def pairs(self):
        """A (key, value) a block, each (num_tokens, kv_heads, head_dim), of what is no prompt but a prefix."""
        return None

    def check_weight(self, weight):
        if weight not in (0.0, 1.0):
            raise ValueError(f"A prompt is there or not: its weight is 1 or 0. Received: {weight}")

    def attach(self):
        if self.site.layer.prompted is None:
            kind = PromptedEncoderDecoder if isinstance(self.site.layer, EncoderDecoder) else Prompted
            self.site.layer.prompted = kind(self.site.layer)
        self.site.layer.prompted.add(self)
        self._own(True)
        self._resize(-self.num_tokens)

    def detach(self):
        if not self.site.layer.prompted.remove(self):
            self.site.layer.prompted = None
        self._own(False)
        self._resize(self.num_tokens)

    def _resize(self, change):
        model = self.site.model
        model.config = model.config.replace(max_sequence_length=model.config.max_sequence_length + change)


class PTuningDelta(PromptDelta):
    """`prompt`, and the projections that make it what is read."""

    def build(self):
        start = self._begin()
        width, inside = start.shape[1], self._settings.hidden_dim or start.shape[1]
        random = np.random.default_rng([self._settings.seed, 1])
        self.prompt = self._weight("prompt", start)
        sizes = [(width, inside), (inside, inside), (inside, width)]
        self.kernels = [
            self._weight(f"kernel_{i}", random.uniform(-1, 1, s) / np.sqrt(s[0])) for i, s in enumerate(sizes)
        ]
        self.biases = [self._weight(f"bias_{i}", np.zeros(s[1])) for i, s in enumerate(sizes)]
        self.built = True

    def vectors(self):
        x = self.prompt
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases)):
            x = ops.matmul(x, kernel) + bias
            x = ops.relu(x) if i < 2 else x
        return x


class PrefixDelta(PromptDelta):
    """`prefix`, (num_tokens, blocks · 2 · kv_heads · head_dim): of each block the key, then the value.

    `peft` deals the pairs out to a decoder with an encoder as if there were twice as many, so that of L blocks the
    i-th gets pair 2·i mod L. So do we: the same file means the same model.
    """

    def build(self):
        c = self.site.layer.config
        shape = (self.num_tokens, c.num_layers * 2 * c.num_kv_heads * c.head_dim)
        start = np.random.default_rng(self._settings.seed).normal(size=shape) * c.initializer_range
        self.prefix = self._weight("prefix", start)
        self.built = True

    def vectors(self):
        return None

    def pairs(self):
        c = self.site.layer.config
        shape = (self.num_tokens, c.num_layers, 2, c.num_kv_heads, c.head_dim)
        prefix = ops.reshape(ops.convert_to_tensor(self.prefix), shape)
        order = [2 * i % c.num_layers if c.num_encoder_layers else i for i in range(c.num_layers)]
        return [(prefix[:, i, 0], prefix[:, i, 1]) for i in order]
