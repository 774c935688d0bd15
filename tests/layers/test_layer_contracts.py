"""Every layer keeps the contract of a Keras layer."""

import numpy as np
import pytest
from contract import check_layer

from kerasllm import TransformerConfig
from kerasllm.layers import Attention, FeedForward, TransformerBlock
from kerasllm.layers.embeddings import TokenEmbedding
from kerasllm.models.transformer import Transformer

BATCH, LENGTH, DIM = 2, 6, 16
SIZES = {"vocabulary_size": 11, "max_sequence_length": 8, "num_layers": 1, "num_heads": 4, "hidden_dim": DIM}
LLAMA_LIKE = {
    "norm": "rms_norm",
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "use_bias": False,
    "num_kv_heads": 2,
    "tie_embeddings": False,
    "sliding_window": 3,
}
VASWANI_LIKE = {
    "norm_position": "post",
    "positions": "sinusoidal",
    "activation": "relu",
    "scale_embeddings": True,
}


def vectors(length=LENGTH):
    return np.random.default_rng(length).normal(size=(BATCH, length, DIM)).astype("float32")


def token_ids():
    return np.random.default_rng(0).integers(0, 11, (BATCH, LENGTH)).astype("int32")


def causal(layer, x):
    return layer(x, causal=True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 4, "head_dim": 4},
        {"num_heads": 4, "head_dim": 3, "num_kv_heads": 2, "use_bias": False, "dropout": 0.1, "scale": 0.7},
    ],
    ids=["multi_head", "grouped"],
)
def test_attention(options, tmp_path):
    # Dropout on attention weights needs a mask instead of `causal`.
    check_layer(
        lambda dtype: Attention(**options, dtype=dtype),
        [vectors()],
        (BATCH, LENGTH, DIM),
        tmp_path,
        call=None if "dropout" in options else causal,
    )


def test_cross_attention(tmp_path):
    check_layer(
        lambda dtype: Attention(num_heads=2, head_dim=4, num_kv_heads=1, dtype=dtype),
        [vectors(), vectors(4)],
        (BATCH, LENGTH, DIM),
        tmp_path,
    )


@pytest.mark.parametrize(
    "options",
    [{"activation": "gelu"}, {"activation": "silu", "gated": True, "use_bias": False}],
    ids=["plain", "gated"],
)
def test_feed_forward(options, tmp_path):
    check_layer(lambda dtype: FeedForward(24, **options, dtype=dtype), [vectors()], (BATCH, LENGTH, DIM), tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, {**LLAMA_LIKE, "positions": "none"}, VASWANI_LIKE], ids=["gpt2", "llama", "vaswani"]
)
def test_block(changes, tmp_path):
    config = TransformerConfig(**SIZES, **changes)
    check_layer(
        lambda dtype: TransformerBlock(config, dtype=dtype),
        [vectors()],
        (BATCH, LENGTH, DIM),
        tmp_path,
        call=causal,
    )


@pytest.mark.parametrize("changes", [{}, VASWANI_LIKE, LLAMA_LIKE], ids=["learned", "sinusoidal", "untied"])
def test_token_embedding(changes, tmp_path):
    config = TransformerConfig(**SIZES, **changes)

    def there_and_back(layer, ids):
        return layer.logits(layer(ids))

    check_layer(lambda dtype: TokenEmbedding(config, dtype=dtype), [token_ids()], (BATCH, LENGTH, DIM), tmp_path)
    layer = TokenEmbedding(config)
    assert tuple(there_and_back(layer, token_ids()).shape) == (BATCH, LENGTH, 11)
    assert tuple(layer.head_kernel().shape) == (DIM, 11)


@pytest.mark.parametrize("changes", [{}, LLAMA_LIKE, VASWANI_LIKE], ids=["gpt2", "llama", "vaswani"])
def test_transformer(changes, tmp_path):
    config = TransformerConfig(**SIZES, **changes)
    check_layer(lambda dtype: Transformer(config, dtype=dtype), [token_ids()], (BATCH, LENGTH, DIM), tmp_path)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="num_kv_heads=3"):
        Attention(num_heads=4, head_dim=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="tanh"):
        FeedForward(8, activation="tanh")
