"""Searches against the same searches written out, without a cache."""

import keras
import numpy as np
import pytest
from keras import ops

from kerasllm import CausalLM, TransformerConfig
from kerasllm.generation.contrastive import ContrastiveDecoding

VOCABULARY, LENGTH = 12, 16
PROMPT = [3, 1, 4, 1]
SIZES = {"num_layers": 1, "num_heads": 2, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return CausalLM(TransformerConfig(VOCABULARY, LENGTH, hidden_dim=16, **SIZES))


@pytest.fixture(scope="module")
def weak_model():
    keras.utils.set_random_seed(1)
    return CausalLM(TransformerConfig(VOCABULARY, LENGTH, hidden_dim=8, **SIZES))


def outputs(model, ids):
    """Log-probabilities (length, vocabulary) and hidden states (length, dim) of one sequence."""
    padded = np.zeros((1, LENGTH), "int32")
    padded[0, : len(ids)] = ids
    hidden = model.transformer(padded)
    logits = ops.convert_to_numpy(ops.log_softmax(model.logits(hidden)))[0, : len(ids)]
    return logits, ops.convert_to_numpy(hidden)[0, : len(ids)]


def likelihood(model, answer):
    logits, _ = outputs(model, PROMPT + answer)
    return sum(logits[len(PROMPT) - 1 + place, token] for place, token in enumerate(answer))


def test_wide_beams_find_the_best_of_all_answers(model):
    every = [[a, b] for a in range(VOCABULARY) for b in range(VOCABULARY)]
    ranked = sorted(every, key=lambda answer: -likelihood(model, answer))[:3]
    found = model.generate(PROMPT, 2, num_beams=VOCABULARY, n=3, stop_token_ids=[], strip_prompt=True)
    assert found == ranked


def test_the_best_answers_come_first(model):
    found = model.generate(PROMPT, 6, num_beams=4, n=4, stop_token_ids=[], strip_prompt=True)
    scores = [likelihood(model, answer) for answer in found]
    assert scores == sorted(scores, reverse=True) and len({tuple(answer) for answer in found}) == 4


def test_groups_of_beams_differ_where_plain_ones_do_not(model):
    options = {"num_beams": 4, "n": 4, "stop_token_ids": [], "strip_prompt": True}
    plain = model.generate(PROMPT, 6, **options)
    groups = model.generate(PROMPT, 6, num_beam_groups=4, diversity_penalty=50.0, **options)
    assert len({answer[0] for answer in plain}) < 4 == len({answer[0] for answer in groups})
    alone = model.generate(PROMPT, 6, num_beam_groups=4, **options)
    greedy = model.generate(PROMPT, 6, stop_token_ids=[], strip_prompt=True)
    assert alone == [greedy] * 4  # without a penalty each group is a greedy search


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_contrastive_search_is_what_its_paper_says(model, alpha):
    text = list(PROMPT)
    for _ in range(6):
        logits, said = outputs(model, text)
        candidates = np.argsort(-logits[-1], kind="stable")[:3]
        scores = []
        for token in candidates:
            new = outputs(model, [*text, int(token)])[1][-1]
            likeness = (said @ new) / np.linalg.norm(said, axis=1) / np.linalg.norm(new)
            scores.append((1 - alpha) * np.exp(logits[-1, token]) - alpha * likeness.max())
        text.append(int(candidates[np.argmax(scores)]))
    assert model.generate(PROMPT, 6, penalty_alpha=alpha, top_k=3, stop_token_ids=[]) == text


def test_contrastive_decoding_weighs_two_models(model, weak_model):
    text = list(PROMPT)
    for _ in range(6):
        strong, weak = outputs(model, text)[0][-1], outputs(weak_model, text)[0][-1]
        scores = np.where(strong >= strong.max() + np.log(0.1), 1.5 * strong - 0.5 * weak, -np.inf)
        text.append(int(scores.argmax()))
    sampler = ContrastiveDecoding(weak_model)
    assert model.generate(PROMPT, 6, sampler=sampler, top_k=1, stop_token_ids=[]) == text
    both = model.generate([PROMPT, [7]], 6, sampler=sampler, top_k=1, stop_token_ids=[])
    assert both[0] == text and both[1] == model.generate([7], 6, sampler=sampler, top_k=1, stop_token_ids=[])
    assert len(sampler._texts) <= 4


def test_models_of_two_vocabularies_cannot_be_weighed(model):
    other = CausalLM(TransformerConfig(7, LENGTH, hidden_dim=8, **SIZES))
    with pytest.raises(ValueError, match="12 and 7"):
        model.generate(PROMPT, 6, sampler=ContrastiveDecoding(other))
