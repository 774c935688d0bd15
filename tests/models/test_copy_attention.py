"""A trained T5 looks where it copies from: the picture that Bahdanau et al. (2014) drew of their attention."""

import datetime

import keras
import numpy as np
import pytest

from kerasllm import Seq2SeqLM, Tokenizer, TransformerConfig
from kerasllm.data.tasks.date_forms import FIRST_DAY, LAST_DAY, write_date
from kerasllm.training.optimizers import muon

pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

FORMS = ("{year}/{month:02}/{day:02}", "{day:02}.{month:02}.{year}", "{day} {name} {year}", "{name} {day}, {year}")
STEPS, BATCH = 400, 64
DAYS = np.random.default_rng(0).permutation(np.arange(FIRST_DAY.toordinal(), LAST_DAY.toordinal() + 1)).tolist()


def examples(days):
    """(a date in one of the forms, the same date as "2021-05-03", the first with marks for year and day)."""
    found = []
    for i, day in enumerate(days):
        date, form = datetime.date.fromordinal(day), FORMS[i % len(FORMS)]
        marked = form.replace("{year}", "####").replace("{day:02}", "@@").replace("{day}", "@" * len(str(date.day)))
        found.append((write_date(date, form), date.isoformat(), write_date(date, marked)))
    return found


def copied(marked):
    """(place in the target, place in the source) of the digits of year and day that the source has, too."""
    year, day, width = marked.index("#"), marked.index("@"), marked.count("@")
    return [*((i, year + i) for i in range(4)), *((10 - width + i, day + i) for i in range(width))]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    train = examples(DAYS[: STEPS * BATCH])
    texts = [text for source, target, _ in train for text in (source, target)]
    tokenizer = Tokenizer.train(texts, kind="char", special_tokens=["<pad>", "</s>", "<unk>"])
    sizes = {"num_layers": 2, "num_encoder_layers": 2, "num_heads": 2, "head_dim": 32, "hidden_dim": 64}
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    config = TransformerConfig.from_name(
        "t5_tiny",
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=32,
        intermediate_dim=128,
        **sizes,
        **rates,
    )
    model = Seq2SeqLM(config, tokenizer)
    model.compile(muon(0.01, total_steps=STEPS, warmup_steps=20, weight_decay=0.01, model=model))
    data = model.as_data(
        [source for source, _, _ in train], [target for _, target, _ in train], batch_size=BATCH, shuffle=True
    )
    data.steps_per_epoch = STEPS
    model.fit(data, verbose=0)
    return model


def test_copied_digits_are_looked_at(model):
    """The mean over the heads of the last layer: more than half of it is on the digit that is copied."""
    weights, is_largest, right = [], [], []
    for source, target, marked in examples(DAYS[-40:]):
        trace = model.trace(source)
        right.append("".join(trace.tokens[1:]) == target)
        attention = trace.cross_attentions[-1][0].mean(axis=0)  # row i: of the decoder while it writes token i
        for place, origin in copied(marked) if right[-1] else ():
            assert target[place] == source[origin] == trace.source_tokens[origin]
            weights.append(attention[place, origin])
            is_largest.append(attention[place].argmax() == origin)
    assert np.mean(right) >= 0.9
    assert np.mean(weights) > 0.5 and np.mean(is_largest) > 0.8, (np.mean(weights), np.mean(is_largest))
