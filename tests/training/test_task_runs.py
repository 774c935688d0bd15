"""Recipes of every task, carried out whole and small: data in, a directory out that its class opens."""

import json

import pytest
import yaml
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.training import train
from kerasllm.training.recipe import Recipe, load_recipe
from kerasllm.training.tasks import TASKS, label_counts, split_by_label, stripped_labels

TEXT = "the cat sat on the mat. the dog ran to the cat. a bird sang in the tree. " * 30
PAIRS = [(f"{word} {number}", label) for number in range(20) for word, label in (("red", "warm"), ("blue", "cold"))]
SMALL = {"hidden_dim": 16, "num_heads": 2, "intermediate_dim": 16, "num_layers": 1}
MODELS = {
    "CausalLM": {"name": "llama_tiny", "num_kv_heads": 1, **SMALL},
    "MaskedLM": {"name": "bert_tiny", **SMALL},
    "PairedMaskedLM": {"name": "bert_tiny", **SMALL},
    "ReplacedTokenDetector": {"name": "bert_tiny", **SMALL},
    "TextClassifier": {"name": "bert_tiny", **SMALL},
    "TextEmbedder": {"name": "bert_tiny", **SMALL},
    "Seq2SeqLM": {"name": "t5_tiny", "num_encoder_layers": 1, "head_dim": 8, **SMALL},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "text.txt").write_text(TEXT)
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"source": a, "target": b}) + "\n" for a, b in PAIRS))
    labelled = sorted(f"{text}, {label} \n" for text, label in PAIRS)  # by label, last of all
    labelled.sort(key=lambda line: line.rsplit(",")[-1])
    (folder / "labelled.csv").write_text("text,label\n" + "".join(labelled))
    talks = "".join(json.dumps({"prompt": a, "response": b}) + "\n" for a, b in PAIRS)
    (folder / "talks.jsonl").write_text(talks)
    return folder


def make_recipe(task, sources, **changes):
    """A small recipe; `changes` of what a task would have are made last."""
    source = "text.txt"
    if TASKS[task].objective is None:
        source = "talks.jsonl" if TASKS[task].conversations else "pairs.jsonl"
    return Recipe.from_dict(
        {
            "name": "test",
            "task": task,
            "data": {
                "source": str(sources / source),
                "sequence_length": 64 if TASKS[task].conversations else 16,
                "batch_size": 4,
            },
            "tokenizer": {"kind": "wordpiece" if "[CLS]" in TASKS[task].special_tokens else "byte"},
            "model": MODELS[TASKS[task].model],
            "training": {"steps": 4, "evaluate_every": 2, "evaluate_steps": 1, "sample_tokens": 4},
            **changes,
        }
    )


# What the backends do is in tests/models; here all of them run three tasks of different kinds.
ON_ALL = ("causal-lm", "seq2seq", "classify")
RUNS = [task if task in ON_ALL else pytest.param(task, marks=pytest.mark.one_backend) for task in TASKS]


@pytest.mark.parametrize("task", RUNS)
def test_a_task_trains_saves_and_loads(task, sources, tmp_path):
    train(make_recipe(task, sources), tmp_path / task)
    records = [json.loads(line) for line in (tmp_path / task / "metrics.jsonl").read_text().splitlines()]
    figure = TASKS[task].figure
    assert [record["step"] for record in records] == [2, 4]
    assert all("val_loss" in record for record in records)
    assert figure is None or all(0 <= record[f"val_{figure[0]}"] <= 1 for record in records)
    assert TASKS[task].model in (tmp_path / task / "README.md").read_text()
    model = getattr(kerasllm, TASKS[task].model).from_preset(tmp_path / task)
    if task == "seq2seq":
        result = CliRunner().invoke(app, ["generate", str(tmp_path / task), "red 3"])
        assert result.exit_code == 0, result.output
    if task == "instruct":
        assert "assistant" in model.tokenizer.chat_template
        typed = "\n".join(["red 3", "/reset", "x" * 99, "red", "/quit", "red"])
        result = CliRunner().invoke(app, ["chat", str(tmp_path / task), "--max-new-tokens", "4"], input=typed)
        assert result.exit_code == 0, result.output
        assert "A new conversation." in result.output and "Error: The message is too long" in result.output
    if task == "classify":
        assert model.labels == ["cold", "warm"]
        assert model.classify("red 3").label in model.labels


