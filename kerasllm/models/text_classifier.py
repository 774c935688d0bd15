"""TextClassifier: a Transformer that says which kind a text is of, or how two texts are related."""

import keras
from keras import ops

from kerasllm.layers.inner import inner
from kerasllm.layers.pooling import check_pooling, pool
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import array_data, model_inputs
from kerasllm.models.labels import Prediction, checked_labels, compile_options, label_ids, make_classifier, predictions
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.marked_text import is_text_rows, marked_inputs


@keras.saving.register_keras_serializable("kerasllm")
class TextClassifier(LanguageModel):
    """Gives a text, or a pair of texts, one of a number of labels.

    A text is read as `[CLS] text [SEP]`, a pair as `[CLS] text [SEP] other [SEP]` with segments, with the special
    tokens that the tokenizer has.

    Args:
        config: a `TransformerConfig` (or its dict) of one stack, causal or not.
        tokenizer: a `Tokenizer`, for models that read text; left out for token ids only.
        num_labels: how many labels there are; as many as `labels`, or 2.
        labels: their names, in the order of their numbers.
        pooling: what of the hidden states is classified: "pooler" (the config's), the "first" token's, their "mean"
            or the "last" token's. The pooler where the config has one, else the first; the last if it is causal.
        dropout: rate on what is classified; the config's when left out.
        truncation: cut texts that are longer than the model reads, instead of raising.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit`, `evaluate` and `predict` (there without labels):
        texts, a list of strings or of (text, other) tuples, with `y`, a list of labels, names or numbers;
        an integer array (batch, length), or a dict of `token_ids` and, where needed, `padding_mask`, `segment_ids`,
        with `y` (batch,);
        any `PyDataset` or `tf.data.Dataset` of such batches; a `tf.data.Dataset` of (text, label).

    Compiled without a loss, it trains on Keras's cross-entropy and reports accuracy. `predict` returns logits,
    (batch, num_labels), float32.

    Raises:
        ValueError: a label or token id out of range, an unknown label or input, a text longer than the model reads.

    Example:
    ```python
    config = kerasllm.TransformerConfig.from_name("bert_tiny", vocabulary_size=tokenizer.vocabulary_size)
    model = kerasllm.TextClassifier(config, tokenizer, labels=["sad", "glad"])
    model.compile(keras.optimizers.AdamW(1e-3))
    model.fit(["what a day", "alas"], ["glad", "sad"])
    model.classify("what a morning").label
    ```

    Reference: Devlin et al. (2018), "BERT", section 4.1; Radford et al. (2018) for the last token of a causal model.
    """

    input_keys = ("token_ids", "padding_mask", "segment_ids")
    predicts_tokens = False
    target_axes = 1

    def __init__(
        self,
        config,
        tokenizer=None,
        num_labels=None,
        labels=None,
        pooling=None,
        dropout=None,
        truncation=False,
        **kwargs,
    ):
        super().__init__(config, tokenizer, **kwargs)
        self.num_labels, self.labels = checked_labels(num_labels, labels)
        self.pooling = check_pooling(pooling, "last" if self.config.causal else "first", self.config.pooler)
        self.dropout = self.config.dropout if dropout is None else dropout
        self.truncation = truncation
        if self.pooling == "pooler":
            self.transformer.pooler.trainable = True
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="classifier_dropout")
        self.classifier = make_classifier(self.config, self.num_labels, self.dtype_policy)

    def pool(self, hidden, inputs, training=None):
        if self.pooling == "pooler":
            pooled = self.transformer.pooled(hidden)
        else:
            pooled = pool(hidden, inputs.get("padding_mask"), self.pooling)
        return inner(self.dropout_layer, pooled, training=True) if self.dropout and training else pooled

    def logits(self, hidden):
        return ops.cast(self.classifier(hidden), "float32")

    def compile(self, optimizer="adamw", loss=None, **options):
        """As in Keras; without `loss`, cross-entropy and accuracy."""
        super().compile(optimizer, **compile_options(loss, options))

    @property
    def target_range(self):
        return IdRange("Label", "num_labels", self.num_labels, ignores=True)

    def as_inputs(self, x):
        return marked_inputs(self, x, self.truncation) if is_text_rows(x) else model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        y = None if y is None else label_ids(y, self.labels)
        return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)

    def classify(self, texts, batch_size: int = 32) -> Prediction | list[Prediction]:
        """The labels of texts, with how probable they are.

        Args:
            texts: a string or a (text, other) tuple; or a list of such, or arrays as `predict` takes them.
            batch_size: rows in a batch.

        Returns:
            a `Prediction(label, probability, probabilities)`; a list of them for a list.
        """
        found = predictions(self.predict(texts, batch_size=batch_size, verbose=0), self.labels)
        return found[0] if isinstance(texts, str | tuple) else found

    def get_config(self):
        names = ("num_labels", "labels", "pooling", "dropout", "truncation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
