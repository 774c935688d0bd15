"""TransformerConfig: published sizes, counting without allocating, a closed schema, named errors."""

import dataclasses

import keras
import pytest

from kerasllm import TransformerConfig
from kerasllm.models.transformer import Transformer

pytestmark = pytest.mark.one_backend

SMALL = {"vocabulary_size": 30, "max_sequence_length": 12, "num_layers": 2, "num_heads": 4, "hidden_dim": 16}


def small(**changes) -> TransformerConfig:
    return TransformerConfig(**{**SMALL, **changes})


@pytest.mark.parametrize(
    "name, millions",
    [  # Brown et al. (2020), table D.1
        ("gpt3_small", 125),
        ("gpt3_medium", 356),
        ("gpt3_large", 760),
        ("gpt3_xl", 1320),
        ("gpt3_2.7b", 2650),
        ("gpt3_6.7b", 6660),
        ("gpt3_13b", 12850),
        ("gpt3_175b", 174600),
    ],
)
def test_gpt3_sizes_match_the_paper(name, millions):
    assert TransformerConfig.from_name(name).num_parameters() == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(
    "name, count",
    [
        ("gpt2_small", 124_439_808),
        ("gpt2_medium", 354_823_168),
        ("gpt2_large", 774_030_080),
        ("gpt2_xl", 1_557_611_200),
    ],
)
def test_gpt2_sizes_are_the_published_ones(name, count):
    assert TransformerConfig.from_name(name).num_parameters() == count


def test_the_small_sizes_have_their_shapes():
    tiny, mini = (TransformerConfig.from_name(name) for name in ("gpt2_tiny", "gpt2_mini"))
    assert (tiny.num_layers, tiny.num_heads, tiny.hidden_dim) == (4, 4, 128)
    assert (mini.num_layers, mini.num_heads, mini.hidden_dim) == (6, 6, 384)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gated": True},
        {"norm": "rms_norm"},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "head_dim": 6},
        {"tie_embeddings": False},
        {"positions": "rotary"},
        {"positions": "sinusoidal", "scale_embeddings": True},
        {"use_bias": False},
        {"norm_position": "post", "causal": False},
        {"intermediate_dim": 23, "head_dim": 5},
        {
            "gated": True,
            "norm": "rms_norm",
            "num_kv_heads": 2,
            "tie_embeddings": False,
            "positions": "rotary",
            "use_bias": False,
            "norm_position": "post",
        },
    ],
)
def test_counted_parameters_are_those_of_a_built_network(changes):
    config = small(**changes)
    network = Transformer(config)
    network.build((None, None))
    assert config.num_parameters() == network.count_params()
    embeddings = sum(keras.ops.size(w) for w in network.embedding.weights)
    assert config.num_parameters(embeddings=False) == network.count_params() - embeddings


def test_defaults_follow_from_the_width():
    config = small()
    assert (config.intermediate_dim, config.num_kv_heads, config.head_dim) == (64, 4, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary_size": 0},
        {"vocabulary_size": 2**40},
        {"max_sequence_length": -1},
        {"num_layers": 2.0},
        {"num_layers": True},
        {"num_layers": 10**7},
        {"num_heads": "4"},
        {"hidden_dim": 18},
        {"num_kv_heads": 3},
        {"num_kv_heads": 0},
        {"head_dim": -4},
        {"intermediate_dim": 0},
        {"sliding_window": 0},
        {"positions": "alibi"},
        {"norm": "batch_norm"},
        {"norm_position": "middle"},
        {"activation": "tanh"},
        {"activation": ["relu"]},
        {"causal": 1},
        {"gated": "yes"},
        {"use_bias": None},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"attention_dropout": -0.1},
        {"norm_epsilon": -1e-5},
        {"rope_theta": float("inf")},
        {"rope_theta": 0.0},
        {"initializer_range": "0.02"},
    ],
    ids=str,
)
def test_each_bad_value_is_named(changes):
    (name, value) = next(iter(changes.items()))
    with pytest.raises(ValueError) as error:
        small(**changes)
    assert name in str(error.value) and f"{value!r}" in str(error.value)


def test_rotary_needs_even_heads():
    with pytest.raises(ValueError, match="head_dim=5"):
        small(positions="rotary", head_dim=5)


def test_unknown_keys_are_refused_with_near_names():
    with pytest.raises(ValueError, match=r"'num_layer'.*Did you mean 'num_layers'"):
        TransformerConfig.from_dict({**SMALL, "num_layer": 3})
    with pytest.raises(ValueError, match=r"'gpt2_smal'.*Did you mean 'gpt2_small'"):
        TransformerConfig.from_name("gpt2_smal")
    with pytest.raises(ValueError, match="hiden_dim"):
        TransformerConfig.from_name("gpt2_tiny", hiden_dim=64)
    with pytest.raises(ValueError, match="rotary_base"):
        small().replace(rotary_base=1)


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match="num_heads"):
        TransformerConfig.from_dict({k: v for k, v in SMALL.items() if k != "num_heads"})


def test_round_trip_and_overrides():
    config = small(gated=True, num_kv_heads=2, positions="rotary", rope_theta=5e5, sliding_window=4)
    assert TransformerConfig.from_dict(config.to_dict()) == config
    assert TransformerConfig.from_name("gpt2_tiny", vocabulary_size=99).vocabulary_size == 99
    assert config.replace(dropout=0.5).dropout == 0.5 and config.dropout == 0.0


def test_a_config_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().num_layers = 3


def test_cost_of_gpt2_small():
    config = TransformerConfig.from_name("gpt2_small")
    # 2 N and a little attention; nanoGPT's count of the same model is 855 MFLOP a trained token.
    assert 3 * config.flops_per_token(1024) == pytest.approx(855e6, rel=0.01)
    assert config.kv_cache_bytes(batch_size=2, bytes_per_value=2) == 2 * 2 * 12 * 768 * 1024 * 2


def test_position_tables_that_no_machine_holds_are_refused():
    for positions in ("rotary", "sinusoidal"):
        with pytest.raises(ValueError, match="max_sequence_length=16777216"):
            small(positions=positions, max_sequence_length=2**24, hidden_dim=256)
