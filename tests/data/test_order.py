import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasllm.data.order import batch_rows, counted_hash, permute, row_keys, uniforms

pytestmark = pytest.mark.one_backend

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(n=st.integers(1, 1000), seed=SEEDS, epoch=st.integers(0, 2**40))
def test_permute_neither_repeats_nor_misses(n, seed, epoch):
    order = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


@given(n=st.integers(1, 2**48), seed=SEEDS, data=st.data())
def test_permute_needs_no_table(n, seed, data):
    index = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    order = permute(np.array(index), n, seed, 1)
    assert order.min() >= 0 and order.max() < n
    assert len(set(order.tolist())) == len(set(index))
    assert [int(permute(i, n, seed, 1)) for i in index] == order.tolist()


def test_every_place_is_equally_likely():
    n, epochs = 7, 7000
    counts = np.zeros((n, n))
    for epoch in range(epochs):
        counts[np.arange(n), permute(np.arange(n), n, 5, epoch)] += 1
    expected = epochs / n
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 36 + 5 * np.sqrt(2 * 36)  # (7 - 1)² degrees of freedom, five standard deviations


def test_orders_of_epochs_and_seeds_differ():
    orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@given(
    batch_size=st.sampled_from([12, 24]),
    n=st.integers(24, 500),
    seed=SEEDS,
    ranks=st.sampled_from([1, 2, 3, 4, 6]),
)
def test_ranks_share_the_same_batches(batch_size, n, seed, ranks):
    for step in range(n // batch_size):
        whole = batch_rows(2, step, batch_size, n, seed)
        shares = [batch_rows(2, step, batch_size, n, seed, rank, ranks) for rank in range(ranks)]
        assert {len(share) for share in shares} == {batch_size // ranks}
        assert np.array_equal(np.concatenate(shares), whole)


def test_batches_of_an_epoch_are_its_permutation():
    batches = [batch_rows(3, step, 8, 40, seed=1) for step in range(5)]
    assert np.array_equal(np.concatenate(batches), permute(np.arange(40), 40, 1, 3))


@given(seed=SEEDS, epoch=st.integers(0, 2**40), first=st.integers(0, 2**48), stream=st.integers(0, 9))
def test_uniforms_are_functions_of_their_key(seed, epoch, first, stream):
    keys = row_keys(seed, epoch, first + np.arange(6))
    assert keys.dtype == np.uint64 and len(set(keys.tolist())) == 6
    drawn = uniforms(keys, 8, stream)
    assert drawn.shape == (6, 8) and drawn.min() >= 0 and drawn.max() < 1
    assert np.array_equal(uniforms(row_keys(seed, epoch, first + np.array([4, 2])), 5, stream), drawn[[4, 2], :5])


@pytest.mark.parametrize("draw", [
    lambda: uniforms(row_keys(0, 0, np.arange(300)), 300),
    lambda: np.array([uniforms(row_keys(0, 0, np.arange(300)), 1, stream)[:, 0] for stream in range(300)]),
    lambda: np.array([uniforms(row_keys(0, epoch, np.arange(300)), 1)[:, 0] for epoch in range(300)]),
    lambda: np.array([uniforms(row_keys(seed, 0, np.arange(300)), 1)[:, 0] for seed in range(300)]),
])  # fmt: skip
def test_uniforms_are_even_and_independent(draw):
    drawn = draw()
    assert len(np.unique(drawn)) == drawn.size
    for part in (drawn, drawn[:, 0], drawn[0]):
        counts = np.histogram(part, 20, (0, 1))[0]
        expected = part.size / 20
        assert ((counts - expected) ** 2 / expected).sum() < 19 + 5 * np.sqrt(2 * 19)
    for a, b in [(drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_keys_are_not_what_the_order_is_made_of():
    assert not set(row_keys(0, 0, np.arange(100)).tolist()) & set(counted_hash(0, 0, np.arange(100)).tolist())


def test_clear_errors():
    with pytest.raises(ValueError, match=r"rows carry no `keys`.*Received: keys=None"):
        uniforms(None, 3)
    with pytest.raises(ValueError, match="batch_size=10, rank=0, num_ranks=4"):
        batch_rows(0, 0, 10, 100, 0, rank=0, num_ranks=4)
    with pytest.raises(ValueError, match="rank=2, num_ranks=2"):
        batch_rows(0, 0, 10, 100, 0, rank=2, num_ranks=2)
    with pytest.raises(ValueError, match=r"\[0, 100\). Received: 100 to 109"):
        batch_rows(0, 10, 10, 100, 0)
