"""A SavedModel makes the model's tokens where nothing but TensorFlow is installed."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.generation.sampling import Sampler

tf = pytest.importorskip("tensorflow")

PROMPTS = [np.random.default_rng(n).integers(6, 48, n).tolist() for n in range(1, 11)]  # of ten lengths
STOPS = [3, 5]
NEW = 6
GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
SAMPLED = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 7}
LLAMA = {
    "positions": "rotary",
    "norm": "rms_norm",
    "gated": True,
    "activation": "silu",
    "use_bias": False,
    "num_kv_heads": 1,
    "tie_embeddings": False,
    "sliding_window": 6,
}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "norm_position": "post", "pooler": True}
TEXTS = ["to be", "or not  to bé", "</s> that is\nthe Question!"]
ONLY_TENSORFLOW = """
import json, sys
for name in ("keras", "jax", "torch", "kerasllm", "keras_hub", "keras_nlp", "tensorflow_text"):
    sys.modules[name] = None
import tensorflow as tf

def answer(job):
    signature = tf.saved_model.load(job["path"]).signatures[job["signature"]]
    specs = signature.structured_input_signature[1]
    outputs = []
    for inputs in job["inputs"]:
        arrays = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
        made = signature(**arrays)
        text = {name: value.numpy() for name, value in made.items()}
        outputs.append({k: [x.decode() for x in v] if v.dtype == object else v.tolist() for k, v in text.items()})
    return outputs

jobs = json.load(open(sys.argv[1]))
json.dump({name: answer(job) for name, job in jobs.items()}, open(sys.argv[2], "w"))
"""

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the same graph from every backend")


def tokenizer(kind="byte", **options):
    return kerasllm.Tokenizer.train(" ".join(TEXTS) * 3, kind=kind, **options)


def make(kind):
    keras.utils.set_random_seed(3)
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32, "initializer_range": 0.4}

    def config(vocabulary_size=48, **changes):
        return kerasllm.TransformerConfig(vocabulary_size, 24, **sizes, **changes)

    if kind == "llama":
        return kerasllm.CausalLM(config(**LLAMA))
    if kind == "t5":
        config = kerasllm.TransformerConfig.from_name(
            "t5_tiny", vocabulary_size=48, max_sequence_length=24, num_encoder_layers=1, **sizes
        )
        return kerasllm.Seq2SeqLM(config)
    if kind == "classifier":
        words = tokenizer("wordpiece", vocabulary_size=60)
        return kerasllm.TextClassifier(config(words.vocabulary_size, **BERT), words, labels=["sad", "glad"])
    if kind == "embedder":
        return kerasllm.TextEmbedder(config(272, **BERT), tokenizer(), truncation=True)
    if kind == "gpt":
        return kerasllm.CausalLM(config(272), tokenizer())  # a vocabulary padded beyond the tokenizer's
    model = kerasllm.CausalLM(config())
    if kind == "int8":
        model.quantize("int8")
    if kind == "lora":
        model.enable_lora(rank=2)
        for variable in model.trainable_variables:
            variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=1))
    return model


def generate_inputs(prompts, settings):
    width = max(map(len, prompts)) + 2  # wider than need be
    rows = [prompt + [1] * (width - len(prompt)) for prompt in prompts]
    return {"token_ids": rows, "lengths": [*map(len, prompts)], "max_new_tokens": NEW, **settings}


BATCHES = [PROMPTS[:7], *([prompt] for prompt in PROMPTS[7:])]  # of 7, and of 1
# Sampling is the same code for all.
SETTINGS = {kind: [GREEDY] for kind in ("llama", "t5", "int8", "lora")} | {"gpt": [GREEDY, SAMPLED]}
WRITTEN = ["to", "", "é  x", *["or"] * 7]
GENERATING = [*SETTINGS] if keras.backend.backend() == "tensorflow" else ["gpt"]
# What is asked: (model, signature) → inputs.
ASKED = {
    (kind, "generate"): [generate_inputs(batch, how) for how in SETTINGS[kind] for batch in BATCHES]
    for kind in GENERATING
}
ASKED["gpt", "generate_text"] = [{"text": WRITTEN, "max_new_tokens": NEW, **SAMPLED}]
if keras.backend.backend() == "tensorflow":
    ASKED |= {("classifier", "classify_text"): [{"text": TEXTS[:2]}], ("embedder", "embed_text"): [{"text": TEXTS}]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Each model, and what its SavedModel answers in a process that has only TensorFlow."""
    folder = tmp_path_factory.mktemp("served")
    models, jobs = {}, {}
    for (kind, signature), inputs in ASKED.items():
        path = folder / kind / "1"
        if kind not in models:
            models[kind] = make(kind)
            assert models[kind].export(folder / kind, stop_token_ids=STOPS) == path
        jobs[f"{kind} {signature}"] = {"path": str(path), "signature": signature, "inputs": inputs}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", ONLY_TENSORFLOW, str(folder / "jobs.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return models, json.loads((folder / "answers.json").read_text())


