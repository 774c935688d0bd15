"""Integrated gradients: the scores add up to what the text changes, and an oracle with plain differences agrees."""

import numpy as np
import pytest
from inspected_models import TEXT, TOKENIZER, made, make, numpy
from keras import ops

import kerasllm
from kerasllm.inspection import integrated_gradients
from kerasllm.tuning import PromptTuning

CASES = [("gpt", TEXT, None), ("bert", "to b[MASK] or", "e"), ("classifier", TEXT, 1), ("t5", TEXT, "be to")]


@pytest.mark.parametrize(("kind", "text", "target"), CASES)
def test_scores_add_up_to_what_the_text_changes(kind, text, target):
    """The axiom of completeness."""
    found = integrated_gradients(made(kind), text, target)
    assert len(found.tokens) == len(found.scores)
    change = found.log_probability - found.baseline_log_probability
    assert abs(change) > 1e-3
    assert found.scores.sum() == pytest.approx(change, abs=2e-3)


def log_softmax(logits):
    """Over the tokens there are."""
    logits = logits[..., : TOKENIZER.vocabulary_size].astype("float64")
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_answer_and_its_probability_are_the_model_s():
    model = made("gpt")
    found = integrated_gradients(model, TEXT, steps=2)
    expected = log_softmax(model.trace(TEXT).logits[0, -1])
    assert found.target == TOKENIZER.id_to_token(int(expected.argmax()))
    assert found.log_probability == pytest.approx(expected.max(), abs=1e-5)
    expected = log_softmax(made("t5").trace(TEXT, "be to").logits[0])
    written = [*TOKENIZER.encode("be to"), TOKENIZER.end_token_id]
    found = integrated_gradients(made("t5"), TEXT, "be to")
    assert found.log_probability == pytest.approx(expected[range(6), written].sum(), abs=1e-4)


@pytest.mark.one_backend
def test_one_of_several_labels_is_probable_for_itself():
    config = made("classifier").config
    model = kerasllm.TextClassifier(config, TOKENIZER, multi_label=True, num_labels=3, pooling="last", pad_token_id=0)
    found = integrated_gradients(model, TEXT, 2, steps=2)
    logit = model.predict([TEXT], verbose=0)[0, 2]
    assert found.log_probability == pytest.approx(-np.log1p(np.exp(-logit)), abs=1e-5)


def test_one_step_is_the_gradient_half_way():
    """With one point, Gauss and Legendre's is the middle; there, the gradient by plain differences."""
    model = made("gpt")
    ids = model.as_inputs([TEXT])["token_ids"][0]
    table = numpy(model.transformer.embedding.tokens.embeddings)
    middle, difference = (table[ids] + table.mean(axis=0)) / 2, table[ids] - table.mean(axis=0)

    def log_p(vectors):
        network = model.transformer
        features = network.embedding.around(ops.convert_to_tensor(vectors[None].astype("float32")))
        hidden = network(ids[None], features=features, training=False)
        return log_softmax(numpy(model.logits(hidden))[0, -1])[5]

    found = integrated_gradients(model, TEXT, 5, steps=1).scores
    for place in (0, 4):
        step = np.zeros_like(middle)
        step[place] = 0.01 * difference[place]
        slope = (log_p(middle + step) - log_p(middle - step)) / 0.02
        assert found[place] == pytest.approx(slope, abs=2e-3)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("gpt", {"text": ""}, "not empty"),
        ("gpt", {"text": "be " * 20}, "60 tokens"),
        ("gpt", {"text": TEXT, "target": "be"}, "one token. Received: 'be', which is 2"),
        ("gpt", {"text": TEXT, "target": 10_000}, "a number below"),
        ("gpt", {"text": TEXT, "steps": 0}, "from 1 to 1024"),
        ("bert", {"text": TEXT}, "no mask in the text"),
        ("classifier", {"text": TEXT, "target": "sad"}, "no label 'sad'"),
        ("t5", {"text": TEXT, "target": 5}, "is a text"),
    ],
)
def test_what_cannot_be_attributed(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        integrated_gradients(made(kind), **arguments)


def test_prompts_are_no_part_of_the_text():
    model = make("gpt", num_layers=1)
    model.add_adapter("mine", PromptTuning(num_tokens=2))
    with pytest.raises(ValueError, match="prompts or prefixes"):
        integrated_gradients(model, TEXT)
