"""The methods about quantization and pruning that every model of ours has."""


class Quantizable:
    """Mixed into a Keras model; see `kerasllm.compression.quantize`."""

    def __new__(cls, *arguments, **keywords):
        model = super().__new__(cls, *arguments, **keywords)
        # Keras wraps `quantize` of each object in checks of its own, which know neither globs nor calibration texts.
        vars(model).pop("quantize", None)
        return model

    def quantize(self, mode=None, config=None, **options) -> None:
        """Makes the weights smaller, in place; see `kerasllm.compression.quantize`.

        Example:
        ```python
        model.quantize("int8", keep=["embedding.*"])
        model.save_to_preset("saved_models/mine-int8")
        ```
        """
        from kerasllm.compression.post_training import quantize

        quantize(self, mode, config, **options)

    def get_quantization_layer_structure(self, mode):
        """What Keras asks for: the network as a chain of steps; see `kerasllm.compression.chain`."""
        from kerasllm.compression.chain import chain_of

        if mode not in ("gptq", "awq"):
            return None
        first, *blocks = chain_of(self)
        return {"pre_block_layers": [first], "sequential_blocks": blocks}

    def fit(self, *arguments, **keywords):
        from kerasllm.compression.pruning import find_masks, share_masks

        find_masks(self)
        share_masks(self)
        return super().fit(*arguments, **keywords)

    def train_on_batch(self, *arguments, **keywords):
        from kerasllm.compression.pruning import share_masks

        share_masks(self)
        return super().train_on_batch(*arguments, **keywords)
