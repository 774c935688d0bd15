"""Many devices: exact, or refused by name, and never a model without weights. Virtual devices of a CPU."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasllm import CausalLM, TransformerConfig

BACKEND = keras.backend.backend()
COMMON = """
import keras, numpy as np, kerasllm
rows = np.random.default_rng(0).integers(0, 20, (8, 7))
def make():
    keras.utils.set_random_seed(0)
    config = kerasllm.TransformerConfig(20, 8, num_layers=1, num_heads=2, hidden_dim=8)
    model = kerasllm.CausalLM(config)
    model.compile(keras.optimizers.SGD(0.1))
    return model
def refusal(door, *arguments, **options):
    try:
        door(*arguments, **options)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")
"""
JAX = """
options = {"batch_size": 4, "epochs": 2, "verbose": 0, "shuffle": False}
alone = make()
expected = alone.fit(rows, **options).history["loss"]
devices = keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))
keras.distribution.set_distribution(devices)
assert "after keras.distribution.set_distribution" in refusal(alone.fit, rows, verbose=0)
model = make()
np.testing.assert_allclose(model.fit(rows, **options).history["loss"], expected, rtol=1e-5)
for door, data in ((model.fit, rows[:6]), (model.evaluate, rows[:6]), (model.predict, rows[:3])):
    assert "divisible by the 4 devices" in refusal(door, data, batch_size=6, verbose=0)
assert "divisible by the 4 devices" in refusal(model.train_on_batch, rows[:3])
batches = (batch for batch in [(rows[:3, :-1], rows[:3, 1:])] * 2)
assert "divisible by the 4 devices" in refusal(model.fit, batches, verbose=0)
assert model.predict(rows[:4], verbose=0).shape == (4, 7, 20)
print("exact or refused")
"""
TENSORFLOW = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = make()
for door in (model.fit, model.evaluate, model.predict, model.train_on_batch):
    assert "MirroredStrategy of 2 replicas is not supported" in refusal(door, rows)
print("exact or refused")
"""


@pytest.mark.skipif(BACKEND == "torch", reason="of the two backends with virtual devices")
def test_devices_that_share_a_batch():
    script = COMMON + (JAX if BACKEND == "jax" else TENSORFLOW)
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("exact or refused\n"), done.stderr[-3000:]


@pytest.fixture
def two_processes():
    """As PyTorch sees them in one of two; the other is not there."""
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def make_model():
    keras.utils.set_random_seed(0)
    model = CausalLM(TransformerConfig(20, 8, num_layers=1, num_heads=2, hidden_dim=8))
    model.compile("sgd")
    return model


@pytest.mark.one_backend
def test_processes_of_pytorch(two_processes):
    import torch

    if BACKEND != "torch":
        pytest.skip("of PyTorch")
    model, rows = make_model(), np.zeros((4, 7), "int32")
    for door in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=r"Received: 2 processes. Use one, or the JAX backend"):
            door(rows)
    assert model.predict(rows, verbose=0).shape == (4, 7, 20)  # Each process for itself is right here.
    torch.distributed.fsdp.fully_shard(model.transformer, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="has been sharded"):
        model.evaluate(rows, verbose=0)


@pytest.mark.one_backend
def test_data_parallel_of_pytorch_is_the_model_on_one_device():
    import torch

    if BACKEND != "torch":
        pytest.skip("of PyTorch")
    model, rows = make_model(), torch.zeros((4, 7), dtype=torch.int32)
    np.testing.assert_array_equal(torch.nn.DataParallel(model)(rows).detach().cpu(), model(rows).detach().cpu())
