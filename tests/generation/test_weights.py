"""What was computed with other weights is never used: open chats and live engines follow their model."""

import threading

import keras
import numpy as np
import pytest

from kerasllm import CausalLM, Seq2SeqLM, Tokenizer, TransformerConfig
from kerasllm.chat.session import Chat
from kerasllm.generation.constraints import Suppress
from kerasllm.generation.contrastive import ContrastiveDecoding
from kerasllm.generation.drafts import Drafts
from kerasllm.generation.engine import Engine
from kerasllm.generation.prefix_cache import PrefixCache
from kerasllm.generation.requests import Request
from kerasllm.generation.sampling import Sampler
from kerasllm.tuning import LoRA

VOCABULARY, LENGTH = 30, 64
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
PROMPT = [i % 7 + 3 for i in range(34)]  # two blocks of the prefix cache
GREEDY = Sampler(temperature=0.0)


def make_model(tokenizer=None, **changes):
    keras.utils.set_random_seed(0)
    size = tokenizer.vocabulary_size if tokenizer else VOCABULARY
    return CausalLM(TransformerConfig(size, LENGTH, **{**SIZES, **changes}), tokenizer)


def with_adapters(model):
    for name in ("a", "b"):
        model.add_adapter(name, LoRA(rank=2))
        for variable in model.trainable_variables:
            variable.assign(np.random.default_rng(len(name) + ord(name)).normal(size=variable.shape))
    model.set_adapter("a")
    return model


def assign_one(model):
    variable = model.transformer.embedding.tokens.weights[0]
    variable.assign(variable + np.random.default_rng(0).normal(size=variable.shape))


def assign_one_row(model):
    table = np.array(model.transformer.embedding.tokens.weights[0])
    table[PROMPT[5]] += np.random.default_rng(0).normal(size=16) * 10
    model.transformer.embedding.tokens.weights[0].assign(table)


def train(model):
    model.compile(keras.optimizers.SGD(2.0), jit_compile=False if keras.backend.backend() == "torch" else "auto")
    model.fit(np.random.default_rng(0).integers(0, VOCABULARY, (8, 17)), batch_size=8, verbose=0)


def load(model, tmp_path):
    other = CausalLM(model.config)
    other.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in other.get_weights()])
    other.save_weights(tmp_path / "other.weights.h5")
    model.load_weights(tmp_path / "other.weights.h5")


def load_adapter(model, tmp_path):
    model.save_adapter(tmp_path / "adapter", "b")
    model.load_adapter(tmp_path / "adapter", "c")
    model.set_adapter(["a", "c"])


CHANGES = {
    "an assign": (make_model, assign_one),
    "an assign of one row": (make_model, assign_one_row),
    "set_weights": (make_model, lambda model: model.set_weights([w * 1.5 for w in model.get_weights()])),
    "load_weights": (make_model, load),
    "fit": (make_model, train),
    "quantize": (make_model, lambda model: model.quantize("int8")),
    "add_adapter": (make_model, with_adapters),
    "set_adapter": (lambda: with_adapters(make_model()), lambda model: model.set_adapter("b")),
    "scale": (lambda: with_adapters(make_model()), lambda model: model.scale(5.0, "a")),
    "merge": (lambda: with_adapters(make_model()), lambda model: (model.set_adapter("b"), model.merge())),
    "load_adapter": (lambda: with_adapters(make_model()), load_adapter),
    "delete_adapter": (lambda: with_adapters(make_model()), lambda model: model.delete_adapter("a")),
}


def run(engine, request):
    engine.submit(request)
    while not request.finished:
        engine.step()
    return request.new_tokens


ON_EVERY_BACKEND = ("an assign", "fit", "set_adapter")
ONE = pytest.mark.one_backend


@pytest.mark.parametrize("name", [n if n in ON_EVERY_BACKEND else pytest.param(n, marks=ONE) for n in CHANGES])
def test_a_live_engine_follows_its_model(name, tmp_path):
    make, change = CHANGES[name]
    model = make()
    engine = Engine(model, slots=1, prefix_cache=PrefixCache())
    before = run(engine, Request(PROMPT, 8, GREEDY))
    half = engine.submit(Request(PROMPT, 8, GREEDY))
    engine.step(3)
    made = list(half.new_tokens)
    assert engine.prefix_cache.hits > 0 and len(made) == 3
    change(*([model, tmp_path] if change in (load, load_adapter) else [model]))
    found = run(engine, Request(PROMPT, 8, GREEDY))
    assert found == model.generate(PROMPT, 8, strip_prompt=True, stop_token_ids=[])
    assert found != before or name == "quantize"
    if keras.backend.backend() != "tensorflow" or name == "set_adapter":
        # TensorFlow does not tell of weights that change in the middle of an answer.
        assert half.new_tokens[3:] == model.generate(PROMPT + made, 5, strip_prompt=True, stop_token_ids=[])


@pytest.mark.one_backend
def test_keys_of_an_adapter_are_found_when_it_is_active_again():
    model = with_adapters(make_model())
    engine = Engine(model, slots=1, prefix_cache=PrefixCache())
    answers = {}
    for name in ("a", "b", "a", "b"):
        model.set_adapter(name)
        before = engine.prefix_cache.hits
        found = run(engine, Request(PROMPT, 4, GREEDY))
        assert answers.setdefault(name, found) == found
        answers[name, "hits"] = engine.prefix_cache.hits - before
    assert answers["a"] != answers["b"] and answers["a", "hits"] == answers["b", "hits"] == 32


