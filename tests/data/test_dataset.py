import warnings

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerasllm.data.dataset import TokenDataset
from kerasllm.data.shards import TokenShards
from kerasllm.objectives import MaskedLM

one_backend = pytest.mark.one_backend


def counting_shards(length):
    """Token i is i, so a batch shows where its rows come from."""
    return TokenShards.from_arrays([np.arange(length)])


@one_backend
@given(
    length=st.integers(5, 120),
    sequence_length=st.integers(1, 12),
    epoch=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_a_shuffled_stream_has_each_window_once(length, sequence_length, epoch, seed):
    if length <= sequence_length:
        return
    dataset = TokenDataset(counting_shards(length), sequence_length, 1, seed=seed, epoch=epoch)
    batches = list(dataset)
    assert len(batches) == len(dataset) == dataset.num_rows >= max(1, (length - 1) // sequence_length - 1)
    starts = sorted(int(x["token_ids"][0, 0]) for x, _ in batches)
    offset = starts[0]
    assert starts == [offset + i * sequence_length for i in range(len(dataset))]
    assert 0 <= offset < sequence_length and (epoch or offset == 0)
    for x, y in batches:
        assert x["token_ids"].dtype == y.dtype == np.int32
        assert np.array_equal(y, x["token_ids"] + 1)
        assert np.array_equal(x["token_ids"][0] - x["token_ids"][0, 0], np.arange(sequence_length))


@one_backend
def test_passes_of_a_stream_differ_in_windows_and_order():
    dataset = TokenDataset(counting_shards(1000), 16, 4, seed=3)
    passes = []
    for epoch in range(20):
        dataset.resume(epoch, 0)
        passes.append(np.concatenate([x["token_ids"][:, 0] for x, _ in dataset]))
    assert len({starts.min() % 16 for starts in passes}) > 8
    assert len({tuple(starts) for starts in passes}) == 20


@one_backend
@given(length=st.integers(2, 80), sequence_length=st.integers(1, 12), batch_size=st.integers(1, 5))
def test_validation_counts_every_next_token_once(length, sequence_length, batch_size):
    dataset = TokenDataset(counting_shards(length), sequence_length, batch_size, shuffle=False)
    counted = []
    for x, y, weight in dataset:
        assert x["token_ids"].shape == y.shape == weight.shape == (batch_size, sequence_length)
        assert weight.dtype == np.float32 and set(np.unique(weight)) <= {0, 1}
        assert np.array_equal(y[weight == 1], x["token_ids"][weight == 1] + 1)
        counted += y[weight == 1].tolist()
    assert counted == list(range(1, length))


def packed_by_hand(documents, n):
    """Rows of (token, document id, position, next token or None), packed one document at a time."""
    rows, row, next_id = [], [], 1
    for document in documents:
        pieces = [range(start, min(start + n, len(document))) for start in range(0, len(document), n)]
        for piece in pieces:
            if len(row) + len(piece) > n:
                rows, row, next_id = [*rows, row], [], 1
            for position, index in enumerate(piece):
                following = document[index + 1] if index + 1 < len(document) else None
                row.append((document[index], next_id, position, following))
            next_id += 1
    return [*rows, row]


@one_backend
@given(
    documents=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), min_size=1, max_size=12).filter(
        lambda documents: sum(map(len, documents)) > 1
    ),
    n=st.integers(1, 9),
)
def test_documents_are_packed_as_by_hand(documents, n):
    dataset = TokenDataset(TokenShards.from_arrays(documents), n, 1, packing="documents", shuffle=False)
    expected = packed_by_hand(documents, n)
    assert len(dataset) == len(expected)
    for (x, y, weight), row in zip(dataset, expected, strict=True):
        padding = n - len(row)
        assert x["token_ids"][0].tolist() == [token for token, *_ in row] + [0] * padding
        assert x["document_ids"][0].tolist() == [document for _, document, *_ in row] + [0] * padding
        assert x["positions"][0].tolist() == [position for *_, position, _ in row] + [0] * padding
        assert weight[0].tolist() == [float(following is not None) for *_, following in row] + [0] * padding
        assert [token for token, counts in zip(y[0], weight[0]) if counts] == [
            following for *_, following in row if following is not None
        ]
        assert {array.dtype for array in x.values()} == {np.dtype("int32")}


@one_backend
def test_shuffled_documents_are_the_same_rows():
    documents = [list(range(10 * i, 10 * i + 1 + i % 7)) for i in range(40)]
    options = {"sequence_length": 8, "batch_size": 1, "packing": "documents"}
    shards = TokenShards.from_arrays(documents)
    plain = [x["token_ids"][0].tolist() for x, *_ in TokenDataset(shards, shuffle=False, **options)]
    shuffled = [x["token_ids"][0].tolist() for x, *_ in TokenDataset(shards, epoch=2, **options)]
    assert sorted(plain) == sorted(shuffled) and plain != shuffled


