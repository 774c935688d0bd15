"""TensorFlow's graphs remember few Python frames, and never none: then TensorFlow crashes."""

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.graph_frames import short_frames

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow's graphs")


def test_frames_of_a_training_step():
    import tensorflow as tf

    config = kerasllm.TransformerConfig(16, 8, num_layers=1, num_heads=2, hidden_dim=8)
    model = kerasllm.CausalLM(config)
    model.compile("adam", jit_compile=False)
    ids = np.zeros((2, 8), "int32")
    model.fit(ids, ids, batch_size=2, verbose=0)  # builds the optimizer

    @tf.function
    def step(ids):
        return model.train_step((ids, ids))

    traces = [operation.traceback for operation in step.get_concrete_function(tf.constant(ids)).graph.get_operations()]
    names = [{frame.filename.replace("\\", "/") for frame in trace} for trace in traces]
    assert len(names) > 100
    assert all(any(file.endswith("test_graph_frames.py") for file in files) for files in names)
    short = [files for files in names if not any("/keras/src/" in file for file in files)]
    assert len(short) > 0.9 * len(names)


def test_outside_of_a_graph_nothing_happens():
    with short_frames():
        assert float(keras.ops.sum(keras.ops.ones(3))) == 3.0
