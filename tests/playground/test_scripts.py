"""“The code for this” of every tab runs as it is."""

import pytest

from playground import scripts
from playground.corpus import DATES
from playground.presets import Choices, training_recipe

pytestmark = pytest.mark.one_backend

TEXT = "the cat sat on the mat and looked at the moon. " * 40


def carried_out(script: str, capsys, monkeypatch, folder) -> str:
    monkeypatch.chdir(folder)
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_training(capsys, monkeypatch, tmp_path):
    recipe = training_recipe(Choices(steps=2, num_layers=1, hidden_dim=32), "run-1", "text.txt", len(TEXT))
    printed = carried_out(scripts.training(recipe, "run-1", TEXT), capsys, monkeypatch, tmp_path)
    assert "step 2/2" in printed and (tmp_path / "run-1" / "model.safetensors").is_file()


def test_training_on_what_is_built_in_and_on_long_text():
    dates = training_recipe(Choices("T5"), "run-1", DATES, 4_000)
    for script in (
        scripts.training(dates, "run-1"),
        scripts.training(dates, "run-1", builtin=True),
        scripts.training(dates, "run-1", "x" * 5_000),
    ):
        compile(script, "script.py", "exec")
        assert "builtin:dates" in script


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (lambda at: scripts.tokens(f"{at}/gpt-tiny", "the cat\n'"), "'the'"),
        (
            lambda at: scripts.generation(
                "CausalLM", f"{at}/gpt-tiny", "the", 3, {"sampler": "temperature", "seed": 1}
            ),
            "the",
        ),
        (lambda at: scripts.generation("MaskedLM", f"{at}/bert-tiny", "the [MASK]", 3, {}), "%"),
        (lambda at: scripts.generation("Seq2SeqLM", f"{at}/t5-dates-tiny", "3 May", 3, {}), "\n"),
        (lambda at: scripts.looking("CausalLM", f"{at}/gpt-tiny", "the cat", [[1, 0]]), "(2, 2, "),
        (lambda at: scripts.looking("Seq2SeqLM", f"{at}/t5-dates-tiny", "3 May", [(0, 1)], "cross"), "(2, 2, "),
        (lambda at: scripts.quantized("CausalLM", f"{at}/gpt-tiny"), "int4 "),
        (
            lambda at: scripts.comparison(
                [("CausalLM", f"{at}/gpt-tiny"), ("Seq2SeqLM", f"{at}/t5-dates-tiny")], "the", 3, {}
            ),
            "the",
        ),
        (lambda at: scripts.exported("CausalLM", f"{at}/gpt-tiny", "out", "huggingface"), ""),
    ],
)
def test_the_others(script, expected, shipped, capsys, monkeypatch, tmp_path):
    assert expected in carried_out(script(shipped), capsys, monkeypatch, tmp_path)


def test_a_lora_off_and_on(shipped, capsys, monkeypatch, tmp_path):
    import kerasllm
    from kerasllm.tuning import LoRA

    model = kerasllm.CausalLM.from_preset(shipped / "gpt-tiny")
    model.add_adapter("default", LoRA(rank=2))
    model.save_adapter(tmp_path / "lora")
    printed = carried_out(
        scripts.scaled("CausalLM", f"{shipped}/gpt-tiny", "lora", "the cat", 0.5, 4), capsys, monkeypatch, tmp_path
    )
    assert printed.count("the cat") == 2
