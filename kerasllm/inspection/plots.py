"""What a trace shows, as pictures: `plot_heads()`, `plot_attention(layer, head)` and `plot_logit_lens()` of a trace.

Attention is not an explanation: it shows where a head looked, and not what came of it.
"""

import math
from collections.abc import Iterable

import numpy as np

from kerasllm.inspection.lens import logit_lens
from kerasllm.models.trace import Seq2SeqTrace, Trace

try:
    # Not pyplot: that keeps global state, and would look for a screen.
    from matplotlib.figure import Figure
except ImportError:
    raise ImportError("Plots need matplotlib. Install it with: pip install 'kerasllm[plot]'") from None

COLORS = "Blues"
LARGEST = 16  # inches of a side
MOST_LABELS = 64  # of tokens on a side: of more, every second one has a label, or every third


class Picture(Figure):
    """A figure that a notebook shows as it is returned."""

    def _repr_png_(self) -> bytes:
        import io

        file = io.BytesIO()
        self.savefig(file, format="png", dpi=100)
        return file.getvalue()


def plot_heads(trace: Trace | Seq2SeqTrace, kind: str = "decoder") -> Figure:
    """A small map for each head: a row of maps a layer, a column a head; in each map, queries go down and keys right.

    Args:
        trace: of a text.
        kind: "decoder", "encoder" or "cross"; a model of one stack has one kind.

    Returns:
        a matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: another kind.

    Example:
    ```python
    model.trace("The cat sat").plot_heads().savefig("heads.png")
    ```
    """
    weights = trace.attention_maps(kind).weights.astype("float32")
    layers, heads, queries, keys = weights.shape
    gap = max(1, max(queries, keys) // 16)
    # One picture of them all, with gaps of NaN between: hundreds of axes would take seconds.
    padded = np.pad(weights, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
    mosaic = padded.transpose(0, 2, 1, 3).reshape(layers * (queries + gap), heads * (keys + gap))[:-gap, :-gap]
    side = 1.2 * max(layers, heads)
    figure = Picture(
        figsize=_size(mosaic.shape[1], mosaic.shape[0], min(LARGEST, max(4.0, side))), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(mosaic, cmap=COLORS, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([(keys - 1) / 2 + i * (keys + gap) for i in range(heads)], [str(i) for i in range(heads)])
    axes.set_yticks([(queries - 1) / 2 + i * (queries + gap) for i in range(layers)], [str(i) for i in range(layers)])
    axes.set(xlabel="head", ylabel="layer", title=f"Attention, {_name(trace, kind)}")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="weight")
    return figure


def plot_attention(trace: Trace | Seq2SeqTrace, layer: int, head: int, kind: str = "decoder") -> Figure:
    """The weights of one head: each row is a token that looks, each column one that is looked at.

    Args:
        trace, kind: see `plot_heads`.
        layer, head: from 0.

    Returns:
        a matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a layer or head that there is not, or another kind.
    """
    weights, queries, keys = trace.attention_maps(kind)
    for name, value, count in (("layer", layer, weights.shape[0]), ("head", head, weights.shape[1])):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < count:
            raise ValueError(f"There is no {name} {value!r}: they are numbered from 0 to {count - 1}.")
    figure = Picture(figsize=_size(len(keys), len(queries), _side(max(len(keys), len(queries)))), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(weights[layer, head].astype("float32"), cmap=COLORS, vmin=0, vmax=1, interpolation="nearest")
    _name_ticks(axes, map(_shown, keys), map(_shown, queries))
    axes.set(xlabel="looked at", ylabel="looks", title=f"Layer {layer}, head {head}, {_name(trace, kind)}")
    figure.colorbar(image, ax=axes, shrink=0.6, label="weight")
    return figure


def plot_logit_lens(trace: Trace | Seq2SeqTrace) -> Figure:
    """What each layer would answer at each place, and how sure it would be; see `kerasllm.inspection.logit_lens`.

    Args:
        trace: of a text, by a model that predicts tokens. The head is the model's as it is now.

    Returns:
        a matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the model predicts no tokens.
    """
    lens = logit_lens(trace.model, trace, top=1)
    tops, sure = lens.top_tokens[..., 0][::-1], lens.top_probabilities[..., 0][::-1]  # The last layer is on top.
    layers, length = tops.shape
    figure = Picture(figsize=(min(2 * LARGEST, 2 + 0.8 * length), 1.6 + 0.36 * layers), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(sure, cmap=COLORS, vmin=0, vmax=1, aspect="auto")
    for (row, column), token in np.ndenumerate(tops):
        color = "white" if sure[row, column] > 0.6 else "black"
        axes.text(column, row, _shown(token), ha="center", va="center", size=8, color=color, parse_math=False)
    _name_ticks(axes, map(_shown, lens.tokens), [*(f"layer {i}" for i in reversed(range(layers - 1))), "embeddings"])
    axes.set(xlabel="read", title="Logit lens: the likeliest token after each layer")
    figure.colorbar(image, ax=axes, label="probability")
    return figure


def _name(trace, kind: str) -> str:
    if isinstance(trace, Trace):
        return "from each token (down) to those it sees (right)"
    return {"cross": "from target to source"}.get(kind, f"in the {kind}")


def _name_ticks(axes, columns: Iterable[str], rows: Iterable[str]) -> None:
    for axis, names in ((axes.xaxis, list(columns)), (axes.yaxis, list(rows))):
        every = math.ceil(len(names) / MOST_LABELS)
        rotation = 90 if axis is axes.xaxis else 0
        axis.set_ticks(range(0, len(names), every), names[::every], rotation=rotation, size=9, parse_math=False)
    axes.tick_params(length=0)


def _shown(token: str) -> str:
    """A token as a label: white space can be seen, and long ones are cut."""
    token = token.replace("\n", "\\n").replace("\t", "\\t").replace(" ", "␣")
    return token if len(token) <= 12 else token[:11] + "…"


def _side(count: int) -> float:
    return min(LARGEST, max(3.5, 0.24 * count))


def _size(width: int, height: int, side: float) -> tuple[float, float]:
    """(width, height) in inches of a picture whose longer side is `side`, with room for labels."""
    longer = max(width, height)
    return max(2.5, side * width / longer) + 1.8, max(2.0, side * height / longer) + 1.2
