"""The methods about adapters that every model of ours has."""

import contextlib
from collections.abc import Sequence

from kerasllm.tuning import freezing, model_adapters
from kerasllm.tuning.lora import LoRA
from kerasllm.tuning.settings import Settings


class Adaptable:
    """Mixed into a Keras model; see the functions of the same names in `kerasllm.tuning`."""

    _adapters = None
    _preset = None  # the directory that the model was read from, or saved to
    saves_adapters = True  # Its config says which there are; see `kerasllm.interop.structure`.

    def add_adapter(self, name: str, settings: Settings) -> None:
        """Adds an adapter, which is then the only active one, and the only thing that is trained.

        Example:
        ```python
        model.add_adapter("poems", LoRA(rank=8, targets="attention.*"))
        ```
        """
        model_adapters.add_adapter(self, name, settings)

    def enable_lora(self, rank: int = 8, alpha: float = 16.0, targets=None, name: str = "default", **options) -> None:
        """`add_adapter(name, LoRA(rank=rank, alpha=alpha, targets=targets, **options))`."""
        model_adapters.add_adapter(self, name, LoRA(rank=rank, alpha=alpha, targets=targets, **options))

    def train_adapter(self, name: str) -> None:
        """Makes one adapter the one that is active and trained. Compile the model after it."""
        model_adapters.train_adapter(self, name)

    def set_adapter(self, names: str | Sequence[str], weights: Sequence[float] | None = None) -> None:
        """Makes one adapter active, or the weighted sum of several, and no other. Compiles nothing."""
        model_adapters.set_adapter(self, names, weights)

    def disable_adapter(self):
        """The base model alone, inside a `with`. Compiles nothing."""
        return model_adapters.disable_adapter(self)

    def scale(self, factor: float, name: str | None = None) -> None:
        """Multiplies what an adapter adds, or all active ones, by a factor. Compiles nothing."""
        model_adapters.scale(self, factor, name)

    def merge(self) -> None:
        """Adds what the active adapters do to the weights of the base, until `unmerge`."""
        model_adapters.merge(self)

    def unmerge(self) -> None:
        """Puts the weights back, bit for bit, as they were before `merge`."""
        model_adapters.unmerge(self)

    def delete_adapter(self, name: str) -> None:
        """Takes an adapter away; with the last one, the model is as it was."""
        model_adapters.delete_adapter(self, name)

    def save_adapter(self, directory, name: str = "default") -> None:
        """Writes an adapter's adapter_config.json and adapter_model.safetensors; see `kerasllm.tuning.save_adapter`."""
        from kerasllm.tuning.files import save_adapter

        save_adapter(self, directory, name)

    def load_adapter(self, directory, name: str = "default") -> None:
        """Adds an adapter that `save_adapter` or `peft` saved; see `kerasllm.tuning.load_adapter`."""
        from kerasllm.tuning.files import load_adapter

        load_adapter(self, directory, name)

    @contextlib.contextmanager
    def whole_config(self):
        """Inside a `with`, `config` is the network's own: prompts leave less room for a text."""
        config, self.config = self.config, self.transformer.config
        try:
            yield
        finally:
            self.config = config

    @property
    def adapters(self) -> dict[str, Settings]:
        """The settings of the model's adapters, by name."""
        return model_adapters.adapters(self)

    @property
    def adapter_state(self) -> tuple:
        """What is switched on, as a value that differs where the model computes something else."""
        return model_adapters.adapter_state(self)

    @property
    def adapter_switches(self) -> list:
        """The variables that `set_adapter` and `scale` write to, which are not weights."""
        return model_adapters.adapter_switches(self)

    def freeze(self, *what: str) -> freezing.Trained:
        """Takes layers out of training, by name or as "first n" or "last n" blocks; see `kerasllm.tuning.freeze`.

        Example:
        ```python
        print(model.freeze("embedding", "first 4"))
        ```
        """
        return freezing.freeze(self, *what)

    def unfreeze(self, *what: str) -> freezing.Trained:
        """Trains again what `freeze` took out; all of it when nothing is named."""
        return freezing.unfreeze(self, *what)

    def fit(self, *arguments, **keywords):
        model_adapters.check_trainable(self)
        return super().fit(*arguments, **keywords)

    def train_on_batch(self, *arguments, **keywords):
        model_adapters.check_trainable(self)
        return super().train_on_batch(*arguments, **keywords)
