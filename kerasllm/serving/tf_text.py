"""The signatures of a SavedModel that take and give strings, with the tokenizer inside the graph."""

import tensorflow as tf

from kerasllm.models.inputs import pad_token_id, tokenizer_of
from kerasllm.models.marked_text import marks_of, row_limit
from kerasllm.serving.tf_tokenizers import GraphTokenizer, graph_tokenizer

TASKS = {"CausalLM": "generate", "Seq2SeqLM": "generate", "TextClassifier": "classify", "TextEmbedder": "embed"}


def text_signatures(model, signatures: dict, wanted: bool | None) -> tuple[dict, GraphTokenizer | None]:
    """`generate_text`, `classify_text` or `embed_text`, with the tokenizer that they read with.

    Args:
        model: any model of ours.
        signatures: its functions of token ids, by name.
        wanted: `False` for none, `None` for what there can be, `True` for an error where there can be none.

    Raises:
        ValueError: if `wanted`, why there is none: the model has no tokenizer, or one without an exact graph, or its
            task has no signature of strings.
    """
    task = TASKS.get(type(model).__name__)
    if wanted is False or (wanted is None and (task is None or model.tokenizer is None)):
        return {}, None
    if task is None:
        raise ValueError(
            f"Signatures of strings are of {', '.join(TASKS)}. Received: a {type(model).__name__}. "
            "Export with text=False."
        )
    tokenizer_of(model)
    try:
        tokenizer = graph_tokenizer(model.tokenizer)
        if task == "generate" and not tokenizer.decodes:
            raise ValueError(
                f"There is no exact TensorFlow graph of how a {tokenizer.kind} tokenizer makes text of ids. "
                "Export with text=False, and make text of ids outside of the graph."
            )
    except ValueError:
        if wanted:
            raise
        return {}, None
    make = _generate_text if task == "generate" else _label_text
    return {f"{task}_text": make(model, tokenizer, signatures[task])}, tokenizer


def _generate_text(model, tokenizer, generate):
    """`text` → `text`, as `model.generate`: the prompt with what follows it, or what is written for a source."""
    has_encoder = model.config.num_encoder_layers > 0
    end = model.tokenizer.end_token_id
    start = [] if has_encoder else model.tokenizer.text_start_ids

    def run(*, text, **scalars):
        ids = tokenizer.encode(text)
        if start:
            ids = _begun(ids, start)
        ends = tf.fill((tf.shape(text)[0], 1), 0 if end is None else end)
        if end is not None and has_encoder:
            ids = tf.concat([ids, ends], axis=1)
        elif end is not None:  # An empty prompt is the token between documents.
            empty = tf.cast(ids.row_lengths() == 0, "int64")
            ids = tf.concat([ids, tf.RaggedTensor.from_tensor(ends, lengths=empty)], axis=1)
        lengths = tf.cast(ids.row_lengths(), "int32")
        made = generate(token_ids=ids.to_tensor(pad_token_id(model)), lengths=lengths, **scalars)
        columns = tf.range(tf.shape(made["token_ids"])[1])[None, :]
        starts = tf.zeros_like(lengths) if has_encoder else lengths
        is_new = (columns >= starts[:, None]) & (columns < made["lengths"][:, None])
        new = tokenizer.decode(tf.ragged.boolean_mask(made["token_ids"], is_new))
        return {"text": new if has_encoder else tf.strings.join([text, new])}

    specs = {name: spec for name, spec in _inputs(generate).items() if spec.shape.rank == 0}
    return _signature(run, specs)


def _begun(ids, start):
    """Rows of ids after the start token, as `Tokenizer.encode_texts`: one that is there already is not doubled."""
    padded = ids.to_tensor(-1)
    has = tf.pad(padded, [[0, 0], [0, 1]], constant_values=-1)[:, 0] == start[0]
    starts = tf.fill((tf.shape(padded)[0], 1), tf.cast(start[0], ids.dtype))
    return tf.concat([tf.RaggedTensor.from_tensor(starts, lengths=tf.cast(~has, "int64")), ids], axis=1)


def _label_text(model, tokenizer, function):
    """`text` → what the function of ids gives, and the `label`s' names where they have some."""
    start, _, end = marks_of(model)
    limit = row_limit(model)

    def run(*, text):
        ids = tokenizer.encode(text)
        if model.truncation:
            ids = ids[:, : limit - len(start) - len(end)]
        rows = tf.shape(text)[0]
        ids = tf.concat([tf.tile([start], [rows, 1]), ids, tf.tile([end], [rows, 1])], axis=1) if start or end else ids
        mask = tf.ones_like(ids).to_tensor()
        size = tf.shape(mask)[1]
        tf.debugging.Assert(
            (size <= limit) & tf.reduce_all(ids.row_lengths() > 0), [f"A text is empty or over {limit} tokens"]
        )
        arrays = {
            "token_ids": ids.to_tensor(pad_token_id(model)),
            "padding_mask": mask,
            "segment_ids": tf.zeros_like(mask),
        }
        answer = function(**{name: arrays[name] for name in _inputs(function)})
        labels = getattr(model, "labels", None)
        return answer | ({"label": tf.gather(tf.constant(labels), answer["label_ids"])} if labels else {})

    return _signature(run, {})


def _inputs(function) -> dict:
    return function.structured_input_signature[1]


def _signature(function, specs: dict):
    specs = {"text": tf.TensorSpec((None,), "string", "text"), **specs}
    return tf.function(function, autograph=False).get_concrete_function(**specs)
