"""`kerasllm finetune`: each method trains what it should, saves it, and the other commands use it."""

import json

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import MethodName, app
from kerasllm.training import train
from kerasllm.training.recipe import METHODS, WHOLE_MODEL, Recipe

TEXT = "the cat sat on the mat. the dog ran to the cat. " * 20
SMALL = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16, "max_sequence_length": 24}
QUICK = ("steps=2", "evaluate_every=2", "warmup_steps=0", "sequence_length=16", "batch_size=4", "sample_tokens=2")
QUICK = (*QUICK, "rank=2", "prompt_length=3", "bottleneck_dim=2", "evaluate_steps=1")


def run(*arguments, code=0):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def finetune(base, source, task, *options, settings=(), code=0):
    chosen = [part for value in (*QUICK, *settings) for part in ("--set", value)]
    return run("finetune", base, "--task", task, "--data", source, *options, *chosen, code=code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base GPT, a base BERT, a text and a table of labels."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "text.txt").write_text(TEXT)
    rows = [{"source": f"{word} {i}", "target": label} for i in range(12) for word, label in (("a", "x"), ("b", "y"))]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keras.utils.set_random_seed(5)
    for name, size, cls in (("gpt", "gpt2_tiny", kerasllm.CausalLM), ("bert", "bert_tiny", kerasllm.MaskedLM)):
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if name == "bert" else []
        tokenizer = kerasllm.Tokenizer.train([TEXT + "\n"], kind="char", special_tokens=special or None)
        config = kerasllm.TransformerConfig.from_name(size, vocabulary_size=tokenizer.vocabulary_size, **SMALL)
        cls(config, tokenizer).save_to_preset(folder / name)
    return folder


# Each method is tested on all backends in tests/tuning; here all of them run one of each kind.
ON_ALL = ("lora", "features")
METHOD_RUNS = [m if m in ON_ALL else pytest.param(m, marks=pytest.mark.one_backend) for m in METHODS]


@pytest.mark.parametrize("method", METHOD_RUNS)
def test_a_method_trains_saves_and_generates(method, folder, tmp_path):
    output = tmp_path / "out"
    report = finetune(folder / "gpt", folder / "text.txt", "causal", "--method", method, "--output", output)
    assert f"{method}: " in report and "Saved to" in report
    base = kerasllm.CausalLM.from_preset(folder / "gpt")
    before = {v.path: keras.ops.convert_to_numpy(v.value) for v in base.weights}
    if method in WHOLE_MODEL:
        tuned = kerasllm.CausalLM.from_preset(output)
        changed = {v.path for v in tuned.weights if (keras.ops.convert_to_numpy(v.value) != before[v.path]).any()}
        assert any("block_1" in path for path in changed)
        assert any("block_0" in path for path in changed) == (method == "full")
        text = run("generate", output, "the", "--max-new-tokens", 3)
    else:
        assert not (output / "model.safetensors").exists()
        tuned = base
        tuned.load_adapter(output)
        text = run("generate", folder / "gpt", "the", "--max-new-tokens", 3, "--adapter", output)
    assert text == tuned.generate("the", 3, sampler="top_p", seed=0) + "\n"


def test_a_classifier_s_adapter_brings_its_head(folder, tmp_path):
    keras.utils.set_random_seed(1)
    settings = ("steps=20", "evaluate_every=20", "learning_rate=0.02")
    finetune(
        folder / "bert", folder / "pairs.jsonl", "classify", "--method", "lora", "--output", tmp_path, settings=settings
    )
    assert "load_adapter" in (tmp_path / "README.md").read_text()
    answers = []
    for seed in (1, 2):  # The head that the base has not is another one each time, until the adapter's is there.
        keras.utils.set_random_seed(seed)
        with pytest.warns(UserWarning, match="start"):
            model = kerasllm.TextClassifier.from_preset(folder / "bert", labels=["x", "y"])
        model.load_adapter(tmp_path)
        answers.append(model.predict(["a 3", "b 4"], verbose=0))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
    shown = run("classify", folder / "bert", "a 3", "--adapter", tmp_path)
    label = model.classify("a 3").label
    assert shown.split()[2] == label and label in ("x", "y")


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("command", "cls", "text"),
    [("fill-mask", kerasllm.MaskedLM, "the [MASK]at"), ("embed", kerasllm.TextEmbedder, "the cat")],
)
def test_commands_that_read_use_an_adapter(command, cls, text, folder, tmp_path):
    model = cls.from_preset(folder / "bert")
    model.add_adapter("default", kerasllm.tuning.LayerNormTuning())
    for i, variable in enumerate(model.trainable_variables):
        variable.assign(np.random.default_rng(i).normal(size=variable.shape))
    model.save_adapter(tmp_path)
    shown = run(command, folder / "bert", text, "--adapter", tmp_path)
    assert shown != run(command, folder / "bert", text)
    model.merge()
    model.save_to_preset(tmp_path / "merged")
    assert shown == run(command, tmp_path / "merged", text)


@pytest.mark.one_backend
def test_an_adapter_s_run_goes_on_where_it_was_left(folder, tmp_path):
    values = {
        "name": "lora",
        "start_from": str(folder / "gpt"),
        "data": {"source": str(folder / "text.txt"), "sequence_length": 16, "batch_size": 4},
        "tuning": {"method": "lora", "rank": 2, "layer_decay": 0.5, "anchor": 0.01},
        "training": {"steps": 4, "evaluate_every": 2, "evaluate_steps": 1, "sample_prompt": None},
    }
    recipe = Recipe.from_dict(values)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts")
    for path in sorted((tmp_path / "parts/checkpoints").iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    parts = train(recipe, tmp_path / "parts", resume=True)
    for a, b in zip(whole.trainable_variables, parts.trainable_variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a.value), keras.ops.convert_to_numpy(b.value))


@pytest.mark.one_backend
def test_the_command_knows_the_methods_of_recipes():
    assert [method.value for method in MethodName] == list(METHODS)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("task", "method", "settings", "message"),
    [
        ("causal", "lora", ["rank=99"], "rank"),
        ("causal", "lora", ["targets=atention.*"], "Did you mean"),
        ("causal", "prompt", ["targets=query"], "goes to no layer"),
        ("causal", "last-n", ["trained_blocks=3"], "trained_blocks"),
        ("causal", "full", ["layer_decay=2"], "decay"),
        ("causal", "features", ["packing=stream"], "another in each pass"),
        ("caussal", "lora", [], "Did you mean"),
    ],
)
def test_bad_settings_are_one_line(task, method, settings, message, folder, tmp_path):
    output = finetune(
        *(folder / "gpt", folder / "text.txt", task, "--method", method, "--output", tmp_path / "run"),
        settings=settings,
        code=2,
    )
    assert output.startswith("Error: ") and message in output and output.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend
def test_a_recipe_that_starts_from_nothing_tunes_nothing():
    with pytest.raises(ValueError, match="start_from"):
        Recipe.from_dict({"name": "x", "tuning": {"method": "lora"}})
