"""A model of each shape, and what goes into it."""

import keras
import numpy as np

import kerasllm

SIZES = {"num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "initializer_range": 0.3}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "norm_position": "post", "pooler": True}
LLAMA = {
    "positions": "rotary",
    "norm": "rms_norm",
    "gated": True,
    "activation": "silu",
    "use_bias": False,
    "num_kv_heads": 1,
    "tie_embeddings": False,
}
IDS = np.random.default_rng(0).integers(0, 48, (2, 7)).astype("int32")
CALIBRATION = np.random.default_rng(1).integers(0, 48, (8, 64)).astype("int32")


def make(kind: str, **changes):
    """(model, inputs)"""
    keras.utils.set_random_seed(3)
    if kind == "t5":
        config = kerasllm.TransformerConfig.from_name(
            "t5_tiny",
            vocabulary_size=48,
            max_sequence_length=16,
            num_layers=1,
            num_encoder_layers=1,
            **SIZES,
            **changes,
        )
        return kerasllm.Seq2SeqLM(config), {"encoder_token_ids": IDS, "decoder_token_ids": IDS[:, :4]}
    family = {"gpt": {}, "llama": LLAMA, "bert": BERT, "classifier": BERT}[kind]
    config = kerasllm.TransformerConfig(48, 16, **{"num_layers": 2, **SIZES, **family, **changes})
    cls = {"bert": kerasllm.MaskedLM, "classifier": kerasllm.TextClassifier}.get(kind, kerasllm.CausalLM)
    return cls(config), {"token_ids": IDS}
