"""The table of shapes that files are checked against is that of the networks, for every feature a config has."""

import itertools
import math

import pytest

from kerasllm import (
    CausalLM,
    MaskedLM,
    PairedMaskedLM,
    Seq2SeqLM,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
    TransformerConfig,
)
from kerasllm.config import NORM_POSITIONS, NORMS, POSITIONS
from kerasllm.interop.presets import variables_by_path
from kerasllm.interop.shapes import head_shapes, weight_shapes

SIZES = {"num_layers": 1, "num_heads": 4, "hidden_dim": 12, "intermediate_dim": 7}


def check(model, num_labels=0):
    built = {path: tuple(v.shape) for path, v in variables_by_path(model).items()}
    body = weight_shapes(model.config)
    assert {**body, **head_shapes(type(model).__name__, model.config, num_labels)} == built
    assert sum(map(math.prod, body.values())) == model.config.num_parameters()


@pytest.mark.parametrize("norm, norm_position, positions", itertools.product(NORMS, NORM_POSITIONS, POSITIONS))
def test_decoders_and_encoder_decoders(norm, norm_position, positions):
    for gated, use_bias, tied in ((False, True, True), (True, False, False), (True, True, False)):
        flags = {"gated": gated, "use_bias": use_bias, "tie_embeddings": tied, "num_kv_heads": 2 if gated else 4}
        layout = {"norm": norm, "norm_position": norm_position, "positions": positions, "head_dim": 6}
        config = TransformerConfig(19, 9, **SIZES, **flags, **layout)
        check(CausalLM(config))
        check(Seq2SeqLM(config.replace(num_layers=2, num_encoder_layers=1)))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_encoders_and_their_heads(norm, use_bias):
    flags = {"num_segments": 3, "embedding_norm": True, "pooler": True, "use_bias": use_bias}
    config = TransformerConfig(19, 9, **SIZES, causal=False, norm=norm, **flags)
    for cls in (MaskedLM, PairedMaskedLM, TextEmbedder):
        check(cls(config))
    for cls in (TextClassifier, TokenClassifier):
        check(cls(config, num_labels=5), num_labels=5)
