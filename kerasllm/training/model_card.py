"""The README.md of a trained model: what it is, what it was made of, what it reached, how to use it."""

import json
from dataclasses import replace
from pathlib import Path

from kerasllm.training.plots import read_metrics
from kerasllm.training.recipe import WHOLE_MODEL, Recipe
from kerasllm.training.tasks import FIGURES, TASKS

CARD = """---
library_name: kerasllm
pipeline_tag: {pipeline}
---
# {name}

{description}

{sizes}

```python
import kerasllm

{load}
{usage}
```

## Figures

| | |
|---|---|
{figures}

`metrics.jsonl` has them all, `samples.txt` what the model wrote on the way. The weights are the last ones.

## Data

{data}

## Limits

A language model answers in the manner of what it was trained on, true or not. Nothing here makes its answers
correct or safe.

## Recipe

```yaml
{recipe}```
"""


# Hugging Face's name of what the model does, and a line that does it.
USAGE = {
    "CausalLM": ("text-generation", 'print(model.generate({text}, max_new_tokens=40, sampler="top_p", seed=0))'),
    "Chat": (
        "text-generation",
        'from kerasllm.chat.session import answers\n\nprint(answers(model, [[{{"role": "user", "content": {text}}}]]))',
    ),
    "Seq2SeqLM": ("text2text-generation", "print(model.generate({text}))"),
    "MaskedLM": ("fill-mask", 'print(model.predict_masks({text} + " [MASK]"))'),
    "PairedMaskedLM": ("fill-mask", 'print(model.predict_masks({text} + " [MASK]"))'),
    "ReplacedTokenDetector": ("token-classification", "print(model.detect({text}))"),
    "TextClassifier": ("text-classification", "print(model.classify({text}))"),
    "TextEmbedder": ("sentence-similarity", 'print(model.similarity({text}, ["one text", "another"]))'),
}


def model_card(recipe: Recipe, model, output: Path, mfu_denominator: str | None = None) -> str:
    """The text of a model card.

    Args:
        recipe: what was carried out.
        model: the trained model.
        output: the run directory, with its `metrics.jsonl`.
        mfu_denominator: what `mfu` in the metrics is a share of, in words.
    """
    # The text's name is enough: where it lay on somebody's disk is nobody's business.
    source = recipe.data.source
    source = source if source.startswith(("builtin:", "hf:")) else Path(source).name
    recipe = replace(recipe, data=replace(recipe.data, source=source))
    config, task = model.config, type(model).__name__
    pipeline, usage = USAGE["Chat" if TASKS[recipe.task].conversations else task]
    text = (recipe.training.sample_prompt or "").strip() or "The"
    began = "from random weights" if recipe.start_from is None else f"from {Path(recipe.start_from).name}"
    return CARD.format(
        pipeline=pipeline,
        load=_load(recipe, task, getattr(model, "labels", None), output.name),
        usage=usage.format(text=_quoted(text)),
        name=output.name,
        description=recipe.description,
        sizes=(
            f"{config.num_parameters():,} parameters: {config.num_layers} layers, {config.num_heads} heads, "
            f"width {config.hidden_dim}, context {config.max_sequence_length}, vocabulary "
            f"{config.vocabulary_size} ({model.tokenizer.kind} tokenizer). Trained {began}."
        ),
        figures="\n".join(f"| {name} | {value} |" for name, value in _figures(recipe, output, mfu_denominator)),
        data=f"`{source}`; {recipe.data.validation_fraction:.0%} of it, {_end(task)}, was kept for validation.",
        recipe=recipe.to_yaml(),
    )


def _end(task: str) -> str:
    return "the last rows of each label" if task == "TextClassifier" else "the end"


def _load(recipe: Recipe, task: str, labels: list[str] | None, name: str) -> str:
    """The lines of Python that open the model, or the adapter."""
    if recipe.tuning.method in WHOLE_MODEL:
        return f'model = kerasllm.{task}.from_preset("{name}")  # the path of this directory'
    base = Path(recipe.start_from).name
    options = f", labels={_quoted(labels)}" if labels else ""
    return (
        f'model = kerasllm.{task}.from_preset("{base}"{options})  # the path of the base\n'
        f'model.load_adapter("{name}")  # the path of this directory'
    )


def _quoted(value: str | list[str]) -> str:
    """As Python with double quotes, as the rest of a card has them."""
    return json.dumps(value, ensure_ascii=False)


def _figures(recipe: Recipe, output: Path, mfu_denominator: str | None) -> list[tuple[str, str]]:
    records = read_metrics(output / "metrics.jsonl")
    last = records[-1]
    rows = recipe.data.batch_size * recipe.training.accumulation
    figures = [("steps", f"{last['step']:,}"), ("rows seen", f"{last['step'] * rows:,}")]
    if TASKS[recipe.task].objective is not None:
        figures.append(("tokens seen", f"{last['step'] * rows * recipe.data.sequence_length:,}"))
    for name in ("loss", "val_loss", "val_perplexity", "val_bits_per_byte", "val_accuracy", *FIGURES):
        if last.get(name) is not None:
            figures.append((name, f"{last[name]:.4f}"))
    validated = [record for record in records if record.get("val_loss") is not None]
    if validated:
        best = min(validated, key=lambda record: record["val_loss"])
        figures.append(("lowest val_loss", f"{best['val_loss']:.4f} at step {best['step']:,}"))
    figures.append(("minutes", f"{last['seconds'] / 60:.1f}"))
    if "tokens_per_second" in last:
        figures.append(("tokens per second", f"{last['tokens_per_second']:,.0f}"))
    if "mfu" in last and mfu_denominator:
        figures.append(("MFU", f"{last['mfu']:.1%} of {mfu_denominator}"))
    if "peak_memory_gb" in last:
        figures.append(("peak memory", f"{last['peak_memory_gb']:.2f} GB"))
    return figures
