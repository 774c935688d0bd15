"""Models as ONNX files: the forward pass, and a decoder that takes and gives keys and values."""

from pathlib import Path

import numpy as np

from kerasllm.serving.onnx_graph import Graph, Weights
from kerasllm.serving.onnx_layers import Seen, activate, array, embed, head, linear, norm, project, stack

PLACES, PAST = ["batch", "length"], "past_length"


def save_onnx(model, directory) -> list[str]:
    """Writes model.onnx and, of a model that makes tokens, decoder.onnx (and encoder.onnx), with weights.bin.

    Ids and masks are int64; weights and results float32, also of a quantized model, whose weights are made floating
    point again. `padding_mask` is 1 on real tokens. In `decoder.onnx` rows of different lengths are filled up on the
    left: `positions` are each token's own, `padding_mask` is of all tokens so far, and places are counted in it.

    Args:
        model: any model of ours.
        directory: that exists.

    Returns:
        the names of the graphs, without ".onnx".

    Raises:
        ImportError: onnx is not installed.

    Example:
    ```python
    save_onnx(model, "folder")
    onnxruntime.InferenceSession("folder/model.onnx").run(None, {"token_ids": ids, "padding_mask": mask})
    ```
    """
    weights, kind = Weights(directory), type(model).__name__
    graphs = {"model": _seq2seq_forward if model.config.num_encoder_layers else _forward}
    if kind == "Seq2SeqLM":
        graphs |= {"encoder": _encoder, "decoder": decoder}
    elif kind == "CausalLM":
        graphs["decoder"] = decoder
    for name, fill in graphs.items():
        graph = Graph(weights)
        fill(graph, model)
        graph.save(Path(directory) / f"{name}.onnx")
    return [*graphs]


def _forward(g, model) -> None:
    c, network = model.config, model.transformer
    ids, mask = g.take("token_ids", "int64", PLACES), g.take("padding_mask", "int64", PLACES)
    has_segments = c.num_segments > 1 and "segment_ids" in model.input_keys
    segments = g.take("segment_ids", "int64", PLACES) if has_segments else None
    positions = _range(g, ids)
    seen = _seen(g, ids, mask, c.causal, c.sliding_window)
    hidden, _ = stack(g, network, embed(g, network.embedding, ids, positions, segments), seen, positions)
    for name, (value, shape) in _answers(g, model, hidden, mask).items():
        g.give(name, value, "float32", shape)


def _seq2seq_forward(g, model) -> None:
    c, network = model.config, model.transformer
    source, source_mask = _read_source(g, model)
    ids = g.take("decoder_token_ids", "int64", PLACES)
    positions = _range(g, ids)
    pairs = [project(g, block.source_attention, source) for block in network.decoder.blocks]
    x = embed(g, network.embedding, ids, positions)
    seen = _seen(g, ids, None, True, c.sliding_window)
    hidden, _ = stack(g, network.decoder, x, seen, positions, sources=pairs, source_mask=source_mask)
    g.give("logits", head(g, network.embedding, hidden), "float32", [*PLACES, c.vocabulary_size])


def _encoder(g, model) -> None:
    source, _ = _read_source(g, model)
    for i, block in enumerate(model.transformer.decoder.blocks):
        for part, value in zip(("key", "value"), project(g, block.source_attention, source)):
            g.give(f"source.{i}.{part}", value, "float32", _pair_shape(model, "source_length"))


def decoder(g, model, few: bool = False) -> None:
    """Fills a graph that reads new tokens after cached ones; see `save_onnx`.

    Args:
        few: whether logits are of the last tokens only, as many as a further input, `num_logits` (1,), says.
    """
    c, network = model.config, model.transformer
    layers = network.decoder if c.num_encoder_layers else network
    ids = g.take("token_ids", "int64", PLACES)
    mask = g.take("padding_mask", "int64", ["batch", "total_length"])
    by_position = c.positions in ("learned", "sinusoidal", "rotary")
    positions = g.take("positions", "int64", PLACES) if by_position else None
    source = {}
    if c.num_encoder_layers:
        source_mask = g.take("encoder_padding_mask", "int64", ["batch", "source_length"])
        source = {"sources": _pairs(g, model, "source", "source_length"), "source_mask": _as_mask(g, source_mask)}
    past = _pairs(g, model, "past", PAST)
    seen = _seen(g, ids, mask, True, c.sliding_window, past[0][0])
    x = embed(g, network.embedding, ids, positions)
    hidden, present = stack(g, layers, x, seen, positions, past, **source)
    if few:
        hidden = g("Slice", hidden, g("Neg", g.take("num_logits", "int64", [1])), [np.iinfo("int64").max], [1])
    shape = ["batch", "num_logits" if few else "length", c.vocabulary_size]
    g.give("logits", head(g, network.embedding, hidden), "float32", shape)
    for i, pair in enumerate(present):
        for part, value in zip(("key", "value"), pair):
            g.give(f"present.{i}.{part}", value, "float32", _pair_shape(model, "total_length"))


def _read_source(g, model):
    """The encoder's hidden states, and which of them queries see."""
    network = model.transformer
    ids = g.take("encoder_token_ids", "int64", ["batch", "source_length"])
    mask = g.take("encoder_padding_mask", "int64", ["batch", "source_length"])
    positions = _range(g, ids)
    x = embed(g, network.embedding, ids, positions)
    return stack(g, network.encoder, x, _seen(g, ids, mask, False, None), positions)[0], _as_mask(g, mask)


