"""The README.md of an export: that of the model, with what was made of it and how it is used."""

from kerasllm.serving.use import USE

SIZES = """# {name}

A {task} of {parameters:,} parameters: {layers} layers, {heads} heads, width {dim}, context {length}, vocabulary
{vocabulary}.

## Data, recipe and figures

None came with the model: it was exported from memory or from a directory without a README.md. Whoever trained it knows
what on, how, and what it reached.

## Limits

A language model answers in the manner of what it was trained on, true or not. Nothing here makes its answers
correct or safe.
"""
LICENCE = """
## Licence

None is stated here. The model's is that of whoever trained it, as far as the data and the base allow.
"""


def export_card(model, name: str, format: str, card: str = "") -> str:
    """The text of a README.md.

    Args:
        model: that was exported.
        name: of the export.
        format: of `kerasllm.serving.export.FORMATS`.
        card: the model's own README.md; one of its sizes alone when empty.
    """
    c = model.config
    if not card.strip():
        card = SIZES.format(
            name=name,
            task=type(model).__name__,
            parameters=c.num_parameters(),
            layers=c.num_layers,
            heads=c.num_heads,
            dim=c.hidden_dim,
            length=c.max_sequence_length,
            vocabulary=c.vocabulary_size,
        )
    licence = "" if "license:" in card or "## Licence" in card or "## License" in card else LICENCE
    return f"{card.rstrip()}\n\n## Export: {format}\n\n{USE[format]}{licence}"
