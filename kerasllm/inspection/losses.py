"""How well a model knows one text."""

import numpy as np
from keras import ops

from kerasllm.models.inputs import tokenizer_of
from kerasllm.models.language_model import no_gradient


def text_loss(model, text: str, target: str | None = None) -> float:
    """The mean −log p of a text's tokens, in nats.

    Of a `CausalLM` it is that of each token given those before it; of a `Seq2SeqLM` that of the target, given the text
    as its source; of a `MaskedLM` that of each token when it alone is masked (which is as many rows as tokens).

    Args:
        model: a `CausalLM`, `MaskedLM` or `Seq2SeqLM`.
        text: what is read.
        target: of a `Seq2SeqLM` alone; what it writes when left out.

    Raises:
        ValueError: another model, no tokenizer, or a text that is empty, too short or too long.

    Example:
    ```python
    text_loss(model, "The cat sat on the mat.")
    ```

    Reference: Salazar et al. (2019), "Masked Language Model Scoring", for masked models.
    """
    tokenizer_of(model)
    if not isinstance(text, str) or not text:
        raise ValueError(f"`text` must be a text that is not empty. Received: text={text!r}")
    if target is not None and not model.config.num_encoder_layers:
        raise ValueError(f"`target` is of models that read a source. Received: target={target!r}")
    if hasattr(model, "predict_masks"):
        scores = _masked_scores(model, text)
    elif not hasattr(model, "score"):
        raise ValueError(f"A {type(model).__name__} gives no text a loss. Use a CausalLM, a MaskedLM or a Seq2SeqLM.")
    elif model.config.num_encoder_layers:
        scores = model.score([text], [model.generate(text) if target is None else target])[0]
    else:
        scores = model.score([text])[0]
    if len(scores) == 0:
        raise ValueError(f"A text of one token has no next token to predict. Give a longer one. Received: {text!r}")
    return float(-np.mean(scores))


def _masked_scores(model, text: str) -> np.ndarray:
    tokenizer = model.tokenizer
    if tokenizer.mask_token_id is None:
        raise ValueError('The tokenizer has no mask token. Train it with special_tokens=[..., "[MASK]"].')
    inputs = model.as_inputs([text])
    ids = inputs["token_ids"][0]
    special = {tokenizer.token_to_id(token) for token in tokenizer.special_tokens}
    places = np.array([place for place, i in enumerate(ids) if int(i) not in special], "int32")
    if len(places) == 0:
        raise ValueError(f"There is no token to mask in the text. Received: {text!r}")
    inputs = {key: np.repeat(value, len(places), axis=0) for key, value in inputs.items()}
    rows = np.arange(len(places))
    inputs["token_ids"][rows, places] = tokenizer.mask_token_id
    with no_gradient():
        hidden = model.transformer(training=False, **inputs)
        hidden = ops.take(ops.reshape(hidden, (-1, model.config.hidden_dim)), rows * len(ids) + places, axis=0)
        logits = ops.cast(model.token_logits(hidden)[:, : tokenizer.vocabulary_size], "float32")
        log_p = ops.convert_to_numpy(ops.log_softmax(logits, axis=-1))
    return log_p[rows, ids[places]]
