"""What `kerasllm inspect` does."""

from pathlib import Path

import numpy as np

from kerasllm.compression.command import saved_class
from kerasllm.files import written_aside
from kerasllm.inspection.ablation import ablation_effects
from kerasllm.inspection.lens import logit_lens
from kerasllm.inspection.losses import text_loss
from kerasllm.models.trace import Seq2SeqTrace

PICTURES = ("heads", "lens")
SHOWN = 3  # tokens of a layer


def inspect_directory(directory, text, target=None, output=None, picture="heads", with_ablation=False, adapter=None):
    """Looks at how a saved model reads a text.

    Args:
        directory: of the model.
        text: what is read.
        target: what a model with an encoder writes; its own answer when left out.
        output: a folder, for all pictures, or a `.png` file, for `picture`; none when left out.
        picture: "heads" or "lens".
        with_ablation: whether to measure the loss without each head, too.
        adapter: directory of an adapter to load.

    Returns:
        tables: (title, names of the columns, rows of strings), and the paths that were written.
    """
    cls = saved_class(directory)
    model = cls.from_preset(directory)
    if adapter is not None:
        model.load_adapter(adapter)
    has_encoder = model.config.num_encoder_layers > 0
    if target is not None and not has_encoder:
        raise ValueError(f"`target` is of models that read a source. Received: target={target!r}")
    trace = model.trace(text, target) if has_encoder else model.trace(text)
    kinds = ("decoder", "encoder", "cross") if has_encoder else ("decoder",)
    tables = [_lens_table(model, trace)] if predicts_tokens(model) else []
    tables += [_habits_table(trace, kind) for kind in kinds if kind != "cross"]
    if with_ablation:
        tables += [_ablation_table(model, text, target, stack) for stack in kinds]
    return tables, _pictures(model, trace, kinds, output, picture)


def predicts_tokens(model) -> bool:
    """Whether a logit lens makes sense."""
    return hasattr(model, "predict_masks") or hasattr(model, "generate")


def _lens_table(model, trace):
    lens = logit_lens(model, trace, SHOWN)
    mask = model.tokenizer and model.tokenizer.mask_token_id
    name = None if mask is None else model.tokenizer.id_to_token(mask)
    place = lens.tokens.index(name) if name in lens.tokens else len(lens.tokens) - 1
    rows = []
    for layer, (tokens, probabilities) in enumerate(zip(lens.top_tokens[:, place], lens.top_probabilities[:, place])):
        found = [f"{token!s} {probability:.1%}" for token, probability in zip(tokens, probabilities)]
        rows.append(["embeddings" if layer == 0 else f"layer {layer - 1}", *found])
    what = "in place of" if name in lens.tokens else "after"
    return f"Likeliest tokens {what} {lens.tokens[place]!r}, layer by layer", ["", *"123"[:SHOWN]], rows


def _habits_table(trace, kind):
    """Where each head looks most, on average over the tokens."""
    weights = trace.attention_maps(kind).weights.astype("float32")
    length = weights.shape[-1]

    def mean(offset):
        return np.diagonal(weights, offset, -2, -1).sum(axis=-1) / length

    habits = {
        "itself": mean(0),
        "previous": mean(-1),
        "next": mean(1),
        "first": weights[..., 0].mean(axis=-1),
        "last": weights[..., -1].mean(axis=-1),
    }
    shares, names = np.stack(list(habits.values())), list(habits)
    rows = []
    for layer in range(weights.shape[0]):
        best = shares[:, layer].argmax(axis=0)
        found = [f"{names[i]} {shares[i, layer, head]:.0%}" for head, i in enumerate(best)]
        rows.append([f"layer {layer}", *found])
    where = f" of the {kind}" if isinstance(trace, Seq2SeqTrace) else ""
    return f"Where most attention{where} goes", _head_columns(weights.shape[1]), rows


def _ablation_table(model, text, target, stack):
    whole = text_loss(model, text, target)
    change = ablation_effects(model, text, target, stack) - whole
    rows = [[f"layer {layer}", *(f"{value:+.3f}" for value in row)] for layer, row in enumerate(change)]
    where = f" ({stack})" if model.config.num_encoder_layers else ""
    return f"Loss without each head{where}, against {whole:.3f} nats a token", _head_columns(change.shape[1]), rows


def _head_columns(heads: int) -> list[str]:
    return ["", *(f"head {head}" for head in range(heads))]


def _pictures(model, trace, kinds, output, picture) -> list[Path]:
    if output is None:
        return []
    output = Path(output)
    names = {"heads" if len(kinds) == 1 else f"heads-{kind}": (trace.plot_heads, kind) for kind in kinds}
    if predicts_tokens(model):
        names["lens"] = (trace.plot_logit_lens,)
    if output.suffix.lower() == ".png":
        chosen = picture if picture in names else f"{picture}-{kinds[-1]}"
        if chosen not in names:
            raise ValueError(f"A {type(model).__name__} has no picture {picture!r}. It has: {', '.join(names)}")
        wanted = {output: names[chosen]}
    elif output.exists() and not output.is_dir():
        raise ValueError(f"The output must be a folder or a .png file. Received: {str(output)!r}")
    else:
        wanted = {output / f"{name}.png": call for name, call in names.items()}
    for path, (plot, *arguments) in wanted.items():
        with written_aside(path) as aside:
            plot(*arguments).savefig(aside, format="png", dpi=110)
    return list(wanted)
