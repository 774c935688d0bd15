"""Calling a layer from inside another one."""


def inner(layer, *arguments, **keywords):
    """What `layer(...)` computes, without what Keras's `__call__` does around it.

    The outer layer's `__call__` has already converted the inputs, entered the dtype scope and found out about
    training; for a small model on PyTorch, doing that again in each of fifty layers takes a third of a step. The
    layer must be built.
    """
    call = layer.quantized_call if getattr(layer, "quantization_mode", None) else layer.call
    return call(*arguments, **keywords)
