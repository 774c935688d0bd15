"""The README.md of a trained model: what it is, what it was made of, what it reached, how to use it."""

from dataclasses import replace
from pathlib import Path

from kerasllm.training.plots import read_metrics
from kerasllm.training.recipe import Recipe

CARD = """---
library_name: kerasllm
pipeline_tag: text-generation
---
# {name}

{description}

{sizes}

```python
import kerasllm

model = kerasllm.CausalLM.from_preset("{name}")  # the path of this directory
print(model.generate({prompt!r}, max_new_tokens=40, sampler="top_p", seed=0))
```

## Figures

| | |
|---|---|
{figures}

`metrics.jsonl` has them all, `samples.txt` what the model wrote on the way. The weights are the last ones.

## Data

{data}

## Limits

A language model continues text in the manner of what it was trained on, true or not. Nothing here makes its
answers correct or safe.

## Recipe

```yaml
{recipe}```
"""


def model_card(recipe: Recipe, model, output: Path, mfu_denominator: str | None = None) -> str:
    """The text of a model card.

    Args:
        recipe: what was carried out.
        model: the trained `CausalLM`.
        output: the run directory, with its `metrics.jsonl`.
        mfu_denominator: what `mfu` in the metrics is a share of, in words.
    """
    # The text's name is enough: where it lay on somebody's disk is nobody's business.
    source = recipe.data.source
    source = source if source.startswith(("builtin:", "hf:")) else Path(source).name
    recipe = replace(recipe, data=replace(recipe.data, source=source))
    config = model.config
    return CARD.format(
        name=output.name,
        description=recipe.description,
        sizes=(
            f"{config.num_parameters():,} parameters: {config.num_layers} layers, {config.num_heads} heads, "
            f"width {config.hidden_dim}, context {config.max_sequence_length}, vocabulary "
            f"{config.vocabulary_size} ({model.tokenizer.kind} tokenizer). Trained from random weights."
        ),
        prompt=(recipe.training.sample_prompt or "").strip() or "The",
        figures="\n".join(f"| {name} | {value} |" for name, value in _figures(recipe, output, mfu_denominator)),
        data=(f"`{source}`; {recipe.data.validation_fraction:.0%} of it, the end, was kept for validation."),
        recipe=recipe.to_yaml(),
    )


def _figures(recipe: Recipe, output: Path, mfu_denominator: str | None) -> list[tuple[str, str]]:
    records = read_metrics(output / "metrics.jsonl")
    last = records[-1]
    tokens = recipe.data.batch_size * recipe.data.sequence_length * recipe.training.accumulation
    figures = [("steps", f"{last['step']:,}"), ("tokens seen", f"{last['step'] * tokens:,}")]
    for name in ("loss", "val_loss", "val_perplexity", "val_bits_per_byte"):
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
