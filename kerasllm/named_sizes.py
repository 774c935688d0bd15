"""Published (and a few tiny) model sizes by name: what `TransformerConfig.from_name` reads.

A family is one dict of behaviour, and a function that adds the sizes to it.
"""

from typing import Any


def gpt(num_layers: int, hidden_dim: int, num_heads: int, length: int, **more: Any) -> dict[str, Any]:
    """GPT-2 and GPT-3 (Radford et al., 2019; Brown et al., 2020)."""
    return {
        "vocabulary_size": 50257,
        "max_sequence_length": length,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        **more,
    }


def bert(num_layers: int, hidden_dim: int, num_heads: int, **more: Any) -> dict[str, Any]:
    """BERT (Devlin et al., 2018), and its small sizes (Turc et al., 2019)."""
    return {
        "vocabulary_size": 30522,
        "max_sequence_length": 512,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "causal": False,
        "num_segments": 2,
        "embedding_norm": True,
        "norm_position": "post",
        "norm_epsilon": 1e-12,
        "activation": "gelu",
        "pooler": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        **more,
    }


def t5(num_layers: int, hidden_dim: int, num_heads: int, intermediate_dim: int, **more: Any) -> dict[str, Any]:
    """T5 1.0 (Raffel et al., 2019). Its attention is not scaled, and has heads of their own size."""
    return {
        "vocabulary_size": 32128,
        "max_sequence_length": 512,
        "num_layers": num_layers,
        "num_encoder_layers": num_layers,
        "num_heads": num_heads,
        "head_dim": 64,
        "hidden_dim": hidden_dim,
        "intermediate_dim": intermediate_dim,
        "positions": "relative",
        "norm": "rms_norm",
        "norm_epsilon": 1e-6,
        "activation": "relu",
        "use_bias": False,
        "attention_scale": 1.0,
        "scale_logits": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "initializer_range": 0.05,
        **more,
    }


def t5_1_1(*sizes: int, **more: Any) -> dict[str, Any]:
    """T5 1.1 (Shazeer, 2020): a gated feed-forward, and a head of its own."""
    gated = {"activation": "gelu_tanh", "gated": True, "tie_embeddings": False, "scale_logits": False}
    return {**t5(*sizes), **gated, **more}


def transformer(num_layers: int, hidden_dim: int, num_heads: int, **more: Any) -> dict[str, Any]:
    """The Transformer of 2017 (Vaswani et al.), table 3, with the vocabulary of its English-German model."""
    return {
        "vocabulary_size": 37000,
        "max_sequence_length": 1024,
        "num_layers": num_layers,
        "num_encoder_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "positions": "sinusoidal",
        "norm_position": "post",
        "norm_epsilon": 1e-6,
        "activation": "relu",
        "scale_embeddings": True,
        "dropout": 0.1,
        **more,
    }


def llama(num_layers: int, hidden_dim: int, num_heads: int, intermediate_dim: int, **more: Any) -> dict[str, Any]:
    """Llama (Touvron et al., 2023)."""
    return {
        "vocabulary_size": 32000,
        "max_sequence_length": 4096,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": intermediate_dim,
        "positions": "rotary",
        "norm": "rms_norm",
        "activation": "silu",
        "gated": True,
        "use_bias": False,
        "tie_embeddings": False,
        **more,
    }


LLAMA_3 = {"vocabulary_size": 128256, "max_sequence_length": 8192, "num_kv_heads": 8, "rope_theta": 500000.0}
LLAMA_3_1 = {
    **LLAMA_3,
    "max_sequence_length": 131072,
    "rope_scaling": {
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_sequence_length": 8192,
    },
}

NAMED_SIZES: dict[str, dict[str, Any]] = {
    "gpt2_tiny": gpt(4, 128, 4, 1024),
    "gpt2_mini": gpt(6, 384, 6, 1024),
    # Radford et al. (2019), table 2.
    "gpt2_small": gpt(12, 768, 12, 1024),
    "gpt2_medium": gpt(24, 1024, 16, 1024),
    "gpt2_large": gpt(36, 1280, 20, 1024),
    "gpt2_xl": gpt(48, 1600, 25, 1024),
    # Brown et al. (2020), table 2.1. Two rows of it do not multiply out: "XL" prints 24 heads of 128 for a
    # width of 2048, where 16 heads give the 1.3B that it claims; "13B" prints a width of 5140 for 40 heads of
    # 128, kept as printed.
    "gpt3_small": gpt(12, 768, 12, 2048),
    "gpt3_medium": gpt(24, 1024, 16, 2048),
    "gpt3_large": gpt(24, 1536, 16, 2048),
    "gpt3_xl": gpt(24, 2048, 16, 2048),
    "gpt3_2.7b": gpt(32, 2560, 32, 2048),
    "gpt3_6.7b": gpt(32, 4096, 32, 2048),
    "gpt3_13b": gpt(40, 5140, 40, 2048, head_dim=128),
    "gpt3_175b": gpt(96, 12288, 96, 2048),
    "bert_tiny": bert(2, 128, 2),
    "bert_mini": bert(4, 256, 4),
    "bert_small": bert(4, 512, 8),
    "bert_medium": bert(8, 512, 8),
    "bert_base": bert(12, 768, 12),
    "bert_large": bert(24, 1024, 16),
    "t5_tiny": t5(4, 256, 4, 1024),
    "t5_small": t5(6, 512, 8, 2048),
    "t5_base": t5(12, 768, 12, 3072),
    "t5_large": t5(24, 1024, 16, 4096),
    "t5_3b": t5(24, 1024, 32, 16384, head_dim=128),
    "t5_11b": t5(24, 1024, 128, 65536, head_dim=128),
    "t5_1.1_small": t5_1_1(8, 512, 6, 1024),
    "t5_1.1_base": t5_1_1(12, 768, 12, 2048),
    "t5_1.1_large": t5_1_1(24, 1024, 16, 2816),
    "t5_1.1_xl": t5_1_1(24, 2048, 32, 5120),
    "t5_1.1_xxl": t5_1_1(24, 4096, 64, 10240),
    "transformer_tiny": transformer(2, 128, 4),
    "transformer_base": transformer(6, 512, 8),
    "transformer_big": transformer(6, 1024, 16, dropout=0.3),
    "llama_tiny": llama(4, 128, 4, 352, num_kv_heads=2, max_sequence_length=1024),
    "llama2_7b": llama(32, 4096, 32, 11008),
    "llama2_13b": llama(40, 5120, 40, 13824),
    "llama2_70b": llama(80, 8192, 64, 28672, num_kv_heads=8),
    "llama3_8b": llama(32, 4096, 32, 14336, **LLAMA_3),
    "llama3_70b": llama(80, 8192, 64, 28672, **LLAMA_3),
    "llama3.1_8b": llama(32, 4096, 32, 14336, **LLAMA_3_1),
    "llama3.1_70b": llama(80, 8192, 64, 28672, **LLAMA_3_1),
}
