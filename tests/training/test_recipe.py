"""Recipes: a closed schema, errors that help, overrides, and our own recipes."""

import dataclasses
import subprocess
import sys

import pytest
import yaml

from kerasllm.training.recipe import MAX_BYTES, Recipe, differing_keys, load_recipe, recipe_names

pytestmark = pytest.mark.one_backend

MODEL = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}


def write(folder, **values):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": MODEL, **values}))
    return path


def test_defaults_fill_what_the_file_leaves_out(tmp_path):
    recipe = load_recipe(write(tmp_path, training={"steps": 500}))
    assert recipe.name == "mine" and recipe.training.steps == 500 and recipe.data.packing == "stream"
    config = recipe.config(vocabulary_size=300)
    assert (config.vocabulary_size, config.max_sequence_length) == (300, recipe.data.sequence_length)


def test_what_is_written_reads_back_the_same(tmp_path):
    recipe = load_recipe(write(tmp_path, data={"source": "a.txt"}, expected={"val_loss": 1.5}))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_our_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description
    assert recipe.data.source or recipe.data.wanted


def test_our_recipes_are_these():
    expected = {
        "quickstart",
        "shakespeare-char-cpu",
        "shakespeare-char",
        "shakespeare-char-fast",
        "gpt2-124m",
    }
    assert expected <= set(recipe_names())


def test_shakespeare_on_cpu_has_nano_gpts_settings_but_for_the_learning_rate():
    recipe = load_recipe("shakespeare-char-cpu")
    config, training = recipe.config(65), recipe.training
    assert (config.num_layers, config.num_heads, config.hidden_dim, config.dropout) == (4, 4, 128, 0.0)
    assert (recipe.data.sequence_length, recipe.data.batch_size, training.steps) == (64, 12, 2000)
    # nanoGPT's rate is 1e-3, which ends at 1.89.
    assert (training.learning_rate, training.final_fraction, training.beta_2) == (2e-3, 0.1, 0.99)


def test_gpt2_has_its_size_but_for_the_padded_vocabulary():
    config = load_recipe("gpt2-124m").config(50257)
    assert config.vocabulary_size == 50304
    assert config.num_parameters() == 124_439_808 + 47 * 768


@pytest.mark.parametrize("overrides", [["training.steps=10"], ["steps=10"], {"steps": 10}])
def test_overrides_by_whole_or_bare_key(tmp_path, overrides):
    assert load_recipe(write(tmp_path), overrides).training.steps == 10


def test_overrides_are_typed(tmp_path):
    overrides = ["learning_rate=1e-4", "clipnorm=null", "tensorboard=true", "source=123.txt", "dropout=0.1"]
    recipe = load_recipe(write(tmp_path), [*overrides, "sample_prompt="])
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.clipnorm is None and recipe.training.tensorboard is True
    assert recipe.data.source == "123.txt" and recipe.model["dropout"] == 0.1
    assert recipe.training.sample_prompt == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stepz=10"], "Unknown recipe key 'stepz'. Did you mean 'steps'"),
        (["trainin.steps=10"], "Did you mean 'training'"),
        (["training.step=10"], "Did you mean 'steps'"),
        (["vocabulary_size=10"], "`tokenizer.vocabulary_size` or `model.vocabulary_size`"),
        (["steps"], "`key=value`"),
        (["steps=many"], "`training.steps` must be a whole number. Received: 'many'"),
        (["steps=1.5"], "a whole number"),
        (["steps=true"], "a whole number"),
        (["steps=0"], "at least 1"),
        (["learning_rate=fast"], "`training.learning_rate` must be a number"),
        (["tensorboard=1"], "true or false"),
        (["source=3"], "`data.source` must be text or null"),
        (["optimizer=adamv"], "must be one of adamw, muon. Did you mean 'adamw'"),
        (["validation_fraction=1"], "below 1"),
        (["steps=300", "evaluate_every=200"], "steps=300, evaluate_every=200"),
        (["warmup_steps=5000"], "warmup_steps=5000"),
        (["early_stopping=2", "validation_fraction=0"], "needs validation text"),
        (["model.num_heads=3"], "must be a multiple"),
        (["model.name=gpt2_tine"], "Did you mean 'gpt2_tiny'"),
        (["max_sequence_length=8"], "longer than the model reads"),
    ],
)
def test_bad_values_are_named(tmp_path, overrides, message):
    with pytest.raises(ValueError) as error:
        load_recipe(write(tmp_path), overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", "not valid YAML"),
        ("- a\n- b", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("steps: 10", "Unknown recipe key 'steps'"),
        ("training: {stepz: 10}", "Unknown recipe key 'training.stepz'. Did you mean 'steps'"),
        ("training: 10", "`training` must be a mapping"),
        ("model: {num_layer: 1}", "Unknown config key 'num_layer'"),
        ("name: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("description: " + "x" * MAX_BYTES, "at most"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_recipe(path)
    assert message in str(error.value)


def test_unknown_recipes_are_named_with_near_ones(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'quickstart'"):
        load_recipe("quickstat")
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")


def test_differing_keys_are_dotted_and_leave_out_words(tmp_path):
    a = load_recipe(write(tmp_path))
    b = load_recipe(write(tmp_path, description="other words"), ["steps=10", "model.dropout=0.5"])
    assert differing_keys(a, dataclasses.replace(a, description="new")) == []
    assert sorted(differing_keys(a, b)) == ["model.dropout", "training.steps"]


def test_recipes_are_read_without_a_backend():
    code = (
        "import sys; from kerasllm.training.recipe import load_recipe; load_recipe('quickstart');"
        "assert not {'keras', 'tensorflow', 'jax', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_recipe_is_made_of_dicts():
    assert Recipe.from_dict({"name": "mine", "model": MODEL}).training.steps == 1000
