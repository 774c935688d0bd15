"""The three tiny models in saved_models/: small, whole, made by the recipes of their names, and good at something."""

import json
from pathlib import Path

import pytest

import kerasllm
from kerasllm.data import tasks
from kerasllm.inspection import ablate, ablation_effects, text_loss
from kerasllm.training.recipe import differing_keys, load_recipe

pytestmark = pytest.mark.one_backend

FOLDER = Path(__file__).resolve().parent.parent / "saved_models"
NAMES = ("gpt-tiny", "bert-tiny", "t5-dates-tiny")
PASSED_OVER = {"checkpoints", "curves.png"}  # that git ignores
TEXT = "The function returns the number of bytes written to the file."


def files_of(name):
    return [path for path in (FOLDER / name).rglob("*") if path.is_file() and not PASSED_OVER & set(path.parts)]


def test_together_they_are_under_three_megabytes():
    assert sum(path.stat().st_size for name in NAMES for path in files_of(name)) < 3_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_run_directory_is_whole_and_of_its_recipe(name):
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected |= {"recipe.yaml", "metrics.jsonl", "README.md"}
    found = {path.name for path in files_of(name)}
    assert expected <= found <= expected | {"samples.txt"}
    assert differing_keys(load_recipe(FOLDER / name / "recipe.yaml"), load_recipe(name)) == []
    records = [json.loads(line) for line in (FOLDER / name / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == load_recipe(name).training.steps
    assert records[-1]["val_loss"] == pytest.approx(load_recipe(name).expected["val_loss"], abs=0.01)


def test_the_gpt_writes_words_and_leans_on_its_heads():
    model = kerasllm.CausalLM.from_preset(FOLDER / "gpt-tiny")
    assert model.dtype_policy.name == "float32"
    assert text_loss(model, TEXT) < 3.2  # nats a token, of which there are 1024
    words = set(TEXT.split()) | {"the", "a", "is", "of", "to", "in", "and", "or", "if", "file", "object", "string"}
    written = model.generate("The function returns", max_new_tokens=60, sampler="top_p", temperature=0.7, seed=1)
    assert sum(word.strip(".,") in words for word in written.split()) >= 8
    assert (ablation_effects(model, TEXT) - text_loss(model, TEXT)).max() > 0.1


def test_the_t5_reads_dates_it_never_saw_and_needs_its_cross_attention():
    model = kerasllm.Seq2SeqLM.from_preset(FOLDER / "t5-dates-tiny")
    sources, targets = zip(*tasks.dates(200, part="validation"))

    def right():
        answers = model.generate(list(sources), max_new_tokens=11)
        return sum(answer == target for answer, target in zip(answers, targets)) / len(targets)

    assert right() >= 0.9
    heads = [(layer, head) for layer in range(model.config.num_layers) for head in range(model.config.num_heads)]
    with ablate(model, heads=heads, stack="cross"):
        assert right() < 0.1
    assert right() >= 0.9


def test_the_bert_fills_masks_as_one_would():
    model = kerasllm.MaskedLM.from_preset(FOLDER / "bert-tiny")
    for text, word in (("The default [MASK] is None.", "value"), ("Return the [MASK] of the list.", "number")):
        assert word in [filled.token for filled in model.predict_masks(text, top_k=5)[0]]
