"""Positions: rotary scores depend on distances only; the sinusoidal table is the paper's formula."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import TransformerConfig
from kerasllm.layers.positions import rotary_tables, rotate, sinusoidal_table
from kerasllm.models.transformer import Transformer


@pytest.mark.one_backend
@pytest.mark.parametrize("dim", [8, 7])
def test_sinusoidal_table_is_the_formula(dim):
    table = sinusoidal_table(50, dim)
    half = (dim + 1) // 2
    for position in (0, 1, 17, 49):
        for column in range(dim):
            angle = position / 10000 ** (2 * (column % half) / dim)
            wanted = math.sin(angle) if column < half else math.cos(angle)
            assert table[position, column] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.one_backend
def test_rotary_tables_are_the_formula():
    cos, sin = rotary_tables(20, 6, theta=100.0)
    for position in (0, 3, 19):
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            assert cos[position, pair] == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[position, pair] == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotation_turns_each_pair_and_keeps_lengths():
    cos, sin = rotary_tables(5, 4)
    x = np.random.default_rng(0).normal(size=(1, 5, 2, 4)).astype("float32")
    turned = ops.convert_to_numpy(rotate(ops.convert_to_tensor(x), *map(ops.convert_to_tensor, (cos, sin))))
    for position in range(5):
        for pair in range(2):  # the rotate-half layout: column i turns with column i + half
            before = x[0, position, :, pair] + 1j * x[0, position, :, pair + 2]
            after = turned[0, position, :, pair] + 1j * turned[0, position, :, pair + 2]
            angle = position * 10000.0 ** (-2 * pair / 4)
            np.testing.assert_allclose(after, before * np.exp(1j * angle), atol=1e-5)


def test_rotary_scores_depend_on_distance_only():
    cos, sin = (ops.convert_to_tensor(table) for table in rotary_tables(64, 8))
    rng = np.random.default_rng(0)
    q, k = (ops.convert_to_tensor(rng.normal(size=(1, 6, 2, 8)).astype("float32")) for _ in range(2))

    def scores(shift):
        places = slice(shift, shift + 6)
        rotated = [rotate(x, cos[places], sin[places]) for x in (q, k)]
        return ops.convert_to_numpy(ops.einsum("bqhd,bkhd->bhqk", *rotated))

    np.testing.assert_allclose(scores(0), scores(37), atol=1e-4)
    plain = ops.convert_to_numpy(ops.einsum("bqhd,bkhd->bhqk", q, k))
    assert np.abs(scores(0) - plain).max() > 0.1


def network(**changes):
    sizes = {
        "vocabulary_size": 11,
        "max_sequence_length": 32,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
    }
    keras.utils.set_random_seed(0)
    return Transformer(TransformerConfig(**sizes, initializer_range=0.3, **changes))


IDS = np.random.default_rng(0).integers(0, 11, (2, 8)).astype("int32")


def hidden_at(layer, first):
    positions = np.broadcast_to(np.arange(first, first + 8, dtype="int32"), IDS.shape)
    return ops.convert_to_numpy(layer(IDS, positions=positions))


def test_shifting_all_positions_leaves_a_rotary_network_as_it_is():
    layer = network(positions="rotary")
    np.testing.assert_allclose(hidden_at(layer, 0), hidden_at(layer, 19), atol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_absolute_positions_change_the_network(positions):
    layer = network(positions=positions)
    assert np.abs(hidden_at(layer, 0) - hidden_at(layer, 19)).max() > 0.01


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "none"])
def test_positions_in_order_may_be_left_out(positions):
    layer = network(positions=positions)
    np.testing.assert_allclose(hidden_at(layer, 0), ops.convert_to_numpy(layer(IDS)), atol=1e-5)
