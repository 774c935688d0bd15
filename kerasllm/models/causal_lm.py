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

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        return causal_rows(self, x, y, sample_weight, batch_size, shuffle)

    def score(self, texts):
        """Log-likelihood, in nats, of each token after the first given those before it.

        Args:
            texts: a string, a list of strings or of token id lists, or an integer array (batch, length).

        Returns:
            a list of float32 arrays, of one number fewer than the text has tokens.
        """
        self.sync_weights()
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

    def generate(self, prompts, max_new_tokens=None, **options):
        """Continues prompts.

        Many prompts share a batch, in which those that end make room for those that wait; each gets the answer that
        it would get alone.

        Args:
            prompts: a string, a list of strings, a list of token ids, or a list of such lists.
            max_new_tokens: tokens to make at the most; or a list, one a prompt. When left out, 100, within the context.
            sampler: "greedy", "temperature", "top_k", "top_p", "min_p", "typical", "top_a", "mirostat"; a
                `kerasllm.Sampler`; or a function `logits, tokens → logits` of NumPy arrays (vocabulary,) and the
                text so far, prompt included, from which the next token is then drawn. Greedy when left out.
            temperature, top_k, top_p, min_p, typical_p, top_a, mirostat, mirostat_eta, repetition_penalty,
                frequency_penalty, presence_penalty, seed: of the sampler, see `kerasllm.Sampler`.
            stop: string or strings at which the answer ends (they are not part of it).
            stop_token_ids: tokens at which it ends; the tokenizer's end token when left out, `[]` for never.
            no_repeat_ngram_size, bad_words, min_new_tokens, logit_bias, suppress_tokens, begin_suppress_tokens,
                forced_bos_token_id, forced_eos_token_id: see `kerasllm.generation.constraints`.
            regex, json_schema, choice: what the answer must be, one of them; see
                `kerasllm.generation.structured`.
            truncation: cut a prompt that is too long to its end, and let the context slide when it is full.
            strip_prompt: return only what is new.
            stream: return an iterator of pieces of the new text (or of new token ids) as they are made.
            n: answers a prompt, with the seeds `seed`, `seed + 1` …, or the best of a beam search; then a list of
                them in place of each.
            details: return `Completion` objects: text, token ids, why it ended, log-probabilities.
            log_probs: with `details`, how many alternatives to list beside each token's log-probability.
            draft: a smaller model whose guesses are checked several at once, or "lookup", to guess from the text
                itself: the same answer, in fewer steps. See `kerasllm.generation.drafts`.
            num_draft_tokens: guesses at once.
            num_beams, length_penalty, early_stopping, num_beam_groups, diversity_penalty, renormalize_logits: beam
                search instead of one greedy answer; see `kerasllm.generation.beam.Beams`.
            penalty_alpha: contrastive search among the `top_k` (4) likeliest tokens; see
                `kerasllm.generation.contrastive`.
            slots: prompts that run at once; as many as memory allows, up to 16, when left out.

        What is left out is as the model's generation_config.json says, if it was read from a directory with one: a
        model whose file samples is sampled, and one whose file has beams is searched, unless `sampler`, `stream`,
        `draft`, `penalty_alpha` or `num_beams` say otherwise. See `kerasllm.generation.defaults`.

        Returns:
            str for str, list for list, token ids for token ids; with the prompt, unless stripped or streamed.

        Raises:
            ValueError: an empty prompt or one beyond the context, an unknown argument, a setting out of range, or two
                that do not go together: before anything is run; or logits that are not numbers.
            RuntimeError: inside a function that is being compiled.

        Example:
        ```python
        model.generate("To be", max_new_tokens=40, sampler="top_p", seed=0)
        ```
        """
        from kerasllm.generation.text import generate

        return generate(self, prompts, max_new_tokens, **options)
