"""PyTorch's operations, recorded once and replayed: what is left of a network when Python is taken away."""

import operator

import keras
import torch
from torch.fx.experimental.proxy_tensor import make_fx

_VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.select.int,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.detach.default,
}


class TorchGraph:
    """The operations that `function` runs for arguments of these shapes.

    What depends neither on the arguments nor on the weights (masks, tables of positions) is computed once. Writes into
    an argument stay writes into it. Weights may change, as they do in training: they are read anew at each call.

    Args:
        function: a function of nested tensors without control flow that looks at their values.
        arguments: example arguments; they are written into if `function` does.
    """

    def __init__(self, function, arguments):
        self._structure = None

        def flat(*tensors):
            outputs = function(*keras.tree.pack_sequence_as(arguments, tensors))
            self._structure = outputs
            return tuple(keras.tree.flatten(outputs))

        module = make_fx(flat)(*keras.tree.flatten(arguments))
        _compute_constants(module)
        module.graph.eliminate_dead_code()
        module.recompile()
        self._structure = keras.tree.map_structure(lambda _: 0, self._structure)
        self.run_flat = module.forward

    def __call__(self, arguments):
        outputs = self.run_flat(*keras.tree.flatten(arguments))
        return keras.tree.pack_sequence_as(self._structure, outputs)


def _compute_constants(module) -> None:
    """Replaces what is computed from constants alone by its value."""
    graph = module.graph
    known = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(module, node.target)
            # A view of a weight follows it; anything else made of it would go stale.
            known[node] = (value, isinstance(value, torch.nn.Parameter))
            continue
        if node.op != "call_function" or not all(i in known for i in node.all_input_nodes):
            continue
        if node.target is not operator.getitem and (node.target._schema.is_mutable or _is_random(node.target)):
            continue
        of_weights = any(known[i][1] for i in node.all_input_nodes)
        if of_weights and node.target not in _VIEWS:
            continue
        arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: known[n][0])
        known[node] = (node.target(*arguments[0], **arguments[1]), of_weights)
    written = {i for n in graph.nodes if n.op == "call_function" and _writes(n) for i in n.all_input_nodes[:1]}
    for count, (node, (value, _)) in enumerate(known.items()):
        if node.op == "get_attr" or node in written or not isinstance(value, torch.Tensor):
            continue
        name = f"_constant_{count}"
        module.register_buffer(name, value, persistent=False)
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.get_attr(name))
        graph.erase_node(node)


def _writes(node) -> bool:
    return node.target is not operator.getitem and node.target._schema.is_mutable


def _is_random(target) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags
