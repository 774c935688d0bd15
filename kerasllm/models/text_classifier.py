"""TextClassifier: a Transformer that says which kind a text is of, or how two texts are related."""

import keras
from keras import ops

from kerasllm.layers.feed_forward import ACTIVATIONS
from kerasllm.layers.inner import inner
from kerasllm.layers.pooling import check_pooling, pool
from kerasllm.models.id_range import IdRange
from kerasllm.models.inputs import array_data, model_inputs
from kerasllm.models.labels import (
    Prediction,
    checked_labels,
    compile_options,
    label_ids,
    label_sets,
    make_classifier,
    predictions,
)
from kerasllm.models.language_model import LanguageModel
from kerasllm.models.marked_text import is_text_rows, marked_inputs

POOLER_ACTIVATIONS = {"tanh": ops.tanh, "gelu": ACTIVATIONS["gelu"]}


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
        multi_label: whether a text can have several labels, or none: each is probable for itself.
        use_bias: whether the classifier has a bias.
        pooler_activation: "tanh", or "gelu" (ELECTRA), of what the pooler makes.
        pad_token_id: for pooling "last", the token that is padding wherever it stands, as transformers' decoders
            find the last token; by the padding mask when left out.
        add_special_tokens: put texts between the special tokens of the tokenizer's own template, as transformers
            does, and not between its start and its end token.
        dtype: a Keras dtype policy, such as "mixed_bfloat16".

    Data, in `fit`, `evaluate` and `predict` (there without labels):
        texts, a list of strings or of (text, other) tuples, with `y`, a list of labels, names or numbers (with
            `multi_label` a list of lists of them, or an array (batch, num_labels) of 0 and 1);
        an integer array (batch, length), or a dict of `token_ids` and, where needed, `padding_mask`, `segment_ids`,
        with `y` (batch,);
        any `PyDataset` or `tf.data.Dataset` of such batches; a `tf.data.Dataset` of (text, label).

    Compiled without a loss, it trains on Keras's cross-entropy (binary, with `multi_label`) and reports accuracy.
    `predict` returns logits, (batch, num_labels), float32.

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
        multi_label=False,
        use_bias=True,
        pooler_activation="tanh",
        pad_token_id=None,
        add_special_tokens=False,
        **kwargs,
    ):
        super().__init__(config, tokenizer, **kwargs)
        if pooler_activation not in POOLER_ACTIVATIONS:
            raise ValueError(
                f"`pooler_activation` must be one of {', '.join(POOLER_ACTIVATIONS)}. Received: "
                f"pooler_activation={pooler_activation!r}"
            )
        if pad_token_id is not None:
            self.check_token_ids([pad_token_id])
        self.multi_label, self.use_bias, self.add_special_tokens = multi_label, use_bias, add_special_tokens
        self.pooler_activation, self.pad_token_id = pooler_activation, pad_token_id
        self.num_labels, self.labels = checked_labels(num_labels, labels)
        self.pooling = check_pooling(pooling, "last" if self.config.causal else "first", self.config.pooler)
        self.dropout = self.config.dropout if dropout is None else dropout
        self.truncation = truncation
        if self.pooling == "pooler":
            self.transformer.pooler.trainable = True
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="classifier_dropout")
        self.classifier = make_classifier(self.config, self.num_labels, self.dtype_policy, use_bias)

    def pool(self, hidden, inputs, training=None):
        mask = inputs.get("padding_mask")
        if self.pad_token_id is not None and self.pooling == "last":
            mask = ops.not_equal(inputs["token_ids"], self.pad_token_id)
        if self.pooling == "pooler":
            pooled = self.transformer.pooled(hidden, POOLER_ACTIVATIONS[self.pooler_activation])
        else:
            pooled = pool(hidden, mask, self.pooling)
        return inner(self.dropout_layer, pooled, training=True) if self.dropout and training else pooled

    def logits(self, hidden):
        return ops.cast(self.classifier(hidden), "float32")

    def compile(self, optimizer="adamw", loss=None, **options):
        """As in Keras; without `loss`, cross-entropy and accuracy."""
        super().compile(optimizer, **compile_options(loss, options, self.multi_label))

    @property
    def target_range(self):
        if self.multi_label:
            return IdRange("Label of a row of 0 and 1", "number of values", 2)
        return IdRange("Label", "num_labels", self.num_labels, ignores=True)

    def _only_counted(self, x, y, y_pred, sample_weight):
        if self.multi_label:  # All labels of a row count, and Keras weighs rows by itself.
            return y, y_pred, sample_weight
        return super()._only_counted(x, y, y_pred, sample_weight)

    def as_inputs(self, x):
        return marked_inputs(self, x, self.truncation) if is_text_rows(x) else model_inputs(self, x)

    def row_data(self, x, y, sample_weight, batch_size, shuffle):
        if y is not None:
            y = label_sets(y, self.num_labels, self.labels) if self.multi_label else label_ids(y, self.labels)
        return array_data(self, self.as_inputs(x), y, sample_weight, batch_size, shuffle)

    def classify(self, texts, batch_size: int = 32) -> Prediction | list[Prediction]:
        """The labels of texts, with how probable they are.

        Args:
            texts: a string or a (text, other) tuple; or a list of such, or arrays as `predict` takes them.
            batch_size: rows in a batch.

        Returns:
            a `Prediction(label, probability, probabilities)`; a list of them for a list. With `multi_label` the
            label is the most probable one, and each of the `probabilities` stands for itself.
        """
        logits = self.predict(texts, batch_size=batch_size, verbose=0)
        found = predictions(logits, self.labels, self.multi_label)
        return found[0] if isinstance(texts, str | tuple) else found

    def get_config(self):
        names = ("num_labels", "labels", "pooling", "dropout", "truncation", "multi_label", "use_bias")
        names += ("pooler_activation", "pad_token_id", "add_special_tokens")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
