"""ONNX Runtime and OpenVINO in the place of a model's compiled programs: one graph, quantized weights as they are."""

import tempfile
from pathlib import Path

import numpy as np

from kerasllm.compression.step_programs import StepPrograms
from kerasllm.models.causal_lm import CausalLM
from kerasllm.serving.onnx_graph import WEIGHTS, Graph, Weights
from kerasllm.serving.onnx_models import decoder


class OnnxPrograms(StepPrograms):
    """What makes tokens with a runtime of ONNX graphs.

    Args:
        model: a `CausalLM` of any family, quantized or not. Later changes of its weights do not count.
        engine: "onnxruntime" or "openvino".
        threads: as many as there are cores, when left out.

    Raises:
        ImportError: onnx or the runtime is not installed.
        ValueError: another kind of model, or one with adapters.
    """

    def __init__(self, model, engine: str, threads: int | None = None):
        if not isinstance(model, CausalLM) or model.adapters:
            adapters = f" with the adapters {', '.join(model.adapters)}" if model.adapters else ""
            raise ValueError(f"{engine} runs a CausalLM without adapters. Received: a {type(model).__name__}{adapters}")
        super().__init__(model, threads)
        self.config = model.config
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            graph, path = Graph(Weights(folder), packed=True), Path(folder) / "decoder.onnx"
            decoder(graph, model, few=True)
            graph.save(path)
            self.num_bytes = path.stat().st_size + (Path(folder) / WEIGHTS).stat().st_size
            self.takes_positions = any(x.name == "positions" for x in graph.inputs)
            self.runner = RUNNERS[engine](str(path), self.threads)

    def empty_cache(self, slots: int, length: int) -> "_Past":
        return _Past(self, slots)


class _Past:
    """Keys and values of some sequences, filled up on the left, so that all of them end at the same place.

    Attributes:
        pairs: all layers' keys and values, each (slots, kv_heads, places, head_dim), as the runner has them.
        lengths: (slots,), how many of the last places are of each sequence.
    """

    def __init__(self, programs: OnnxPrograms, slots: int):
        self.programs, self.slots, self.lengths, self.places = programs, slots, np.zeros(slots, "int64"), 0
        self.run = programs.runner.start()
        c = programs.config
        self.names = [f"past.{i}.{part}" for i in range(c.num_layers) for part in ("key", "value")]
        self.pairs = [np.zeros((slots, c.num_kv_heads, 0, c.head_dim), "float32") for _ in self.names]

    def feed(self, slots, token_ids, positions, with_logits: bool = False):
        """Reads (slots, width) tokens at `positions`, in place of what was there and after it."""
        token_ids, positions = np.asarray(token_ids, "int64"), np.asarray(positions, "int64")
        if len(slots) < self.slots:  # One of them, by itself.
            alone = _Past(self.programs, 1)
            alone.pairs, alone.lengths, alone.places = self._ending_at(slots, positions), positions, positions[0]
            logits = alone.feed(range(1), token_ids, positions, with_logits)
            self._put(slots[0], alone)
            return logits
        # A sequence of no length may have any places before it, since they are not seen.
        if ((positions != self.lengths) & (positions > 0)).any():
            self.pairs = self._ending_at(slots, positions)
            self.places = positions.max()
        places, width = self.places, token_ids.shape[1]
        inputs = {
            "token_ids": token_ids,
            "padding_mask": (np.arange(places + width) >= places - positions[:, None]).astype("int64"),
            "num_logits": np.array([width if with_logits else 1]),
        }
        if self.programs.takes_positions:
            own = positions[:, None] + np.arange(width)
            inputs["positions"] = np.minimum(own, self.programs.limit - 1)  # What fills a row up may lie beyond.
        logits, self.pairs = self.run(inputs, dict(zip(self.names, self.pairs)))
        self.lengths, self.places = positions + width, places + width
        return logits

    def copy(self, rows) -> None:
        """Slot i holds what slot rows[i] held."""
        lengths = self.lengths[rows]
        self.pairs, self.places = self._ending_at(rows, lengths), lengths.max()
        self.lengths = lengths

    def _ending_at(self, rows, positions) -> list[np.ndarray]:
        """The pairs of `rows`, each cut to its position."""
        new = []
        for old in map(_array, self.pairs):
            new.append(np.zeros((len(rows), old.shape[1], positions.max(), old.shape[3]), "float32"))
            for values, row, position in zip(new[-1], rows, positions):
                begin = old.shape[2] - self.lengths[row]
                values[:, values.shape[1] - position :] = old[row, :, begin : begin + position]
        return new

    def _put(self, slot: int, alone: "_Past") -> None:
        self.places = max(self.places, alone.places)
        for i, (old, new) in enumerate(zip(map(_array, self.pairs), map(_array, alone.pairs))):
            both = [np.pad(x, ((0, 0), (0, 0), (self.places - x.shape[2], 0), (0, 0))) for x in (old, new)]
            both[0][slot] = both[1][0]
            self.pairs[i] = both[0]
        self.lengths = self.lengths.copy()
        self.lengths[slot] = alone.lengths[0]


def _array(x) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.numpy() if hasattr(x, "numpy") else x.data


class _OnnxRuntime:
    def __init__(self, path: str, threads: int):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError('ONNX Runtime needs `pip install "kerasllm[export]"`') from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        self._make = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._names = [x.name for x in self._session.get_outputs()]

    def start(self):
        return self._run

    def _run(self, inputs, past):
        feeds = {name: self._make(x) if isinstance(x, np.ndarray) else x for name, x in {**inputs, **past}.items()}
        logits, *pairs = self._session.run_with_ort_values(self._names, feeds)
        return logits.numpy(), pairs


class _OpenVino:
    def __init__(self, path: str, threads: int):
        try:
            import openvino
        except ImportError as error:
            raise ImportError('OpenVINO needs `pip install "kerasllm[export]"`') from error
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # not bfloat16
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # nor are inputs made whole numbers
        }
        self._model, self._tensor = openvino.Core().compile_model(path, "CPU", settings), openvino.Tensor

    def start(self):
        # What one of the two made is where the other one reads it.
        requests = [self._model.create_infer_request() for _ in range(2)]

        def run(inputs, past):
            requests.reverse()
            for name, x in {**inputs, **past}.items():
                requests[0].set_tensor(name, x if isinstance(x, self._tensor) else self._tensor(x))
            requests[0].infer()
            logits, *pairs = requests[0].output_tensors
            return logits.data.copy(), list(pairs)

        return run


RUNNERS = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVino}
