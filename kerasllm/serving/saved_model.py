"""SavedModels: a model with its cache, its sampling and, where it can be exact, its tokenizer in one TensorFlow graph.

A SavedModel is made by TensorFlow. From JAX and PyTorch the weights go through a saved preset to a process that runs
on TensorFlow (`kerasllm.serving.elsewhere`): one way for both, and the graph is the same one to the last operation,
where jax2tf would give another one, 5e-7 away, and PyTorch has no way of its own.
"""

import tensorflow as tf

from kerasllm.generation.prompts import stop_token_ids_of
from kerasllm.models.inputs import pad_token_id
from kerasllm.serving.tf_generate import answer_sources, continue_prompts
from kerasllm.serving.tf_text import text_signatures

SCALARS = {"max_new_tokens": "int32", "temperature": "float32", "top_k": "int32", "top_p": "float32", "seed": "int32"}


def save_saved_model(model, directory, stop_token_ids=None, text=None) -> None:
    """Writes a SavedModel. The backend is TensorFlow.

    Args:
        model: any model of ours.
        directory: that does not exist yet.
        stop_token_ids: that end a row of `generate`; the model's own when left out.
        text: whether to add the signatures of strings: as far as there are any when left out; see
            `kerasllm.serving.tf_text`.

    Raises:
        ValueError: `text=True` for a model without a tokenizer, or with one that has no exact graph.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in model.weights]
    signatures = signatures_of(model, stop_token_ids)
    of_text, module.tokenizer = text_signatures(model, signatures, text)
    signatures |= of_text
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(directory), signatures, options)


def signatures_of(model, stop_token_ids=None) -> dict:
    """The functions of token ids that a SavedModel of the model has, by name."""
    signatures = {"serving_default": _forward(model)}
    kind = type(model).__name__
    if kind in ("CausalLM", "Seq2SeqLM"):
        signatures["generate"] = _generate(model, stop_token_ids)
    elif kind == "TextEmbedder":
        signatures["embed"] = signatures["serving_default"]
    elif kind in ("TextClassifier", "TokenClassifier"):
        signatures["classify"] = _forward(model, classify=True)
    return signatures


def forward_keys(model) -> list[str]:
    """The inputs of a model's `serving_default`, each (batch, length)."""
    if model.config.num_encoder_layers:
        return ["encoder_token_ids", "encoder_padding_mask", "decoder_token_ids"]
    segments = model.config.num_segments > 1 and "segment_ids" in model.input_keys
    return ["token_ids", "padding_mask", *(["segment_ids"] if segments else [])]


def _forward(model, classify: bool = False):
    """Logits, or vectors; with `classify` probabilities and the likeliest label."""
    name = "embeddings" if type(model).__name__ == "TextEmbedder" else "logits"

    def run(**inputs):
        outputs = model(inputs, training=False)
        if classify:
            alone = getattr(model, "multi_label", False)
            probabilities = tf.nn.sigmoid(outputs) if alone else tf.nn.softmax(outputs)
            return {"probabilities": probabilities, "label_ids": tf.argmax(outputs, axis=-1, output_type="int32")}
        return outputs if isinstance(outputs, dict) else {name: tf.cast(outputs, "float32")}

    return _signature(run, dict.fromkeys(forward_keys(model), ((None, None), "int32")))


def _generate(model, stop_token_ids):
    function = answer_sources if model.config.num_encoder_layers else continue_prompts
    stops, padding = sorted(stop_token_ids_of(model, stop_token_ids)), pad_token_id(model)

    def run(*, token_ids, lengths, max_new_tokens, **settings):
        ids, lengths = function(model, token_ids, lengths, max_new_tokens, settings, stops, padding)
        return {"token_ids": ids, "lengths": lengths}

    arrays = {"token_ids": ((None, None), "int32"), "lengths": ((None,), "int32")}
    return _signature(run, arrays | {name: ((), kind) for name, kind in SCALARS.items()})


def _signature(function, inputs: dict[str, tuple]):
    specs = {name: tf.TensorSpec(shape, kind, name) for name, (shape, kind) in inputs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**specs)
