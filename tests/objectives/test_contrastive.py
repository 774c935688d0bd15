import keras
import numpy as np
import pytest
from differentiate import gradients

from kerasllm.objectives import info_nce, pair_rows


def by_hand(anchors, positives, temperature, negatives=()):
    """The loss of each anchor, one similarity at a time in float64."""

    def cosine(a, b):
        return a @ b / np.sqrt((a @ a) * (b @ b))

    losses = []
    for i, anchor in enumerate(anchors):
        scores = np.array([cosine(anchor, other) / temperature for other in [*positives, *negatives]])
        losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[i])
    return np.array(losses)


def numeric_gradient(function, at, step=1e-5):
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        there, back = at.copy(), at.copy()
        there[place] += step
        back[place] -= step
        gradient[place] = (function(there) - function(back)) / (2 * step)
    return gradient


@pytest.mark.parametrize("num_negatives", [0, 4])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_value_and_gradient_are_the_formulas(temperature, num_negatives):
    rng = np.random.default_rng(0)
    anchors, positives, negatives = (rng.normal(size=(rows, 6)) for rows in (5, 5, num_negatives))
    hard = [negatives] if num_negatives else []
    parts = [anchors, positives, *hard]

    def expected(*parts):
        return by_hand(parts[0], parts[1], temperature, *parts[2:])

    found = info_nce(*(part.astype("float32") for part in parts[:2]), temperature, *(h.astype("float32") for h in hard))
    assert found.shape == (5,)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected(*parts), rtol=1e-4, atol=1e-5)

    def loss(*parts):
        return keras.ops.sum(info_nce(parts[0], parts[1], temperature, *parts[2:]))

    for i, gradient in enumerate(gradients(loss, *(part.astype("float32") for part in parts))):

        def varied(part, i=i):
            return expected(*parts[:i], part, *parts[i + 1 :]).sum()

        np.testing.assert_allclose(gradient, numeric_gradient(varied, parts[i]), rtol=2e-3, atol=2e-4)


@pytest.mark.one_backend
def test_equal_embeddings_are_found():
    identity = np.eye(8, dtype="float32")
    loss = keras.ops.convert_to_numpy(info_nce(identity, 3 * identity))
    np.testing.assert_allclose(loss, np.log(1 + 7 * np.exp(-20)), atol=1e-6)
    with pytest.raises(ValueError, match=r"`temperature` must be positive. Received: temperature=0"):
        info_nce(identity, identity, temperature=0)


@pytest.mark.one_backend
def test_pair_rows():
    x = pair_rows([[5, 6], [7]], [[8], [9, 9, 9]], length=3, pad_token_id=1, negatives=[[4], [4]])
    assert {side: part["token_ids"].tolist() for side, part in x.items()} == {
        "anchor": [[5, 6, 1], [7, 1, 1]],
        "positive": [[8, 1, 1], [9, 9, 9]],
        "negative": [[4, 1, 1], [4, 1, 1]],
    }
    assert x["anchor"]["padding_mask"].tolist() == [[True, True, False], [True, False, False]]
    assert pair_rows([[5] * 9], [[6]], 2, truncation=True)["anchor"]["token_ids"].tolist() == [[5, 5]]
    assert set(pair_rows([[5]], [[6]], 2)) == {"anchor", "positive"}
    for arguments, message in [
        (([[1]], [[1], [2]], 2), "Received: 1 anchors, 2 positives"),
        (([[1]], [[]], 2), "an empty positive at place 0"),
        (([[1, 2, 3]], [[1]], 2), "anchor at place 0 is too long for `length`=2.*Received: 3 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            pair_rows(*arguments)
