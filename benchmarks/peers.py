"""The peers that kerasllm is measured against: a plain PyTorch GPT, transformers' GPT-2 and KerasHub's GPT-2.

All have GPT-2's architecture (learned positions, pre-norm, tanh GELU, biases, tied head), no dropout,
float32, and one AdamW with the same settings. Libraries are imported where they are used, so that a worker
loads only its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.999)
EPSILON = 1e-7
WEIGHT_DECAY = 0.004  # these three are Keras's defaults


@dataclass(frozen=True)
class Shape:
    """A model's size and its batch."""

    num_layers: int
    num_heads: int
    hidden_dim: int
    vocabulary_size: int
    batch_size: int
    sequence_length: int

    @property
    def label(self) -> str:
        model = f"{self.num_layers} layers x {self.hidden_dim}, vocabulary {self.vocabulary_size}"
        return f"{model}, {self.batch_size}x{self.sequence_length} tokens"


SHAPES = {
    "a": Shape(4, 4, 128, 65, 12, 64),  # nanoGPT's recipe for a CPU
    "b": Shape(6, 6, 384, 8192, 8, 256),
}


def random_tokens(shape: Shape, steps: int) -> tuple[Any, Any]:
    """Inputs and targets of `steps` batches: int32 arrays of shape (steps * batch_size, sequence_length)."""
    import numpy as np

    rows = steps * shape.batch_size
    tokens = np.random.default_rng(0).integers(0, shape.vocabulary_size, (rows, shape.sequence_length + 1))
    return tokens[:, :-1].astype("int32"), tokens[:, 1:].astype("int32")


def make_plain_gpt(shape: Shape) -> Any:
    """The GPT one would write by hand in PyTorch: fused projections, fused causal attention, a tied head."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query_key_value = nn.Linear(shape.hidden_dim, 3 * shape.hidden_dim)
            self.output = nn.Linear(shape.hidden_dim, shape.hidden_dim)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            heads = self.query_key_value(x).view(batch, length, 3, shape.num_heads, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            x = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.output(x.transpose(1, 2).reshape(batch, length, -1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm = nn.LayerNorm(shape.hidden_dim)
            self.attention = Attention()
            self.feed_forward_norm = nn.LayerNorm(shape.hidden_dim)
            self.feed_forward = nn.Sequential(
                nn.Linear(shape.hidden_dim, 4 * shape.hidden_dim),
                nn.GELU(approximate="tanh"),
                nn.Linear(4 * shape.hidden_dim, shape.hidden_dim),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.attention(self.attention_norm(x))
            return x + self.feed_forward(self.feed_forward_norm(x))

    class PlainGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token_embedding = nn.Embedding(shape.vocabulary_size, shape.hidden_dim)
            self.position_embedding = nn.Embedding(shape.sequence_length, shape.hidden_dim)
            self.blocks = nn.Sequential(*(Block() for _ in range(shape.num_layers)))
            self.norm = nn.LayerNorm(shape.hidden_dim)
            self.head = nn.Linear(shape.hidden_dim, shape.vocabulary_size, bias=False)
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)
            self.head.weight = self.token_embedding.weight

        def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device)
            x = self.token_embedding(token_ids) + self.position_embedding(positions)
            return self.head(self.norm(self.blocks(x)))

    return PlainGPT()


def make_transformers_gpt(shape: Shape) -> Any:
    """transformers' GPT-2 with its fused attention, without the cache that only decoding needs."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_embd=shape.hidden_dim,
        vocab_size=shape.vocabulary_size,
        n_positions=shape.sequence_length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def make_torch_step(model: Any, shape: Shape, compiled: bool = False, device: str = "cpu") -> Callable[[], Any]:
    """One full step of a PyTorch model: forward, loss, backward, AdamW. It returns the loss, a tensor."""
    import torch
    from torch.nn import functional

    model = model.to(device).train()
    forward = torch.compile(model) if compiled else model
    # The fused AdamW: on a CPU too, none of PyTorch's other forms measured faster.
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=BETAS,
        eps=EPSILON,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    token_ids, targets = (torch.from_numpy(array).long().to(device) for array in random_tokens(shape, 1))

    def step() -> torch.Tensor:
        output = forward(token_ids)
        logits = getattr(output, "logits", output)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def make_train_step(shape: Shape, compiled: bool = False, device: str = "cpu") -> Callable[[], Any]:
    """One full training step of the plain PyTorch GPT."""
    return make_torch_step(make_plain_gpt(shape), shape, compiled, device)


def make_step_burst(step: Callable[[], Any]) -> Callable[[int], tuple[float, float]]:
    """A function that takes n steps and returns the seconds that they took and the last loss."""

    def burst(steps: int) -> tuple[float, float]:
        started = time.perf_counter()
        for _ in range(steps):
            loss = step()
        loss = loss.item()
        return time.perf_counter() - started, loss

    return burst


def make_keras_hub_gpt(shape: Shape) -> Any:
    """KerasHub's GPT-2, compiled with AdamW and the plain loss, on the backend of KERAS_BACKEND."""
    import keras
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=shape.vocabulary_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        hidden_dim=shape.hidden_dim,
        intermediate_dim=4 * shape.hidden_dim,
        max_sequence_length=shape.sequence_length,
        dropout=0.0,
    )
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],  # its default accuracy metric would only slow it down
    )
    return model


def make_kerasllm_gpt(shape: Shape, compiled: bool = False) -> Any:
    """kerasllm's GPT with its default loss and metrics, on the backend of KERAS_BACKEND."""
    import keras

    import kerasllm

    config = kerasllm.TransformerConfig.from_name(
        "gpt2_tiny",
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        hidden_dim=shape.hidden_dim,
        intermediate_dim=4 * shape.hidden_dim,
        vocabulary_size=shape.vocabulary_size,
        max_sequence_length=shape.sequence_length,
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = kerasllm.CausalLM(config)
    optimizer = keras.optimizers.AdamW(LEARNING_RATE)
    model.compile(optimizer=optimizer, jit_compile=True if compiled else "auto")
    return model


def make_fit_burst(model: Any, inputs: Callable[[Any], Any], shape: Shape) -> Callable[[int], tuple[float, float]]:
    """A function that fits a Keras model for n steps and returns the seconds that they took and their loss.

    The clock runs from the first step's start, after `fit` has made its iterator, until the epoch's loss is a
    number, which is when the last step has been computed. What `fit` does after that is left out: on TensorFlow
    it now and then waits for seconds while tf.data's tuning thread goes to sleep.
    """
    import keras

    class Clock(keras.callbacks.Callback):
        started = seconds = loss = 0.0

        def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
            if batch == 0:
                self.started = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            self.loss = float(logs["loss"])
            self.seconds = time.perf_counter() - self.started

    def burst(steps: int) -> tuple[float, float]:
        token_ids, targets = random_tokens(shape, steps)
        clock = Clock()
        model.fit(
            inputs(token_ids),
            targets,
            batch_size=shape.batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[clock],
        )
        return clock.seconds, clock.loss

    return burst
