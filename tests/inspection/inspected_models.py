"""A tiny model of each shape that reads text, made once."""

import functools

import keras
import numpy as np
from keras import ops

import kerasllm

TEXT = "to be or not"
TEXTS = ["to be or not to be", "that is the question"]
TOKENIZER = kerasllm.Tokenizer.train(
    TEXTS, kind="char", special_tokens=["<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
)
SIZES = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24, "initializer_range": 0.3}
LLAMA = {"positions": "rotary", "norm": "rms_norm", "gated": True, "activation": "silu", "num_kv_heads": 2}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "norm_position": "post"}
KINDS = {
    "gpt": (kerasllm.CausalLM, {}),
    "llama": (kerasllm.CausalLM, {**LLAMA, "use_bias": False, "tie_embeddings": False}),
    "bert": (kerasllm.MaskedLM, BERT),
    "classifier": (kerasllm.TextClassifier, BERT),
    "t5": (kerasllm.Seq2SeqLM, {"positions": "relative", "num_encoder_layers": 2, "norm": "rms_norm"}),
}


def make(kind: str, **changes):
    keras.utils.set_random_seed(3)
    cls, family = KINDS[kind]
    # Eight ids more than the tokenizer has: a padded vocabulary.
    values = {**SIZES, **family, **changes}
    config = kerasllm.TransformerConfig(TOKENIZER.vocabulary_size + 8, 24, **values)
    model = cls(config, TOKENIZER)
    for variable in model.trainable_variables:  # Biases and gains begin as nothing, and would hide mistakes.
        if len(variable.shape) == 1:
            noise = np.random.default_rng(variable.shape[0]).normal(size=variable.shape)
            variable.assign(numpy(variable) + 0.1 * noise)
    return model


made = functools.cache(make)


def trace(model, text=TEXT):
    return model.trace(text, "be to") if model.config.num_encoder_layers else model.trace(text)


def numpy(x):
    return ops.convert_to_numpy(x)
