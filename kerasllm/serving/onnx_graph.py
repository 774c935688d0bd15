"""An ONNX graph, written node by node: names, constants, and weights that several graphs share in one file."""

import hashlib
from pathlib import Path

import numpy as np

from kerasllm.interop.weight_files import fresh_copy

OPSET, IR = 18, 8
MICROSOFT = "com.microsoft"  # the domain of operations that ONNX Runtime and OpenVINO have, and ONNX has not
WEIGHTS = "weights.bin"
ALIGNMENT = 64  # bytes


def import_onnx():
    """The package `onnx`."""
    try:
        import onnx
    except ImportError as error:
        raise ImportError('ONNX files need onnx: pip install "kerasllm[export]"') from error
    return onnx


class Weights:
    """Arrays of several graphs, each written to `weights.bin` once.

    Args:
        directory: of the file.
    """

    def __init__(self, directory: Path):
        self.path, self.places = Path(directory) / WEIGHTS, {}

    def place(self, values: np.ndarray) -> tuple[int, int]:
        """(offset, length) of an array in the file, in bytes."""
        raw = np.ascontiguousarray(values).tobytes()
        key = hashlib.sha256(raw).digest()
        if key not in self.places:
            with open(self.path, "ab") as file:
                file.write(bytes(-file.tell() % ALIGNMENT))
                self.places[key] = file.tell(), len(raw)
                file.write(raw)
        return self.places[key]


class Graph:
    """A graph to be: `graph("MatMul", a, b)` adds a node and gives its result's name.

    Args:
        weights: where large constants go.
        packed: whether quantized weights stay whole numbers; see `kerasllm.serving.onnx_packed`.

    Example:
    ```python
    graph = Graph(Weights("folder"))
    graph.give("doubled", graph("Mul", graph.take("x", "float32", ["n"]), 2.0), "float32", ["n"])
    graph.save("folder/double.onnx")
    ```
    """

    def __init__(self, weights: Weights, packed: bool = False):
        self.onnx, self.weights, self.packed = import_onnx(), weights, packed
        self.inputs, self.outputs, self.nodes, self.constants = [], [], [], {}

    def __call__(self, operation: str, *inputs, outputs: int = 1, **attributes):
        """Adds a node; numbers and arrays among its inputs are constants, `None` is an input left out."""
        names = [f"{operation}_{len(self.nodes)}_{i}" for i in range(outputs)]
        inputs = ["" if x is None else x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values) -> str:
        """The name of a number or an array: float32, bool, uint8 if unsigned or, of other whole numbers, int64."""
        values = np.asarray(values)
        values = values.astype({"f": "float32", "b": "bool", "u": "uint8"}.get(values.dtype.kind, "int64"))
        key = (values.shape, values.dtype.str, hashlib.sha256(values.tobytes()).digest())
        if key not in self.constants:
            name = f"constant_{len(self.constants)}"
            self.constants[key] = self._tensor(name, values)
        return self.constants[key].name

    def _tensor(self, name, values):
        if values.nbytes < 1024:
            return self.onnx.numpy_helper.from_array(fresh_copy(values), name)
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = self.onnx.TensorProto(name=name, data_type=kind, dims=values.shape)
        tensor.data_location = self.onnx.TensorProto.EXTERNAL
        offset, length = self.weights.place(values)
        for field, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=field, value=str(value))
        return tensor

    def take(self, name: str, kind: str, shape: list) -> str:
        """An input; names in its shape are dimensions of any size."""
        self.inputs.append(self._value(name, kind, shape))
        return name

    def give(self, name: str, value: str, kind: str, shape: list) -> None:
        """Makes a value an output."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [value], [name]))
        self.outputs.append(self._value(name, kind, shape))

    def _value(self, name, kind, shape):
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def save(self, path) -> None:
        make, path = self.onnx.helper, Path(path)
        graph = make.make_graph(self.nodes, path.stem, self.inputs, self.outputs, list(self.constants.values()))
        opsets = [make.make_opsetid("", OPSET), *([make.make_opsetid(MICROSOFT, 1)] if self.packed else [])]
        model = make.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="kerasllm")
        path.write_bytes(model.SerializeToString())
        self.onnx.checker.check_model(str(path))
