"""Models that read both ways, behind the server: vectors, labels, and what stands in the place of a mask."""

import base64
from collections.abc import Callable

import numpy as np
from keras import ops

from kerasllm.generation.compiled import compiled
from kerasllm.generation.slots import SMALLEST_BUCKET, bucket
from kerasllm.models.inputs import pad_token_id
from kerasllm.models.labels import predictions
from kerasllm.models.masked_lm import MaskedLM
from kerasllm.models.text_classifier import TextClassifier
from kerasllm.models.text_embedder import TextEmbedder
from kerasllm.serving.errors import Refused

MOST_ROWS = 32  # that one call computes


class Reader:
    """Serves a `TextEmbedder`, a `TextClassifier` or a `MaskedLM`, compiled once a power of two of rows and length.

    Args:
        model: with a tokenizer.
        alive: called before each of a request's computations.
    """

    def __init__(self, model, alive: Callable[[], None] = lambda: None):
        self.model, self.alive = model, alive
        self.answer = {TextEmbedder: self.embed, TextClassifier: self.classify, MaskedLM: self.fill_mask}[type(model)]
        self._call = compiled(model, lambda inputs: model.call(inputs, training=False))
        self._fill = compiled(model, self._at_places)

    @property
    def info(self) -> dict:
        return {"limit": self.model.config.max_sequence_length, "adapters": []}

    def embed(self, inputs: list, dimensions: int | None = None, **_) -> dict:
        """Vectors of texts or of lists of token ids, as base64 of little-endian float32."""
        width = self.model.config.hidden_dim
        if dimensions not in (None, width):
            raise Refused(
                f"The model's vectors have {width} dimensions. Received: dimensions={dimensions}", "dimensions"
            )
        vectors, count = self._rows(inputs)
        return {
            "vectors": [base64.b64encode(np.asarray(v, "<f4").tobytes()).decode() for v in vectors],
            "tokens": count,
        }

    def classify(self, inputs: list, **_) -> dict:
        """The probabilities of the labels of texts or pairs of texts, the most probable first."""
        logits, count = self._rows(inputs)
        found = predictions(logits, self.model.labels, self.model.multi_label)
        return {
            "answers": [
                {
                    "label": one.label,
                    "probability": one.probability,
                    "probabilities": {str(label): probability for label, probability in one.probabilities.items()},
                }
                for one in found
            ],
            "tokens": count,
        }

    def fill_mask(self, inputs: list, top_k: int = 5, **_) -> dict:
        """For each text and each of its masks, the likeliest tokens."""
        tokenizer, answers, count = self.model.tokenizer, [], 0
        if tokenizer.mask_token_id is None:
            raise Refused("The model's tokenizer has no mask token, so there is nothing to fill.", "model")
        if top_k > tokenizer.vocabulary_size:
            raise Refused(f"There are {tokenizer.vocabulary_size} tokens. Received: top_k={top_k}", "top_k")
        for text in inputs:
            arrays, size = self._arrays([text])
            places = np.flatnonzero(arrays["token_ids"][0] == tokenizer.mask_token_id)
            if not len(places):
                mask = tokenizer.id_to_token(tokenizer.mask_token_id)
                raise Refused(f"There is no {mask} in the text: write it where a token is to be found.", "input")
            padded = np.zeros(bucket(len(places), arrays["token_ids"].shape[1]), "int32")
            padded[: len(places)] = places
            logits = ops.convert_to_numpy(self._fill(arrays, padded))[: len(places), : tokenizer.vocabulary_size]
            found = predictions(logits, None)
            answers.append([self._best(one.probabilities, top_k) for one in found])
            count += size
        return {"answers": answers, "tokens": count}

    def _best(self, probabilities, top_k) -> list[dict]:
        best = list(probabilities.items())[:top_k]
        return [{"token": self.model.tokenizer.id_to_token(i), "token_id": i, "probability": p} for i, p in best]

    def _at_places(self, inputs, places):
        """Logits of one row at some of its places."""
        hidden = self.model.transformer(training=False, **inputs)
        return ops.cast(self.model.token_logits(ops.take(hidden[0], places, axis=0)), "float32")

    def _rows(self, rows: list) -> tuple[np.ndarray, int]:
        """What the model answers to texts, pairs or token ids, and how many tokens it read."""
        outputs, count = [], 0
        for start in range(0, len(rows), MOST_ROWS):
            part = rows[start : start + MOST_ROWS]
            arrays, size = self._arrays([tuple(row) if _is_pair(row) else row for row in part])
            outputs.append(ops.convert_to_numpy(self._call(arrays))[: len(part)])
            count += size
        return np.concatenate(outputs), count

    def _arrays(self, rows: list) -> tuple[dict, int]:
        """The model's inputs, filled up to a power of two of rows and of tokens, and how many tokens are real."""
        self.alive()
        inputs = self.model.as_inputs(rows)
        size, length = inputs["token_ids"].shape
        more = bucket(size, MOST_ROWS) - size
        width = bucket(length, self.model.config.max_sequence_length, SMALLEST_BUCKET) - length
        fills = {"token_ids": pad_token_id(self.model)}
        count = int(inputs["padding_mask"].sum())
        inputs = {
            key: np.pad(np.pad(x, ((0, 0), (0, width)), constant_values=fills.get(key, 0)), ((0, more), (0, 0)), "edge")
            for key, x in inputs.items()
        }
        return inputs, count


def _is_pair(row) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row)
