"""TokenClassifier: a Transformer that says of each word of a text which kind it is of."""

import keras
import numpy as np
from keras import ops

from kerasllm.layers.inner import inner
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import array_data, is_text, model_inputs, padded_rows, tokenizer_of
from kerasllm.models.labels import Prediction, checked_labels, compile_options, label_ids, make_classifier, predictions
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.marked_text import marked_row, marks_of


@keras.saving.register_keras_serializable("kerasllm")
class TokenClassifier(LanguageModel):
    """Gives each token one of a number of labels: names in a text, parts of speech.

    Of the tokens of a word the first carries the label; the others, special tokens and padding count nothing.

    Args:
        config: a `TransformerConfig` (or its dict) of one stack.
        tokenizer: a `Tokenizer`, for models that read words; left out for token ids only.
        num_labels, labels, dropout, truncation, add_special_tokens: as in `TextClassifier`.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit`, `evaluate` and `predict` (there without labels):
        texts, each a list of words, or a string that is split at white space, with `y`, a list of labels, names or
        numbers, for each text, one for each word;
        an integer array (batch, length), or a dict of `token_ids` and, where needed, `padding_mask`, `segment_ids`,
        `document_ids`, `positions`, with `y` (batch, length) and `sample_weight`; without it all but padding counts;
        any `PyDataset` or `tf.data.Dataset` of such batches.

    Compiled without a loss, it trains on Keras's cross-entropy and reports accuracy. `predict` returns logits,
    (batch, length, num_labels), float32.

    Raises:
        ValueError: a label or token id out of range, an unknown label or input, another number of labels than of
            words, a text longer than the model reads.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.TokenClassifier(config, tokenizer, labels=["noun", "verb"])
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit([["cats", "sleep"]], [["noun", "verb"]])
    [prediction.label for prediction in model.classify("dogs bark")]
    ```

    Reference: Devlin et al. (2018), "BERT", section 5.3.
    """

    input_keys = ("token_ids", "padding_mask", "segment_ids", "document_ids", "positions")
    predicts_tokens = False
    one_text = staticmethod(lambda text: text)  # A list of words is one text here.

    def __init__(
        self,
        config,
        tokenizer=None,
        num_labels=None,
        labels=None,
        dropout=None,
        truncation=False,
        add_special_tokens=False,
        **kwargs,
    ):
        super().__init__(config, tokenizer, **kwargs)
        self.add_special_tokens = add_special_tokens
        self.num_labels, self.labels = checked_labels(num_labels, labels)
        self.dropout = self.config.dropout if dropout is None else dropout
        self.truncation = truncation
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="classifier_dropout")
        self.classifier = make_classifier(self.config, self.num_labels, self.dtype_policy)

    def pool(self, hidden, inputs, training=None):
        return inner(self.dropout_layer, hidden, training=True) if self.dropout and training else hidden

    def logits(self, hidden):
        return ops.cast(self.classifier(hidden), "float32")

    def compile(self, optimizer="adamw", loss=None, **options):
        """As in Keras; without `loss`, cross-entropy and accuracy over the tokens that count."""
        super().compile(optimizer, **compile_options(loss, options))

    @property
    def target_range(self):
        return IdRange("Label", "num_labels", self.num_labels, ignores=True)

    # Words ---------------------------------------------------------------------------------------------------

    def as_inputs(self, x):
        return self._read_words(_split(x))[0] if _is_words(x) else model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is None or not _is_words(x):
            y = None if y is None else label_ids(y, self.labels)
            return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)
        rows = _split(x)
        inputs, places = self._read_words(rows)
        labels = np.zeros(inputs["token_ids"].shape, "int32")
        weights = np.zeros(labels.shape, "float32")
        if len(y) != len(rows):
            raise ValueError(f"Each text needs its labels. Received: {len(rows)} texts, {len(y)} lists of labels")
        for row, (words, of_words) in enumerate(zip(rows, y)):
            if len(words) != len(of_words):
                raise ValueError(
                    f"Each word needs a label. Received: {len(words)} words and {len(of_words)} labels in the text at "
                    f"place {row}"
                )
            ids = label_ids(of_words, self.labels)
            self.check_targets(ids)
            labels[row, places[row]], weights[row, places[row]] = ids[: len(places[row])], 1.0
        if sample_weight is not None:
            weights = weights * np.reshape(sample_weight, (-1, 1))  # of each text
        return array_data(self, inputs, labels, weights, batch_size, shuffle)

    def classify(self, texts, batch_size: int = 32) -> list[Prediction] | list[list[Prediction]]:
        """The labels of the words of texts, with how probable they are.

        Args:
            texts: a string, which is split at white space; or a list of strings or of lists of words.
            batch_size: texts in a batch.

        Returns:
            a list of a `Prediction(label, probability, probabilities)` for each word; for a list of texts, a list of
            such lists. Words that truncation cut off have none.
        """
        inputs, places = self._read_words(_split(texts))
        logits = self.predict(inputs, batch_size=batch_size, verbose=0)
        found = [predictions(row[place], self.labels) for row, place in zip(logits, places)]
        return found[0] if isinstance(texts, str) else found

    def _read_words(self, rows):
        """The arrays of rows of words, and where in its row the first token of each word stands."""
        tokenizer = tokenizer_of(self)
        start, _, end = marks_of(self)
        # All but the first word are read with the space before them, as in a text.
        encoded = iter(tokenizer.encode([" " * (i > 0) + word for words in rows for i, word in enumerate(words)]))
        tokens, places = [], []
        for row, words in enumerate(rows):
            ids, firsts = [], []
            for word in words:
                pieces = next(encoded)
                blank = next((i for i, piece in enumerate(pieces) if tokenizer.decode([piece]).strip()), None)
                if blank is None:
                    pieces, blank = [self._unknown(word)], 0
                firsts.append(len(start) + len(ids) + blank)
                ids += pieces
            marked, _ = marked_row(self, [ids], f"text at place {row}", self.truncation)
            tokens.append(marked)
            places.append([place for place in firsts if place < len(marked) - len(end)])
        return padded_rows(self, tokens), places

    def _unknown(self, word):
        if self.tokenizer.unk_token_id is None:
            raise ValueError(f"A word has no tokens: it is empty or blank. Received: {word!r}")
        return self.tokenizer.unk_token_id

    def get_config(self):
        names = ("num_labels", "labels", "dropout", "truncation", "add_special_tokens")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _is_words(x) -> bool:
    """Whether it is a text, a list of texts, or a list of lists of words."""
    return is_text(x) or (isinstance(x, list | tuple) and len(x) > 0 and all(is_text(row) for row in x))


def _split(x) -> list[list[str]]:
    rows = [x] if isinstance(x, str) else list(x)
    return [row.split() if isinstance(row, str) else list(row) for row in rows]
