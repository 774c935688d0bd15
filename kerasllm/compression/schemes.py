"""How one layer is quantized: enough to tell it from others, to write it down, and to make its empty shell again."""

import dataclasses
import math

import keras
from keras import ops

from kerasllm.layers.quantized import float_embeddings, float_head, float_kernel
from kerasllm.tuning.targets import named_layers

CALIBRATED = ("gptq", "awq")
MODES = ("int8", "int4", "float8", *CALIBRATED)
QUANTIZABLE = (keras.layers.Dense, keras.layers.ReversibleEmbedding)
BITS = (2, 3, 4, 8)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a layer's weights are kept.

    Args:
        mode: "int8", "int4", "float8", "gptq" or "awq".
        bits: a weight; only "gptq" has a choice.
        group_size: inputs that share a scale; -1 for all of them. int8 and float8 have no groups.
        activations: whether int8 multiplies inputs that are made int8 too, at each call.

    Raises:
        ValueError: a setting that the mode does not have.
    """

    mode: str
    bits: int = 8
    group_size: int = -1
    activations: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: mode={self.mode!r}")
        allowed = {"int4": (4,), "awq": (4,), "gptq": BITS}.get(self.mode, (8,))
        if self.bits not in allowed:
            bits = " or ".join(map(str, allowed))
            raise ValueError(f"{self.mode} has {bits} bits a weight. Received: bits={self.bits!r}")
        whole = isinstance(self.group_size, int) and not isinstance(self.group_size, bool)
        if not whole or not (self.group_size == -1 or self.group_size > 0):
            raise ValueError(
                f"`group_size` must be a positive whole number, or -1 for one group. Received: {self.group_size!r}"
            )
        if self.group_size != -1 and self.mode in ("int8", "float8"):
            raise ValueError(
                f"{self.mode} has no groups. Use int4, gptq or awq. Received: group_size={self.group_size}"
            )
        if not isinstance(self.activations, bool) or (self.activations and self.mode != "int8"):
            raise ValueError(f"Only int8 can quantize activations too. Received: mode={self.mode!r}, activations=True")

    @property
    def policy(self) -> str:
        """Keras's name of it, without the dtype that it is made from."""
        return {
            "int4": f"int4/{self.group_size}",
            "gptq": f"gptq/{self.bits}/{self.group_size}",
            "awq": f"awq/{self.bits}/{self.group_size}",
        }.get(self.mode, self.mode)

    def config(self):
        """Keras's config of it."""
        if self.mode == "int8":
            return keras.quantizers.Int8QuantizationConfig(activation_quantizer="default" if self.activations else None)
        if self.mode == "int4":
            return keras.quantizers.Int4QuantizationConfig(block_size=self.group_size)
        if self.mode == "gptq":
            return keras.quantizers.GPTQConfig(None, None, weight_bits=self.bits, group_size=self.group_size)
        if self.mode == "awq":
            return keras.quantizers.AWQConfig(None, None, group_size=self.group_size)
        return keras.quantizers.Float8QuantizationConfig()


def scheme_of(layer) -> Scheme | None:
    """How a layer is quantized; `None` if it is not."""
    mode, policy = layer.quantization_mode, layer.dtype_policy
    if mode is None:
        return None
    if mode == "int4":
        return Scheme(mode, 4, getattr(policy, "block_size", None) or -1)
    if mode in CALIBRATED:
        return Scheme(mode, policy.weight_bits, policy.group_size)
    return Scheme(mode, activations=mode == "int8" and layer.inputs_quantizer is not None)


def quantizable_layers(model) -> dict[str, keras.layers.Layer]:
    """The layers that can be quantized, by dotted name, such as "block_0.attention.query" or "embedding.tokens".

    Tables of positions, segments and relative positions are small, and stay as they are.
    """
    return named_layers(model, QUANTIZABLE)


def float_weights(layer) -> list:
    """The matrices of a layer as floating point numbers: its kernel; or its table, and its head if that is another."""
    if not isinstance(layer, keras.layers.ReversibleEmbedding):
        return [float_kernel(layer)]
    return [float_embeddings(layer), *([] if layer.tie_weights else [float_head(layer)])]


def inputs_of(layer) -> int:
    """How many numbers each output of a layer is a sum over, which groups divide."""
    return layer.output_dim if _is_table(layer) else layer.kernel.shape[0]


def fitting_group_size(layers) -> int:
    """128, or the largest power of two below it that divides the inputs of all layers; -1 if that is below 16."""
    size = math.gcd(128, *(inputs_of(layer) for layer in layers))
    return size if size >= 16 else -1


def make_shell(layer, scheme: Scheme) -> list[keras.Variable]:
    """Gives a float layer the variables of a quantized one, which are to be filled, and returns those that it lost."""
    table = _is_table(layer)
    names = ["_embeddings"] if table else ["_kernel"]
    if table and not layer.tie_weights:
        names.append("reverse_embeddings")
    shape = (layer.input_dim, layer.output_dim) if table else tuple(layer._kernel.shape)
    lost = []
    layer._tracker.unlock()
    if scheme.mode != "float8":
        for name in names:
            lost.append(getattr(layer, name))
            delattr(layer, name)
    config = scheme.config()
    layer.quantization_config = config
    if scheme.mode == "float8":
        layer.quantized_build(shape, scheme.mode)
    else:
        layer.quantized_build(shape, scheme.mode, config)
    if scheme.mode in CALIBRATED:
        setattr(layer, f"is_{scheme.mode}_calibrated", True)
    set_policy(layer, scheme)
    layer._tracker.lock()
    return lost


def set_policy(layer, scheme: Scheme) -> None:
    """What makes Keras call the quantized path of a layer that has its variables."""
    if layer.quantization_mode is None:
        layer.dtype_policy = keras.dtype_policies.get(f"{scheme.policy}_from_{layer.dtype_policy.name}")


def assign_calibrated(layer, scheme: Scheme, codes, scale, zero, groups, input_scales=None) -> None:
    """Fills a gptq or awq layer.

    Args:
        layer: after `make_shell`.
        scheme: its scheme.
        codes: (out, in), from 0 to 2**bits − 1.
        scale, zero: (out, groups).
        groups: (in,), the group of each input.
        input_scales: (in,), what awq multiplied the weights by.
    """
    codes = ops.convert_to_tensor(codes, dtype="uint8")
    if scheme.bits == 4:
        codes = keras.quantizers.pack_int4(codes, axis=0, dtype="uint8")[0]
    layer.quantized_kernel.assign(codes)
    layer.kernel_scale.assign(scale)
    layer.kernel_zero.assign(zero)
    layer.g_idx.assign(groups)
    if input_scales is not None:
        layer.awq_scales.assign(input_scales)


def _is_table(layer) -> bool:
    return isinstance(layer, keras.layers.ReversibleEmbedding)
