"""CausalLM: a Transformer trained to predict the next token."""

import keras
import numpy as np
from keras import ops

from kerasllm.losses import token_log_likelihoods
from kerasllm.models.inputs import causal_rows, is_text, model_inputs
from kerasllm.models.language_model import LanguageModel, no_gradient


@keras.saving.register_keras_serializable("kerasllm")
class CausalLM(LanguageModel):
    """A GPT: predicts each next token of a text.

    Args:
        config: a `TransformerConfig` (or its dict) with `causal=True`.
        tokenizer: a `Tokenizer`, for models that read and write text; left out for token ids only.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit`, `evaluate` and `predict`:
        strings, a list of documents (each is one packed piece of a row, never seeing another);
        an integer array (batch, length): the next tokens are the targets;
        a dict of `token_ids` and, where needed, `padding_mask`, `document_ids`, `positions`, alone or with
        `y` (batch, length) next tokens and `sample_weight` (batch, length);
        a `kerasllm.data.TokenDataset`, any `PyDataset`, or a `tf.data.Dataset` of such batches.

    `predict` returns logits, (batch, length, vocabulary_size).

    Raises:
        ValueError: a token id out of range, an unknown input, a sequence longer than `max_sequence_length`.

    Example:
    ```python
    model = kerasllm.CausalLM(kerasllm.TransformerConfig.from_name("gpt2_tiny", vocabulary_size=256))
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    model.fit(numpy.random.randint(0, 256, (32, 65)), epochs=1)
    ```

    Reference: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
    """

    input_keys = ("token_ids", "padding_mask", "document_ids", "positions")

    def __init__(self, config, tokenizer=None, **kwargs):
        super().__init__(config, tokenizer, **kwargs)
        if not self.config.causal:
            raise ValueError("A CausalLM needs a config with causal=True. Received: causal=False")
        self._engine = None

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        return causal_rows(self, x, y, sample_weight, batch_size, shuffle)

    def score(self, texts):
        """Log-likelihood, in nats, of each token after the first given those before it.

        Args:
            texts: a string, a list of strings or of token id lists, or an integer array (batch, length).

        Returns:
            a list of float32 arrays, of one number fewer than the text has tokens.
        """
        if not is_text(texts):
            texts = list(texts)  # The rows of an array are read like lists.
        inputs = model_inputs(self, texts)
        ids, mask = inputs["token_ids"], inputs["padding_mask"]
        targets = np.roll(ids, -1, axis=1).reshape(-1)
        with no_gradient():
            hidden = self.transformer(training=False, **inputs)
            flat = ops.reshape(hidden, (-1, self.config.hidden_dim))
            scores = token_log_likelihoods(flat, self.transformer.embedding.head_kernel(), targets)
        scores = ops.convert_to_numpy(scores).reshape(ids.shape)
        return [row[: length - 1] for row, length in zip(scores, mask.sum(axis=1))]

    @property
    def engine(self):
        """The engine that makes this model's tokens; its compiled functions are kept."""
        if self._engine is None:
            from kerasllm.generation.engine import Engine

            self._engine = Engine(self)
        return self._engine

    def generate(self, prompts, max_new_tokens=100, **options):
        """Continues prompts.

        Args:
            prompts: a string, a list of strings, a list of token ids, or a list of such lists.
            max_new_tokens: tokens to make at the most.
            sampler: "greedy" (default), "temperature", "top_k", "top_p", or a `kerasllm.Sampler`.
            temperature, top_k, top_p, seed: of the sampler.
            stop: string or strings at which the answer ends (they are not part of it).
            stop_token_ids: tokens at which it ends; the tokenizer's end token when left out, `[]` for never.
            truncation: cut a prompt that is too long to its end, and let the context slide when it is full.
            strip_prompt: return only what is new.
            num_beams, length_penalty, early_stopping: beam search instead of one greedy answer; see
                `kerasllm.generation.beam.Beams`.
            stream: return an iterator of pieces of the new text (or of new token ids) as they are made.

        Returns:
            str for str, list for list, token ids for token ids; with the prompt, unless stripped or streamed.

        Raises:
            ValueError: an empty prompt or one beyond the context, or a setting out of range.

        Example:
        ```python
        model.generate("To be", max_new_tokens=40, sampler="top_p", seed=0)
        ```
        """
        from kerasllm.generation.text import generate

        return generate(self, prompts, max_new_tokens, **options)
