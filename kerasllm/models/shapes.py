"""The shapes of batches that XLA has compiled a step for."""

import warnings

import keras

# A last batch that is smaller, and batches with and without weights, are no reason to warn.
FEW_SHAPES = 4


class Shapes:
    """Warns once when XLA has to compile a step over and over because rows differ in length.

    `note` is called where a step is traced, so it costs nothing when a compiled step runs.
    """

    def __init__(self):
        self.seen, self.has_warned = set(), False

    def note(self, data) -> None:
        """Remembers the shapes of a batch; on TensorFlow, which traces once, a length is unknown where it varies."""
        if self.has_warned:
            return
        shapes = tuple(tuple(x.shape) for x in keras.tree.flatten(data) if hasattr(x, "shape"))
        self.seen.add(shapes)
        if len(self.seen) > FEW_SHAPES or any(None in shape[1:] for shape in shapes):
            self.has_warned = True
            warnings.warn(
                "The rows of the batches differ in length, and XLA compiles the training step anew for each length. "
                "Give `fit` the texts, lists or arrays themselves, which it pads, or pad all batches to one length "
                "(tf.data: `padded_batch(batch_size, padded_shapes=...)`) with targets of -100 for padding.",
                stacklevel=2,
            )
