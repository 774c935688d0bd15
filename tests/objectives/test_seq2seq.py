import numpy as np
import pytest

from kerasllm.objectives import seq2seq_batch

pytestmark = pytest.mark.one_backend

START, END, PAD = 7, 1, 0


def batch(sources, targets, encoder_length=4, decoder_length=4, **options):
    return seq2seq_batch(sources, targets, encoder_length, decoder_length, START, END, PAD, **options)


def test_teacher_forcing():
    x, y, weights = batch([[10, 11, 12, 13], [14]], [[20, 21, 22], []])
    assert {key: value.tolist() for key, value in x.items()} == {
        "encoder_token_ids": [[10, 11, 12, 13], [14, 0, 0, 0]],
        "encoder_padding_mask": [[True] * 4, [True, False, False, False]],
        "decoder_token_ids": [[7, 20, 21, 22], [7, 0, 0, 0]],
        "decoder_padding_mask": [[True] * 4, [True, False, False, False]],
    }
    assert y.tolist() == [[20, 21, 22, 1], [1, 0, 0, 0]]
    assert weights.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    dtypes = [a.dtype for a in (*x.values(), y, weights)]
    assert dtypes == [np.int32, bool, np.int32, bool, np.int32, np.float32]


def test_truncation_leaves_out_the_end_of_what_is_cut():
    x, y, weights = batch([[10, 11, 12, 13, 14]], [[20, 21, 22, 23]], truncation=True)
    assert x["encoder_token_ids"].tolist() == [[10, 11, 12, 13]]
    assert y.tolist() == [[20, 21, 22, 23]] and x["decoder_token_ids"].tolist() == [[7, 20, 21, 22]]
    assert weights.all()


def test_clear_errors():
    for sources, targets, message in [
        ([[1]], [[1], [2]], "one target. Received: 1 sources and 2 targets"),
        ([], [], "at least one source. Received: an empty list"),
        ([[1], []], [[1], [2]], "Received: an empty source at place 1"),
        (
            [[1], [1] * 5],
            [[1], [2]],
            "source at place 1 is too long for `encoder_length`=4.*truncation=True.*: 5 tokens",
        ),
        ([[1]], [[1] * 4], "target with its end at place 0 is too long for `decoder_length`=4.*: 5 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch(sources, targets)
