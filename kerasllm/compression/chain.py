"""Any of our networks as a chain: token ids go in, each step hands one array to the next.

Calibration walks along it: a block is quantized for what the quantized blocks before it give it.
"""

from keras import ops

from kerasllm.layers.inner import inner
from kerasllm.layers.stack import Stack, Visibility


class Step:
    """One link: a function of an array, and the layer whose weights it uses.

    Args:
        layer: that layer.
        run: array → array. Token ids (batch, length) for the first step, hidden states (batch, length, dim) after it;
            with an encoder, the source's and then the target's, on the same axis.
    """

    def __init__(self, layer, run):
        self.layer, self._run = layer, run

    def __call__(self, x):
        return self._run(x)

    def _flatten_layers(self):
        return self.layer._flatten_layers()


def chain_of(model) -> list[Step]:
    """The embedding and the blocks of a model, in the order in which they run.

    A model with an encoder reads the first half of each row as its source and the rest as its target.
    """
    network = model.transformer

    def embed(token_ids):
        return inner(network.embedding, token_ids, training=False)

    if not model.config.num_encoder_layers:
        return [Step(network.embedding, embed), *(Step(b, _alone(network, b)) for b in network.blocks)]

    def embed_both(token_ids):
        middle = _middle(token_ids)
        return ops.concatenate([embed(token_ids[:, :middle]), embed(token_ids[:, middle:])], axis=1)

    encoder, decoder = network.encoder, network.decoder
    steps = [Step(network.embedding, embed_both)]
    for block in encoder.blocks:
        steps.append(Step(block, _of_source(encoder, block, is_last=block is encoder.blocks[-1])))
    return steps + [Step(block, _of_target(decoder, block)) for block in decoder.blocks]


def _alone(stack: Stack, block):
    return lambda x: inner(block, x, **_arguments(stack, x))


def _of_source(stack: Stack, block, is_last: bool):
    def run(x):
        middle = _middle(x)
        source = x[:, :middle]
        source = inner(block, source, **_arguments(stack, source))
        if is_last and stack.config.norm_position == "pre":
            source = inner(stack.final_norm, source)
        return ops.concatenate([source, x[:, middle:]], axis=1)

    return run


def _of_target(stack: Stack, block):
    def run(x):
        middle = _middle(x)
        source, target = x[:, :middle], x[:, middle:]
        target = inner(block, target, source=source, **_arguments(stack, target))
        return ops.concatenate([source, target], axis=1)

    return run


def _middle(x) -> int:
    return x.shape[1] // 2


def _arguments(stack: Stack, x) -> dict:
    """What `Stack` tells its blocks about whole rows without padding."""
    length = x.shape[1]
    mask, causal = Visibility().resolve(length, stack.causal, stack.config.sliding_window if stack.causal else None)
    rotary, bias = stack._rotary_of(None, length), stack._bias_of(None, length, length)
    return {"attention_mask": mask, "causal": causal, "rotary": rotary, "bias": bias, "training": False}
