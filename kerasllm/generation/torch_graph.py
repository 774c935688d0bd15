"""PyTorch's operations, recorded once and replayed: what is left of a network when Python is taken away."""

import functools
import operator
import warnings

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

SMALLEST_WEIGHT = 2**18  # that oneDNN multiplies

# oneDNN's product of rows and a transposed weight. Tracing does not take an operation with a list of optional numbers,
# but it does take a function that holds one.
_LINEAR = """
graph(%rows : Tensor, %weight : Tensor, %bias : Tensor?):
  %activation : str = prim::Constant[value="none"]()
  %numbers : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %product : Tensor = mkldnn::_linear_pointwise(%rows, %weight, %bias, %activation, %numbers, %algorithm)
  return (%product)
"""


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
        _multiply_by_onednn(module)
        module.graph.eliminate_dead_code()
        module.recompile()
        self._structure = keras.tree.map_structure(lambda _: 0, self._structure)
        self.run_flat = _script(module, keras.tree.flatten(arguments))

    def __call__(self, flat: list):
        """What the function returns for arguments that are flat already."""
        outputs = self.run_flat(*flat)
        return keras.tree.pack_sequence_as(self._structure, outputs)


def _script(module, arguments):
    """The recorded operations, called one after another by C++: 0.2 ms where Python takes 0.6."""
    if not hasattr(torch.jit, "trace"):
        return module.forward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Deprecated in favour of torch.compile, which takes seconds.
        return torch.jit.trace(module, tuple(arguments), check_trace=False)


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


@functools.cache
def _onednn_linear():
    """(rows, transposed weight, bias or None) → their product, or None where PyTorch came without oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    linear = torch._C._create_function_from_graph("onednn_linear", torch._C.parse_ir(_LINEAR))

    def onednn_linear(rows, weight, bias):
        return linear(rows, weight, bias)

    return onednn_linear


def _multiply_by_onednn(module) -> None:
    """Lets oneDNN multiply by large weights on a CPU: a row takes two thirds of MKL's time, eight rows a third."""
    linear, graph = _onednn_linear(), module.graph
    if linear is None:
        return
    for node in list(graph.nodes):
        if node.target not in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default):
            continue
        *bias, rows, weight = node.args
        kernel = getattr(module, weight.target) if weight.op == "get_attr" else None
        if kernel is None or kernel.device.type != "cpu" or kernel.dtype != torch.float32 or node.kwargs:
            continue
        if kernel.numel() < SMALLEST_WEIGHT:
            continue
        name = f"_transposed_{weight.target}"
        module.register_buffer(name, kernel.detach().t(), persistent=False)
        with graph.inserting_before(node):
            arguments = (rows, graph.get_attr(name), bias[0] if bias else None)
            node.replace_all_uses_with(graph.call_function(linear, arguments))
        graph.erase_node(node)


def _writes(node) -> bool:
    return node.target is not operator.getitem and node.target._schema.is_mutable


def _is_random(target) -> bool:
    return torch.Tag.nondeterministic_seeded in target.tags
