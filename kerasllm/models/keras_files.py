"""What Keras's own files hold of our models: `save`, `save_weights`, `ModelCheckpoint`, copies, pickles."""

import json

import keras
import numpy as np

from kerasllm.training.watcher import inner_optimizer

OLD_FORMATS = (".h5", ".hdf5")
# In the file of weights, beside those of the layers.
STRUCTURE, BUILT, ZEROS = "structure", "optimizer_built", "zeros_"


class KerasFiles:
    """Mixed into a Keras model whose `get_config` has its structure; see `kerasllm.interop.structure`."""

    @classmethod
    def from_config(cls, config, custom_objects=None):
        from kerasllm.interop.structure import restore

        config = dict(config)
        structure = config.pop("structure", None)
        model = super().from_config(config, custom_objects)
        if structure is not None:
            restore(model, structure)
        return model

    def save(self, filepath, *arguments, **keywords):
        """Keras's `save`, to a .keras file; `keras.saving.load_model` makes an equal model of it.

        The file has the adapters, which of them are active, quantization, what is frozen or pruned, and how the model
        is compiled. Merged adapters, and LoRAs of Keras's own, are in the weights.

        Raises:
            ValueError: a path of Keras's older format, which cannot hold our models.
        """
        if str(filepath).endswith(OLD_FORMATS):
            raise ValueError(
                f"Keras's older format cannot hold a {type(self).__name__}. Save to a .keras file, or with "
                f"save_to_preset(directory). Received: filepath={str(filepath)!r}"
            )
        super().save(filepath, *arguments, **keywords)

    def save_own_variables(self, store):
        from kerasllm.interop.structure import describe, weights_belong_to, zeros_of

        super().save_own_variables(store)
        structure = weights_belong_to(describe(self))
        if structure:
            store[STRUCTURE] = np.frombuffer(json.dumps(structure).encode(), "uint8")
        if self._has_optimizer() and self.optimizer.built:
            store[BUILT] = np.ones((), "bool")
        for i, constraint in enumerate(zeros_of(self).values()):
            store[f"{ZEROS}{i}"] = constraint.mask

    def load_own_variables(self, store):
        from kerasllm.interop.structure import weights_read, zeros_of

        names = set(store.keys())
        structure = json.loads(bytes(np.asarray(store[STRUCTURE]))) if STRUCTURE in names else {}
        weights_read(self, structure)
        if BUILT in names and self._has_optimizer() and not self.optimizer.built:
            self._build_optimizer()  # Whose state is read next.
        super().load_own_variables({n: store[n] for n in names - {STRUCTURE, BUILT} if not n.startswith(ZEROS)})
        for i, constraint in enumerate(zeros_of(self).values()):
            if f"{ZEROS}{i}" in names:
                constraint.set_mask(np.asarray(store[f"{ZEROS}{i}"]))

    def get_compile_config(self):
        from kerasllm.training.optimizer_config import describe

        config = super().get_compile_config()
        if not config:
            return config
        optimizer = None if self.optimizer is None else describe(inner_optimizer(self), self.variables)
        loss = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        return {**config, **loss, "jit_compile": self._jit_compile_given, "optimizer_state": optimizer}

    def compile_from_config(self, config):
        # Keras warns that it cannot know how to call an overridden `compile`; this one takes the same arguments.
        from kerasllm.training.optimizer_config import restore

        config = dict(config)
        described = config.pop("optimizer_state", None)
        config = keras.saving.deserialize_keras_object(config)
        if described:
            optimizer = config["optimizer"]
            restore(getattr(optimizer, "inner_optimizer", optimizer), described, self.variables)
        self.compile(**config)
        if self._has_optimizer() and (described is None or described["built"]):
            self._build_optimizer()

    def _has_optimizer(self) -> bool:
        return self.compiled and self.optimizer is not None

    def _build_optimizer(self):
        """Before the first step: else TensorFlow compiles it twice, once with the variables being made."""
        from kerasllm.compression.pruning import share_masks

        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
            share_masks(self)
