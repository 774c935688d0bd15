"""What `model.summary(expand_nested=True)` shows of a network."""

import contextlib


@contextlib.contextmanager
def with_inner_layers(model):
    """Inside a `with`, each layer has the attribute `layers` that Keras's summary looks for in nested models.

    Set past Keras, and only for the time being: layers that have it are saved by it.
    """
    shown = [layer for layer in model._flatten_layers(include_self=False) if not hasattr(layer, "layers")]
    for layer in shown:
        vars(layer)["layers"] = list(layer._flatten_layers(include_self=False, recursive=False))
    try:
        yield
    finally:
        for layer in shown:
            del vars(layer)["layers"]
