"""From the choices of the page to recipes that fit, and scripts that run."""

import pytest

from kerasllm.training.recipe import Recipe
from playground import scripts
from playground.presets import FAMILIES, LENGTHS, Choices, estimate, lora_recipe, training_recipe

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_recipe(family):
    steps = []
    for length in LENGTHS:
        recipe = training_recipe(Choices(family, length), "run-1", "text.txt", 50_000)
        found = estimate(recipe)
        assert 1_000 < found.parameters < 5_000_000
        assert recipe.training.steps % recipe.training.evaluate_every == 0
        assert LENGTHS[length] * 0.8 <= found.seconds <= LENGTHS[length] + 30
        steps.append(recipe.training.steps)
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "GPT-9"}, "`family` must be one of GPT"),
        ({"num_layers": 1e9}, "`layers` must be from 1 to 6"),
        ({"hidden_dim": 100}, "multiple of 32"),
        ({"learning_rate": float("nan")}, "`learning rate` must be a number"),
        ({"steps": 10**9}, "`steps` must be from 0"),
        ({"batch_size": 0}, "`batch size` must be from 1"),
        ({"seed": -1}, "`seed` must be from 0"),
    ],
)
def test_choices_past_the_page_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Choices(**change)


def test_models_beyond_the_playground_are_refused():
    with pytest.raises(ValueError, match="at most 5,000,000"):
        training_recipe(Choices("T5", num_layers=6, hidden_dim=256), "run-1", "text.txt", 1_000_000)


def test_a_script_tells_the_whole_recipe():
    recipe = training_recipe(Choices(steps=24), "run-1", "text.txt", 5_000, "GPT on 'quotes'")
    lora = lora_recipe("run-2", "text.txt", 900, "causal-lm", "saved_models/gpt-tiny", 24, 4)
    assert Recipe.from_dict(scripts.told(recipe)) == recipe and Recipe.from_dict(scripts.told(lora)) == lora
