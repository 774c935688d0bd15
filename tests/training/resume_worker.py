"""Trains a small model, to be killed and resumed: `resume_worker.py DIRECTORY [--kill-at STEP]`.

Writes everything that training left behind to DIRECTORY/final.npz.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import kerasllm
from kerasllm.training import Checkpoint

parser = argparse.ArgumentParser()
parser.add_argument("directory", type=Path)
parser.add_argument("--kill-at", type=int, default=None)
parser.add_argument("--signal", default="SIGKILL")
parser.add_argument("--during-save", action="store_true")
arguments = parser.parse_args()


class Killer(keras.callbacks.Callback):
    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        Killer.steps += 1
        if Killer.steps == arguments.kill_at and not arguments.during_save:
            os.kill(os.getpid(), getattr(signal, arguments.signal))


if arguments.during_save:
    import safetensors.numpy

    saved = safetensors.numpy.save
    calls = iter(range(1000))

    def save_and_die(arrays):
        if next(calls) == 1:
            Path(arguments.directory, "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return saved(arrays)

    safetensors.numpy.save = save_and_die

keras.utils.set_random_seed(7)
config = kerasllm.TransformerConfig.from_name(
    "gpt2_tiny",
    vocabulary_size=31,
    max_sequence_length=16,
    num_layers=2,
    hidden_dim=32,
    num_heads=2,
    dropout=0.1,
    attention_dropout=0.1,
)
model = kerasllm.CausalLM(config)
schedule = keras.optimizers.schedules.CosineDecay(1e-2, 100)
model.compile(keras.optimizers.AdamW(schedule, global_clipnorm=1.0))
tokens = np.random.default_rng(0).integers(0, 31, 900)
shards = kerasllm.data.TokenShards.from_arrays([tokens])
train = kerasllm.data.TokenDataset(shards, sequence_length=16, batch_size=4, seed=3)  # 13 steps an epoch
validation = kerasllm.data.TokenDataset(shards.slice(0, 200), sequence_length=16, batch_size=4, shuffle=False)
stopper = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
checkpoint = Checkpoint(arguments.directory / "checkpoints", every_steps=5, keep=2, resume=True)
history = model.fit(
    train,
    validation_data=validation,
    epochs=4,
    verbose=0,
    callbacks=[Killer(), stopper, checkpoint],
).history

final = {f"weight{i:03d}": np.array(v) for i, v in enumerate(model.get_weights())}
final |= {f"optimizer{i:03d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.optimizer.variables)}
final |= {f"history_{name}": np.array(values) for name, values in history.items()}
final["stopper"] = np.array([stopper.wait, stopper.best, stopper.best_epoch])
np.savez(arguments.directory / "final.npz", **final)
sys.stdout.write(f"resumed at {checkpoint.resumed_step}\n")