def _answers(g, model, hidden: str, mask: str) -> dict[str, tuple[str, list]]:
    """What `predict` returns, by name: each with its shape."""
    kind, c, embedding = type(model).__name__, model.config, model.transformer.embedding
    tokens = [*PLACES, c.vocabulary_size]
    if kind == "CausalLM":
        return {"logits": (head(g, embedding, hidden), tokens)}
    if kind in ("MaskedLM", "PairedMaskedLM"):
        layer = model.masked_head
        x = norm(g, layer.norm, activate(g, c.activation, linear(g, layer.dense, hidden)))
        logits = g("Add", head(g, embedding, x), array(layer.bias))
        if kind == "MaskedLM":
            return {"logits": (logits, tokens)}
        answer = linear(g, model.next_sentence, _pooled(g, model, hidden, mask, "pooler"))
        return {"masked_lm": (logits, tokens), "next_sentence": (answer, ["batch", 2])}
    if kind == "TextClassifier":
        if model.pooling == "last" and model.pad_token_id is not None:
            raise ValueError(
                "There is no ONNX graph of a classifier that finds its last token by the padding token. Use "
                f"format='tf_saved_model', or make it with pad_token_id=None. Received: {model.pad_token_id}"
            )
        pooled = _pooled(g, model, hidden, mask, model.pooling)
        return {"logits": (linear(g, model.classifier, pooled), ["batch", model.num_labels])}
    if kind == "TokenClassifier":
        return {"logits": (linear(g, model.classifier, hidden), [*PLACES, model.num_labels])}
    if kind == "ReplacedTokenDetector":
        x = activate(g, c.activation, linear(g, model.detector_dense, hidden))
        return {"logits": (g("Squeeze", linear(g, model.detector_logit, x), [-1]), PLACES)}
    if kind == "TextEmbedder":
        x = _pooled(g, model, hidden, mask, model.pooling)
        if model.normalize:
            x = g("Div", x, g("Max", g("ReduceL2", x, [-1]), 1e-12))
        return {"embeddings": (x, ["batch", c.hidden_dim])}
    raise ValueError(f"There is no ONNX graph of a {kind}. Use format='tf_saved_model'.")


def _pooled(g, model, hidden, mask, pooling):
    """(batch, dim) of hidden states, as `kerasllm.layers.pooling`."""
    if pooling in ("first", "pooler"):
        first = g("Gather", hidden, 0, axis=1)
        if pooling == "first":
            return first
        activation, x = getattr(model, "pooler_activation", "tanh"), linear(g, model.transformer.pooler, first)
        return g("Tanh", x) if activation == "tanh" else activate(g, activation, x)
    if pooling == "last":
        places = g("Mul", _range(g, mask), mask)
        last = g("Unsqueeze", g("ReduceMax", places, [1]), [2])
        indices = g("Expand", last, [1, 1, model.config.hidden_dim])
        return g("Squeeze", g("GatherElements", hidden, indices, axis=1), [1])
    weights = g("Cast", mask, to=1)
    weights = g("Div", weights, g("Max", g("ReduceSum", weights, [1]), 1.0))
    return g("ReduceSum", g("Mul", hidden, g("Unsqueeze", weights, [2])), [1], keepdims=0)


def _pairs(g, model, name: str, length: str):
    shape, layers = _pair_shape(model, length), model.config.num_layers
    return [tuple(g.take(f"{name}.{i}.{part}", "float32", shape) for part in ("key", "value")) for i in range(layers)]


def _pair_shape(model, length: str) -> list:
    return ["batch", model.config.num_kv_heads, length, model.config.head_dim]


def _size(g, x: str, axis: int) -> str:
    """A dimension, as a scalar."""
    return g("Gather", g("Shape", x), axis)


def _range(g, ids: str, start=0) -> str:
    """(1, length): places from `start` on."""
    return g("Unsqueeze", g("Range", start, g("Add", _size(g, ids, 1), start), 1), [0])


def _seen(g, ids: str, mask: str | None, causal: bool, window: int | None, past: str | None = None) -> Seen:
    """What tokens see of those before them, and of one another.

    Args:
        mask: int64 (batch, keys), 1 on real tokens.
        past: a cached key, whose places come before those of the ids.
    """
    start = 0 if past is None else _size(g, past, 2)
    rows = g("Transpose", _range(g, ids, start), perm=[1, 0])
    columns = g("Unsqueeze", g("Range", 0, g("Add", _size(g, ids, 1), start), 1), [0])
    distances = g("Sub", columns, rows)
    parts = [g("LessOrEqual", distances, 0)] if causal else []
    if causal and window:
        parts.append(g("Greater", distances, -window))
    if mask is not None:
        parts.append(_as_mask(g, mask))
    visible = parts[0]
    for part in parts[1:]:
        visible = g("And", visible, part)
    # A row of padding sees itself, so that no softmax is over an empty set.
    return Seen(g("Or", visible, g("Equal", distances, 0)), distances)


def _as_mask(g, mask: str) -> str:
    """(batch, keys) of 1 and 0 as bool (batch, 1, 1, 1, keys)."""
    return g("Unsqueeze", g("Cast", mask, to=9), [1, 2, 3])
