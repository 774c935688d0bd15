"""Which ways to use many devices are exact, and the error that names the others."""

import keras


def check_devices(model, door: str) -> None:
    """Refuses to train in a way that would go wrong without a word.

    Raises:
        ValueError: several processes of PyTorch, a sharded PyTorch module, a TensorFlow strategy with replicas, or a
            model that was made before Keras's distribution was set.
    """
    _CHECKS[keras.backend.backend()](model, door)


def check_batch_rows(rows: int) -> None:
    """Raises a ValueError if the devices of Keras's distribution cannot share the rows of a batch equally."""
    shards = num_data_shards()
    if rows % shards:
        raise ValueError(
            f"A batch must be divisible by the {shards} devices that share it. Received: a batch of {rows} rows. "
            f"Use a `batch_size` that is a multiple of {shards}, and drop or fill up the last rows."
        )


def num_data_shards() -> int:
    """Parts that Keras's distribution cuts a batch in."""
    distribution = keras.distribution.distribution() if keras.backend.backend() == "jax" else None
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape)).get(distribution.batch_dim_name, 1)


def _check_torch(model, door):
    import torch

    if any(type(parameter).__name__ in ("DTensor", "FlatParameter") for parameter in model.parameters()):
        raise ValueError(
            "The model has been sharded (fully_shard, FullyShardedDataParallel), and Keras would use the weights that "
            "it had before: nothing would be shared. Use one device, or the JAX backend with "
            "keras.distribution.ModelParallel."
        )
    if not door.startswith(("fit", "train")):
        return
    processes = torch.distributed
    if processes.is_available() and processes.is_initialized() and processes.get_world_size() > 1:
        raise ValueError(
            f"`{door}` trains each process for itself, also inside DistributedDataParallel: gradients would not be "
            f"shared. Received: {processes.get_world_size()} processes. Use one, or the JAX backend with "
            "keras.distribution.DataParallel; a loop of your own with loss.backward() works, too."
        )


def _check_tensorflow(model, door):
    import tensorflow as tf

    strategy = model.distribute_strategy if hasattr(model, "distribute_strategy") else tf.distribute.get_strategy()
    replicas = max(strategy.num_replicas_in_sync, tf.distribute.get_strategy().num_replicas_in_sync)
    if replicas > 1:
        raise ValueError(
            f"`{door}` under a {type(strategy).__name__} of {replicas} replicas is not supported: gradients would be "
            "summed and clipped in each replica. Use one device, or the JAX backend with "
            "keras.distribution.DataParallel."
        )


def _check_jax(model, door):
    distribution = keras.distribution.distribution()
    if distribution is None or not model.variables:
        return
    devices = {str(device) for device in distribution.device_mesh.devices.flat}
    value = model.variables[0].value
    here = {f"{device.platform}:{device.id}" for device in value.devices()} if hasattr(value, "devices") else set()
    if len(here) < len(devices) and len(devices) > 1:
        raise ValueError(
            f"The model lies on {len(here)} of the {len(devices)} devices of keras.distribution. Make (or read) the "
            "model after keras.distribution.set_distribution(...)."
        )


_CHECKS = {"torch": _check_torch, "tensorflow": _check_tensorflow, "jax": _check_jax}