@one_backend
@given(ranks=st.sampled_from([1, 2, 3, 6]), shuffle=st.booleans(), epoch=st.integers(0, 2))
def test_ranks_together_see_the_batches_of_one(ranks, shuffle, epoch):
    options = {"sequence_length": 4, "batch_size": 6, "shuffle": shuffle, "epoch": epoch}
    whole = TokenDataset(counting_shards(103), **options)
    shares = [TokenDataset(counting_shards(103), rank=rank, num_ranks=ranks, **options) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(whole)}
    for batch, *parts in zip(whole, *shares, strict=True):
        assert np.array_equal(np.concatenate([part[1] for part in parts]), batch[1])


@one_backend
@given(epoch=st.integers(0, 3), step=st.integers(0, 12))
def test_a_resumed_dataset_goes_on_where_it_was(epoch, step):
    options = {"sequence_length": 5, "batch_size": 3, "seed": 7}
    straight = TokenDataset(counting_shards(200), **options)
    resumed = TokenDataset(counting_shards(200), epoch=epoch, start_step=step, **options)
    assert (resumed.epoch, resumed.start_step) == (epoch + step // len(straight), step % len(straight))
    straight.resume(resumed.epoch, 0)
    expected, rest = list(straight)[resumed.start_step :], list(resumed)
    assert len(rest) == len(expected)
    for (x, y), (x_expected, y_expected) in zip(rest, expected):
        assert np.array_equal(x["token_ids"], x_expected["token_ids"]) and np.array_equal(y, y_expected)


def keys_of(dataset, epoch):
    dataset.resume(epoch, 0)
    return np.concatenate([keys for _, keys in dataset])


@one_backend
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_keys_are_functions_of_seed_pass_and_row(packing):
    shards = TokenShards.from_arrays([range(10 * i, 10 * i + 9) for i in range(24)])
    options = {"packing": packing, "objective": lambda rows: (rows.tokens, rows.keys), "seed": 5}
    train, again = TokenDataset(shards, 9, 2, **options), TokenDataset(shards, 9, 4, **options)
    passes = [keys_of(train, epoch) for epoch in range(3)]
    assert all(keys.dtype == np.uint64 for keys in passes)
    assert len(set(np.concatenate(passes).tolist())) == 3 * 2 * len(train)
    # The order of a pass is the same in batches of another size, and so are the rows' keys.
    assert np.array_equal(keys_of(again, 1), passes[1][: len(again) * 4])
    assert not set(keys_of(TokenDataset(shards, 9, 2, **{**options, "seed": 6}), 0).tolist()) & set(passes[0].tolist())
    other_ranks = [TokenDataset(shards, 9, 2, rank=rank, num_ranks=2, **options) for rank in range(2)]
    assert np.array_equal(np.stack([keys_of(part, 1) for part in other_ranks], axis=1).ravel(), passes[1])


@one_backend
def test_only_a_validation_set_has_the_same_keys_in_each_pass():
    shards, objective = counting_shards(100), lambda rows: (rows.tokens, rows.keys)
    validation = TokenDataset(shards, 9, 4, objective=objective, shuffle=False)
    assert np.array_equal(keys_of(validation, 0), keys_of(validation, 3))
    in_order = TokenDataset(shards, 9, 4, objective=objective, shuffle=False, drop_remainder=True)
    assert not set(keys_of(in_order, 0).tolist()) & set(keys_of(in_order, 3).tolist())


@one_backend
@given(epoch=st.integers(0, 2), step=st.integers(0, 4))
def test_a_resumed_dataset_masks_the_same_tokens(epoch, step):
    options = {"objective": MaskedLM(mask_token_id=0, vocabulary_size=200), "seed": 7}
    straight, resumed = (
        TokenDataset(counting_shards(200), 9, 4, **options),
        TokenDataset(counting_shards(200), 9, 4, epoch=epoch, start_step=step, **options),
    )
    (x, y, weights), expected = resumed[0], straight[epoch * len(straight) + step]
    assert np.array_equal(x["token_ids"], expected[0]["token_ids"])
    assert np.array_equal(y, expected[1]) and np.array_equal(weights, expected[2])


@one_backend
@pytest.mark.parametrize("steps_per_epoch", [3, 25])
def test_steps_per_epoch_cuts_the_same_sequence_elsewhere(steps_per_epoch):
    whole = TokenDataset(counting_shards(200), 5, 4)
    cut = TokenDataset(counting_shards(200), 5, 4, steps_per_epoch=steps_per_epoch)
    assert len(cut) == steps_per_epoch
    expected = [whole[i][1] for i in range(3 * steps_per_epoch)]
    found = []
    for epoch in range(3):
        cut.resume(epoch, 0)
        found += [y for _, y in cut]
    assert np.array_equal(found, expected)


@one_backend
def test_clear_errors():
    shards = counting_shards(50)
    for options, message in [
        ({"sequence_length": 0}, "`sequence_length` must be positive. Received: sequence_length=0"),
        ({"batch_size": -1}, "`batch_size` must be positive. Received: batch_size=-1"),
        ({"packing": "tight"}, "'stream' or 'documents'. Received: packing='tight'"),
        ({"sequence_length": 50}, "text has 50 tokens, and a sequence of 50 needs at least 51.*shorter"),
        ({"batch_size": 12}, "fewer than a batch of 12.*smaller `batch_size`"),
        ({"num_ranks": 3}, "batch_size=2, rank=0, num_ranks=3"),
        ({"epoch": -1}, "epoch=-1"),
        ({"start_step": -1}, "start_step=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TokenDataset(shards, **{"sequence_length": 4, "batch_size": 2, **options})
    with pytest.raises(IndexError, match="must not be negative"):
        TokenDataset(shards, 4, 2)[-1]


class Steps(keras.callbacks.Callback):
    """Counts the steps of each epoch, and stops after `stop_after` steps in all."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.begun, self.of_epochs = stop_after, 0, []

    def on_epoch_begin(self, epoch, logs=None):
        self.of_epochs.append(0)

    def on_train_batch_begin(self, batch, logs=None):
        self.begun += 1

    def on_train_batch_end(self, batch, logs=None):
        self.of_epochs[-1] += 1
        if sum(self.of_epochs) == self.stop_after:
            self.model.stop_training = True


def small_model():
    keras.utils.set_random_seed(1)
    token_ids = keras.Input((8,), dtype="int32", name="token_ids")
    logits = keras.layers.Dense(90)(keras.layers.Embedding(90, 4)(token_ids))
    model = keras.Model({"token_ids": token_ids}, logits)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def train_dataset(**options):
    return TokenDataset(TokenShards.from_arrays([np.arange(8 * 12) % 89]), 8, 2, seed=4, **options)


def fit(model, dataset, **options):
    steps = options.pop("steps", Steps())
    validation = TokenDataset(counting_shards(40), 8, 2, shuffle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "Your input ran out of data"
        history = model.fit(dataset, validation_data=validation, epochs=3, shuffle=False, callbacks=[steps], **options)
    return history.history, steps


@pytest.mark.parametrize("verbose", [0, 1])
def test_fit_moves_the_epoch_on(verbose):
    dataset = train_dataset()
    _, steps = fit(small_model(), dataset, verbose=verbose)
    assert steps.of_epochs == [len(dataset)] * 3
    assert (dataset.epoch, dataset.start_step) == (3, 0)
    fit(small_model(), dataset, verbose=verbose)
    assert (dataset.epoch, dataset.start_step) == (6, 0)


@pytest.mark.parametrize("verbose", [0, 1])
@pytest.mark.parametrize("epoch, start_step", [(0, 2), (1, 1), (1, 4)])
def test_fit_resumes_exactly(epoch, start_step, verbose):
    straight = small_model()
    history, _ = fit(straight, train_dataset(), verbose=0)
    n = len(train_dataset())
    assert n == 5

    killed = small_model()
    fit(killed, train_dataset(), verbose=0, steps=Steps(stop_after=epoch * n + start_step))
    resumed = small_model()
    resumed.set_weights(killed.get_weights())
    dataset = train_dataset(epoch=epoch, start_step=start_step)
    resumed_history, steps = fit(resumed, dataset, verbose=verbose, initial_epoch=epoch)

    assert steps.of_epochs == [n - start_step] + [n] * (2 - epoch)
    assert steps.begun == sum(steps.of_epochs)
    assert (dataset.epoch, dataset.start_step) == (3, 0)
    for expected, found in zip(straight.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(expected, found)
    assert resumed_history["val_loss"] == history["val_loss"][epoch:]


def test_an_epoch_left_early_begins_again():
    dataset = train_dataset()
    fit(small_model(), dataset, verbose=0, steps=Steps(stop_after=3))
    assert (dataset.epoch, dataset.start_step) == (0, 0)


def test_one_step_epochs():
    dataset = train_dataset(steps_per_epoch=1)
    _, steps = fit(small_model(), dataset, verbose=1)
    assert steps.of_epochs == [1, 1, 1]
    assert dataset.epoch == 3


def test_evaluate_weighs_the_padding_out():
    model = small_model()
    shards = counting_shards(45)
    found = model.evaluate(TokenDataset(shards, 8, 4, shuffle=False), verbose=0)[0]
    tokens = np.pad(np.arange(45), (0, 4))
    logits = model.predict({"token_ids": tokens[:48].reshape(6, 8)}, verbose=0).reshape(48, 90)[:44]
    logits = logits.astype("float64")
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(44), tokens[1:45]]
    # Keras divides a batch's sum by its positions, padding included: 44 tokens in 2 batches of 4 × 8.
    assert np.isclose(found, losses.sum() / 64, rtol=1e-5)