@pytest.mark.one_backend
@pytest.mark.parametrize("options", [{"drafts": Drafts(size=3)}, {"room": 16}], ids=["drafts", "room"])
def test_engines_of_all_kinds_follow(options):
    model = make_model()
    engine = Engine(model, slots=4, **options)
    half = engine.submit(Request(PROMPT, 20, GREEDY))
    engine.step(2)
    made = list(half.new_tokens)
    assign_one(model)
    while not half.finished:
        engine.step()
    expected = model.generate(PROMPT + made, 20 - len(made), strip_prompt=True, stop_token_ids=[])
    assert half.new_tokens[len(made) :] == expected


@pytest.mark.one_backend
def test_an_encoder_reads_its_source_again():
    keras.utils.set_random_seed(0)
    model = Seq2SeqLM(TransformerConfig(VOCABULARY, LENGTH, num_encoder_layers=1, **SIZES))
    engine = Engine(model, slots=2)
    half = engine.submit(Request([0], 8, GREEDY, source=PROMPT))
    engine.step(3)
    model.set_weights([w * 1.3 for w in model.get_weights()])
    while not half.finished:
        engine.step()
    other = run(engine, Request([0, *half.new_tokens[:3]], 5, GREEDY, source=PROMPT))
    assert half.new_tokens[3:] == other


def test_an_open_chat_follows_its_model():
    tokenizer = Tokenizer.train(["hello you, what is it? "] * 4, kind="char", special_tokens=["<|endoftext|>"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    model = make_model(tokenizer)
    chat = Chat(model, max_new_tokens=4)
    "".join(chat.send("hello you, what is it? what"))
    assign_one(model)
    chat.reset()
    assert len(chat.engine.prefix_cache) == 0
    said = "hello you, what is it? what"
    assert "".join(chat.send(said)) == "".join(Chat(model, max_new_tokens=4).send(said))
    assign_one(model)
    chat.messages, again = [], Chat(model, max_new_tokens=4)  # without a reset
    assert "".join(chat.send(said)) == "".join(again.send(said))


@pytest.mark.one_backend
def test_contrastive_decoding_follows_the_weaker_model():
    model, amateur = make_model(), make_model(hidden_dim=8)
    sampler = ContrastiveDecoding(amateur)
    model.generate(PROMPT, 4, sampler=sampler, top_k=1)
    assign_one(amateur)
    again = model.generate(PROMPT, 4, sampler=ContrastiveDecoding(amateur), top_k=1)
    assert model.generate(PROMPT, 4, sampler=sampler, top_k=1) == again


class Writes(keras.callbacks.Callback):
    """Writes in the middle of an epoch, and scores."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        made = self.model.generate(PROMPT[:4], 6, stop_token_ids=[])
        self.seen.append((made, self.model.score([PROMPT])[0]))


def test_a_callback_writes_with_the_weights_of_its_moment():
    model = make_model()
    model.compile(keras.optimizers.SGD(1.0))
    rows, writes = np.random.default_rng(0).integers(0, VOCABULARY, (24, 17)), Writes()
    model.fit(rows, batch_size=8, verbose=0, shuffle=False, callbacks=[writes])
    one_by_one = make_model()
    one_by_one.compile(keras.optimizers.SGD(1.0))
    for step, (made, scores) in enumerate(writes.seen):
        one_by_one.fit(rows[8 * step : 8 * step + 8], batch_size=8, verbose=0, shuffle=False)
        assert made == one_by_one.generate(PROMPT[:4], 6, stop_token_ids=[])
        np.testing.assert_allclose(scores, one_by_one.score([PROMPT])[0], atol=1e-4)
    assert not np.array_equal(writes.seen[0][1], writes.seen[2][1])
    np.testing.assert_allclose(model.score([PROMPT])[0], one_by_one.score([PROMPT])[0], atol=1e-4)


def test_threads_write_at_the_same_time():
    model, expected = make_model(), make_model().generate([PROMPT, [5]], 12)
    found, barrier = {}, threading.Barrier(4)

    def write(name):
        barrier.wait()
        prompts = [PROMPT, [5]] if name % 2 else PROMPT
        found[name] = model.generate(prompts, 12)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: expected if name % 2 else expected[0] for name in range(4)}


@pytest.fixture(scope="module")
def broken_model():
    model = make_model()
    gamma = model.transformer.final_norm.weights[0]
    gamma.assign(gamma * np.nan)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "top_p"},
        {"num_beams": 2},
        {"penalty_alpha": 0.5},
        {"draft": "lookup"},
        {"draft": "lookup", "sampler": "temperature"},
        {"details": True, "log_probs": 1},
        {"stream": True},
    ],
    ids=str,
)
def test_logits_that_are_not_numbers_are_an_error(broken_model, options):
    with pytest.raises(ValueError, match="not numbers"):
        list(broken_model.generate(PROMPT, 4, **options))


@pytest.mark.one_backend
def test_one_request_that_breaks_is_not_the_others():
    model = make_model()
    table = np.array(model.transformer.embedding.tokens.weights[0])
    table[29] = np.nan  # a token that only one prompt has
    untied = CausalLM(model.config.replace(tie_embeddings=False))
    untied.transformer.embedding.tokens.weights[0].assign(table)
    engine = Engine(untied, slots=2)
    broken = engine.submit(Request([29, 3], 4, GREEDY))
    whole = engine.submit(Request([3, 4], 4, GREEDY, constraints=[Suppress([29])]))
    while not (broken.finished and whole.finished):
        engine.step()
    assert broken.finished == "error" and "not numbers" in str(broken.error)
    assert whole.finished == "length" and len(whole.new_tokens) == 4