def test_a_saved_model_is_tuned_to_another_task(sources, tmp_path):
    train(make_recipe("masked-lm", sources), tmp_path / "bert")
    arguments = ["finetune", tmp_path / "bert", "--task", "classify", "--data", sources / "labelled.csv"]
    arguments += ["--set", "steps=2", "--set", "evaluate_every=2", "--set", "warmup_steps=0"]
    result = CliRunner().invoke(app, [str(a) for a in [*arguments, "--set", "data.sequence_length=16"]])
    assert result.exit_code == 0, result.output
    assert "2 labels: 'cold' 18, 'warm' 18" in result.output
    tuned = tmp_path / "bert-classify"
    assert "Trained from bert" in (tuned / "README.md").read_text()
    result = CliRunner().invoke(app, ["classify", str(tuned), "red 3"])
    assert result.exit_code == 0 and "warm" in result.output and "%" in result.output
    saved = load_recipe(tuned / "recipe.yaml")
    assert saved.start_from == str(tmp_path / "bert") and saved.task == "classify"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "clasify"}, "Did you mean 'classify'"),
        ({"task": "seq2seq", "model": MODELS["MaskedLM"]}, "needs a model with an encoder and a decoder"),
        ({"task": "classify", "model": MODELS["Seq2SeqLM"]}, "needs a model of one stack"),
        ({"task": "classify", "start_from": "somewhere"}, "leave `model` and `tokenizer` out"),
    ],
)
def test_a_recipe_whose_parts_disagree_is_refused(changes, message, sources):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({**make_recipe("masked-lm", sources).to_dict(), **changes})


def test_a_missing_column_is_named(sources, tmp_path):
    recipe = make_recipe("classify", sources).to_dict()
    recipe["data"]["target_column"] = "label"
    with pytest.raises(ValueError, match=r"no column 'label'. It has: source, target. .*--set data.source_column=NAME"):
        train(Recipe.from_dict(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("labels", "fraction", "held_out"),
    [
        ("aaaaabbbbb", 0.2, "ab"),  # sorted: the last two alone would both be b
        ("ababababab", 0.2, "ab"),
        ("aaaaaaaaab", 0.2, "aa"),  # the only b is learned
        ("aaaabbbbcccc", 0.25, "abc"),
        ("aaaaaabbb", 0.4, "aab"),
        ("ab", 0.9, None),
    ],
)
def test_the_part_held_out_has_all_labels(labels, fraction, held_out):
    pairs = [(str(i), label) for i, label in enumerate(labels)]
    if held_out is None:
        with pytest.raises(ValueError, match="too few examples"):
            split_by_label(pairs, fraction)
        return
    train_pairs, validation = split_by_label(pairs, fraction)
    assert sorted(label for _, label in validation) == sorted(held_out)
    assert sorted(train_pairs + validation) == sorted(pairs)
    assert train_pairs == sorted(train_pairs, key=lambda pair: int(pair[0]))
    # The first few validation rows, which `evaluate_steps` takes, have all labels, too.
    several = {label for label in labels if labels.count(label) > 1}
    assert {label for _, label in validation[: len(several)]} == several


@pytest.mark.one_backend
def test_labels_are_stripped_and_an_empty_one_is_refused():
    assert stripped_labels([("x", " neg"), ("y", "neg\n"), ("z", "pos")]) == [("x", "neg"), ("y", "neg"), ("z", "pos")]
    with pytest.raises(ValueError, match=r"2 of 3 rows have an empty label, the first that of 'y'"):
        stripped_labels([("x", "neg"), ("y", " "), ("z", "")])
    with pytest.raises(ValueError, match="All 2 rows have the label 'neg'"):
        stripped_labels([("x", "neg"), ("y", " neg")])
    assert label_counts([("x", str(i)) for i in range(25)]).endswith("'3' 1, '4' 1 and 5 more")


def test_every_recipe_of_ours_is_whole():
    for name in kerasllm.training.recipe.recipe_names():
        recipe = load_recipe(name)
        assert recipe.description and recipe.expected.get("hardware"), name
        assert yaml.safe_load(recipe.to_yaml())["task"] in TASKS
