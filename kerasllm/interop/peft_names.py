"""Which layers of ours each module of transformers holds, under the names that `peft` writes."""

import keras

from kerasllm.interop import own
from kerasllm.interop.presets import FAMILIES, head_table
from kerasllm.interop.tasks import TASKS, task_of
from kerasllm.tuning.lora import Kernel
from kerasllm.tuning.offset import WEIGHT_NAMES
from kerasllm.tuning.targets import named_layers

PREFIX, PLAIN_PREFIX = "base_model.model.", "base_model."
HEAD = "lm_head"
# One embedding of ours, three modules of theirs, of which one is read by nobody.
COPIES = {"t5": {"encoder.embed_tokens": "shared", "decoder.embed_tokens": "shared"}}


class Names:
    """Which layers of ours each module of theirs holds.

    Args:
        model: one of ours in a family of transformers, or any other Keras model, whose layers keep their names.
    """

    def __init__(self, model: keras.Model):
        self.layers = named_layers(model, tuple(WEIGHT_NAMES))
        self.task = task_of(type(model)) if {base.__name__ for base in type(model).__mro__} & set(TASKS) else None
        family = None
        if self.task:
            family = next((f for f in FAMILIES.values() if f.covers(model, self.task)), own.FAMILY)
        self.model_type = family.model_type if family else None
        self.copies = COPIES.get(self.model_type, {})
        self.modules: dict[str, list[str]] = {}
        self.bare = ""  # what names begin with that a bare model's lack
        self._standard = family.standard_name if family else lambda name: name
        self._untransposed: set[str] = set()
        if family in (None, own.FAMILY):
            self.modules = {name: [name] for name in self.layers}
            return
        table = family.tensors(model.config)
        if self.task == "TextEmbedder":
            self.bare = next(iter(table)).partition(".")[0] + "."
        for name, paths in {**table, **head_table(family, self.task, model.config, model.get_config())}.items():
            parts = [path.removesuffix(".T").rpartition("/") for path in paths]
            if parts[0][2] in ("kernel", "embeddings", "gamma", "scale"):
                module = name.removesuffix(".weight")
                self.modules[module] = [part[0].replace("/", ".") for part in parts]
                if parts[0][2] == "kernel" and not paths[0].endswith(".T"):
                    self._untransposed.add(module)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether kernels lie (in, out) in this family, as GPT-2's do."""
        return bool(self._untransposed)

    def transposed(self, module: str, attribute: str) -> bool:
        """Whether a weight of ours lies the other way in theirs."""
        return attribute == "kernel" and module not in self._untransposed

    def theirs(self, module: str) -> str:
        """As it stands in a file."""
        return PREFIX + module.removeprefix(self.bare)

    def known(self, module: str) -> str | None:
        """The module of our table that a name in a file means."""
        name = plain(module)
        name = self.copies.get(name, name)
        name = name if name in self.modules else self._standard(f"{name}.weight").removesuffix(".weight")
        return name if name in self.modules else None

    def reaches(self, module: str) -> bool:
        """Whether layers of ours that can carry an adapter are in a module of our table."""
        return all(name in self.layers for name in self.modules[module])

    def widths(self, module: str) -> list[int]:
        return [width(self.layers[name]) for name in self.modules[module]]


def plain(name: str) -> str:
    """A module's name without what peft puts before it."""
    return name.removeprefix(PREFIX).removeprefix(PLAIN_PREFIX)


def width(layer) -> int:
    """Numbers that a layer makes of one."""
    if isinstance(layer, keras.layers.Embedding):
        return layer.output_dim
    if isinstance(layer, keras.layers.Dense):
        return layer.units
    if isinstance(layer, keras.layers.EinsumDense):
        return Kernel(layer, layer.name).out_dim
    return next(getattr(layer, name) for name in ("gamma", "scale") if hasattr(layer, name)).shape[-1]