@pytest.mark.parametrize("kind", GENERATING)
def test_generate_makes_the_models_tokens(served, kind):
    model, answers = served[0][kind], iter(served[1][f"{kind} generate"])
    for settings in SETTINGS[kind]:
        sampler = {"sampler": "temperature", **settings} if settings["temperature"] else {}
        wanted = iter(model.generate(PROMPTS, NEW, stop_token_ids=STOPS, **sampler))
        for prompts, answer in zip(BATCHES, answers):
            ids = np.array(answer["token_ids"])
            assert [row[:length].tolist() for row, length in zip(ids, answer["lengths"])] == [next(wanted) for _ in ids]
            width = 0 if kind == "t5" else max(map(len, prompts)) + 2
            assert ids.shape == (len(prompts), width + NEW)
            beyond = np.arange(ids.shape[1])[None, :] >= np.array(answer["lengths"])[:, None]
            assert (ids[beyond] == 0).all()


@on_tensorflow
def test_some_rows_of_the_test_above_end_early(served):
    """Else it would not show that stop tokens end rows."""
    answers = served[1]["llama generate"] + served[1]["int8 generate"]
    left = [len(row) - n for answer in answers for row, n in zip(answer["token_ids"], answer["lengths"])]
    assert max(left) > 2 + len(PROMPTS[6]) - 1


def test_text_is_continued_as_the_model_does(served):
    wanted = served[0]["gpt"].generate(WRITTEN, NEW, sampler="temperature", stop_token_ids=STOPS, **SAMPLED)
    assert served[1]["gpt generate_text"][0]["text"] == wanted


@on_tensorflow
def test_strings_in_strings_out(served):
    models, answers = served
    wanted = models["classifier"].classify(TEXTS[:2])
    answer = answers["classifier classify_text"][0]
    assert answer["label"] == [w.label for w in wanted]
    wanted = [[w.probabilities[label] for label in ("sad", "glad")] for w in wanted]
    np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
    wanted = models["embedder"].predict(TEXTS, verbose=0)
    np.testing.assert_allclose(answers["embedder embed_text"][0]["embeddings"], wanted, atol=1e-5)


@on_tensorflow
def test_signatures_are_those_of_the_task():
    from kerasllm.serving.saved_model import signatures_of

    names = {"plain": ["serving_default", "generate"], "embedder": ["serving_default", "embed"]}
    names |= {"classifier": ["serving_default", "classify"]}
    for kind, wanted in names.items():
        signatures = signatures_of(make(kind))
        assert [*signatures] == wanted
        for spec in signatures["serving_default"].structured_input_signature[1].values():
            assert spec.shape.as_list() == [None, None] and spec.dtype == tf.int32
    paired = kerasllm.PairedMaskedLM(kerasllm.TransformerConfig(48, 16, 1, 2, 16, **BERT))
    outputs = signatures_of(paired)["serving_default"].structured_outputs
    assert {*outputs} == {"masked_lm", "next_sentence"}


@on_tensorflow
def test_the_graph_refuses_what_generate_refuses():
    from kerasllm.serving.saved_model import signatures_of

    generate = signatures_of(make("plain"))["generate"]
    good = {"token_ids": [[1, 2, 3]], "lengths": [3], "max_new_tokens": 2, **GREEDY}
    specs = generate.structured_input_signature[1]
    for change, message in (
        ({"lengths": [0]}, "lengths must be from 1"),
        ({"lengths": [4]}, "lengths must be from 1"),
        ({"token_ids": [[1, 2, 48]]}, "token_ids must be below 48"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 22}, "context of 24"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_k": 49}, "top_k must be"),
        ({"seed": -1}, "seed must not"),
    ):
        arrays = {name: tf.constant(value, specs[name].dtype) for name, value in {**good, **change}.items()}
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            generate(**arrays)


@pytest.mark.one_backend
def test_versions_stand_beside_each_other(tmp_path, monkeypatch):
    from kerasllm.serving import export

    monkeypatch.setattr(export, "_by_tensorflow", lambda function, model, path: path.mkdir())
    model = make("plain")
    assert model.export(tmp_path / "out").name == "1"
    with pytest.raises(ValueError, match="--overwrite"):
        model.export(tmp_path / "out")
    assert model.export(tmp_path / "out", overwrite=True).name == "2"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1", "2", "README.md"}


@on_tensorflow
def test_strings_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer"):
        make("plain").export(tmp_path / "out", text=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="where there is another process")
def test_an_error_of_the_other_process_is_an_error_here(tmp_path, monkeypatch):
    from kerasllm.serving import elsewhere

    for said, error, message in (
        ("Traceback ...\nValueError: The model has no tokenizer.", ValueError, "^The model has no tokenizer"),
        ("Killed", RuntimeError, "process on TensorFlow failed:\nKilled"),
    ):
        done = subprocess.CompletedProcess([], 1, None, said)
        monkeypatch.setattr(elsewhere.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(error, match=message):
            make("plain").export(tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.one_backend
def test_the_random_numbers_are_those_of_a_sampler():
    from kerasllm.serving.tf_generate import counted_uniform

    for seed in (0, 1, 2**31 - 1):
        for count in (0, 1, 1000):
            assert float(counted_uniform(tf.constant(seed), tf.constant(count))) == Sampler(seed=seed).uniform(count)
