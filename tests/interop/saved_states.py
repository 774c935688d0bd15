"""What can be done to a model, the ways to save it, and what then comes back: a table that docs are made from too."""

import copy
import pickle

import keras
import numpy as np

import kerasllm
from kerasllm import Tokenizer, TransformerConfig
from kerasllm.compression import Magnitude, prune, quantization_aware
from kerasllm.interop.structure import zeros_of
from kerasllm.training import Checkpoint, adamw, muon
from kerasllm.tuning import (
    IA3,
    BitFit,
    Bottleneck,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    anchor,
    layerwise_decay,
    lora_plus,
)
from kerasllm.tuning.model_adapters import state_of

VOCABULARY, LENGTH = 32, 12
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (4, 8)).astype("int32")
PAIRS = {"encoder_token_ids": IDS, "decoder_token_ids": IDS[:, ::-1].copy()}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "pooler": True}
LABELS = ["sad", "glad", "mad"]

# task → (changes of the config, arguments of the task other than its defaults)
TASKS = {
    "CausalLM": ({}, {}),
    "MaskedLM": (BERT, {}),
    "PairedMaskedLM": (BERT, {}),
    "ReplacedTokenDetector": (BERT, {"generator_layers": 2}),
    "Seq2SeqLM": ({"num_encoder_layers": 1, "positions": "relative"}, {"start_token_id": 3}),
    "TextClassifier": (BERT, {"labels": LABELS, "pooling": "mean", "truncation": True, "dropout": 0.25}),
    "TokenClassifier": (BERT, {"labels": LABELS, "truncation": True}),
    "TextEmbedder": (BERT, {"pooling": "first", "normalize": False, "temperature": 0.5, "truncation": True}),
}


def make(task="CausalLM", seed=0, **arguments):
    """A tiny model with random weights."""
    keras.utils.set_random_seed(seed)
    changes, options = TASKS[task]
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "initializer_range": 0.3}
    return getattr(kerasllm, task)(TransformerConfig(VOCABULARY, LENGTH, **sizes, **changes), **options, **arguments)


def inputs_of(model):
    return PAIRS if isinstance(model, kerasllm.Seq2SeqLM) else IDS


def randomize(model):
    """Weights that are trained, as training would leave them: none is what it began as."""
    random = np.random.default_rng(5)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.2 * random.normal(size=variable.shape))


# What can be done to a model ---------------------------------------------------------------------------------


def adapter(*settings, active=None, weights=None, trained=None):
    """Adds adapters, the first under the name "a", the second "b"; each trained."""

    def do(model):
        for name, each in zip("ab", settings):
            model.add_adapter(name, each)
            randomize(model)
        if trained is not None:
            model.train_adapter(trained)
        if active is not None:
            model.set_adapter(active, weights)

    return do


def then(*steps):
    def do(model):
        for step in steps:
            step(model)

    return do


def compiled(optimizer=None, **options):
    def do(model):
        made = optimizer(model) if optimizer else keras.optimizers.Adam(0.05)
        model.compile(made, jit_compile=keras.backend.backend() == "jax", **options)

    return do


def quantized(mode, **options):
    options = {"calibration": IDS, **options} if mode in ("gptq", "awq") else options
    return lambda model: model.quantize(mode, **options)


def keras_lora(model):
    for layer in model._flatten_layers():
        if layer.name in ("query", "down", "tokens") and hasattr(layer, "enable_lora"):
            layer.enable_lora(2)
    randomize(model)


def special_tokens(model):
    tokens = ["<s>", "</s>", "<pad>", "<mask>"]
    model.tokenizer = Tokenizer.train("to be or not", kind="char", vocabulary_size=VOCABULARY, special_tokens=tokens)
    model.tokenizer.chat_template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"


def smoothed(model):
    steps = {"total_steps": 20, "warmup_steps": 5, "accumulation": 2}
    compiled(lambda m: adamw(0.01, **steps, model=m), label_smoothing=0.1, z_loss=1e-3)(model)


def set_cache_dtype(model):
    model.cache_dtype = "int8"


def set_generation(model):
    model.generation_config = {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.6, "num_beams": 1}


def anchored(model):
    anchor(model, 0.5, {v.path: np.full(v.shape, 2.0, "float32") for v in model.trainable_variables})
    randomize(model)


LORA = LoRA(rank={"query": 2, "value": 1}, alpha=4.0, bias="lora_only")
STATES = {
    "as it was made": then(),
    "trained weights": randomize,
    "an adapter": adapter(LORA),
    "several adapters": adapter(LORA, LoRA(rank=3), active=["a", "b"], weights=[0.5, 2.0], trained="a"),
    "several adapters, none active": adapter(LORA, IA3(), active=[]),
    "a scaled adapter": then(adapter(LORA), lambda model: model.scale(0.25)),
    "a merged adapter": then(adapter(LORA), lambda model: model.merge()),
    "an adapter with wholly trained layers": adapter(LoRA(rank=2, also_train="final_norm")),
    "a DoRA": adapter(LoRA(rank=2, dora=True, targets="attention.*")),
    "a PiSSA": adapter(LoRA(rank=2, initialization="pissa")),
    "vectors and biases": adapter(IA3(), BitFit(), active=["a", "b"]),
    "a bottleneck": adapter(Bottleneck(dim=3)),
    "a prompt": adapter(PromptTuning(num_tokens=2, initial_ids=(4, 5))),
    "a prompt of a network": adapter(PTuning(num_tokens=2)),
    "a prefix": adapter(PrefixTuning(num_tokens=2)),
    "LoRA of Keras's own": keras_lora,
    "frozen layers": lambda model: model.freeze("embedding", "*.attention.*"),
    "int8": quantized("int8"),
    "int8 with activations": quantized("int8", activations=True),
    "int4": quantized("int4"),
    "int4 in groups": quantized("int4", group_size=4),
    "float8": quantized("float8"),
    "gptq": quantized("gptq"),
    "awq": quantized("awq"),
    "some layers quantized": quantized({"*attention.*": "int8", "*.down": "int4"}),
    "QLoRA": then(quantized("int4"), adapter(LORA)),
    "pruned": then(lambda model: prune(model, Magnitude(0.5)), compiled()),
    "trained for int4": lambda model: quantization_aware(model, "int4", group_size=4),
    "an anchor against forgetting": anchored,
    "cache_dtype": set_cache_dtype,
    "tokenizer, special tokens, chat template": special_tokens,
    "settings of generation": set_generation,
    "compiled": compiled(),
    "AdamW: decay, schedule, accumulation, smoothing": smoothed,
    "Muon": compiled(lambda model: muon(0.01, model=model)),
    "a rate for each layer": compiled(lambda model: layerwise_decay(keras.optimizers.SGD(0.1), model, 0.5)),
    "LoRA+": then(adapter(LORA), compiled(lambda model: lora_plus(keras.optimizers.SGD(0.1), model))),
    "mixed precision, loss scaled": compiled(lambda model: keras.optimizers.LossScaleOptimizer(adamw(0.1))),
}

# Ways of saving ----------------------------------------------------------------------------------------------


def by_preset(model, state, path):
    model.save_to_preset(path / "preset")
    return type(model).from_preset(path / "preset")


def by_keras(model, state, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def by_weights(model, state, path):
    model.save_weights(path / "model.weights.h5")
    again = like(model, state)
    again.load_weights(path / "model.weights.h5")
    return again


def by_config(model, state, path):
    return with_weights_of(model, type(model).from_config(model.get_config()))


def by_clone(model, state, path):
    return with_weights_of(model, keras.models.clone_model(model))


def by_pickle(model, state, path):
    return pickle.loads(pickle.dumps(model))


def by_deepcopy(model, state, path):
    return copy.deepcopy(model)


def by_model_checkpoint(model, state, path):
    fit(model, keras.callbacks.ModelCheckpoint(path / "best.keras"))
    return keras.saving.load_model(path / "best.keras")


def by_weights_checkpoint(model, state, path):
    fit(model, keras.callbacks.ModelCheckpoint(path / "best.weights.h5", save_weights_only=True))
    again = like(model, state)
    if not again.compiled:
        compiled()(again)
    again.load_weights(path / "best.weights.h5")
    return again


def by_backup(model, state, path):
    fit(model, keras.callbacks.BackupAndRestore(path / "backup", delete_checkpoint=False))
    again = like(model, state)
    fit(again, keras.callbacks.BackupAndRestore(path / "backup"))
    return again


def by_checkpoint(model, state, path):
    fit(model, Checkpoint(path / "checkpoints"))
    again = like(model, state)
    fit(again, Checkpoint(path / "checkpoints", resume=True))
    return again


def like(model, state):
    """Another model to which the same was done, of other weights."""
    again = make(type(model).__name__, seed=1)
    STATES[state](again)
    return again


def with_weights_of(model, again):
    again.set_weights(model.get_weights())
    return again


def fit(model, callback):
    if not model.compiled:
        compiled()(model)
    model.fit(inputs_of(model), batch_size=4, verbose=0, callbacks=[callback])


WAYS = {"save_to_preset": by_preset, "save(….keras)": by_keras}
WEIGHTS_OR_COPIES = {
    "save_weights": by_weights,
    "clone_model": by_clone,
    "get_config": by_config,
    "pickle": by_pickle,
    "deepcopy": by_deepcopy,
}
TRAINING_WAYS = {
    "ModelCheckpoint": by_model_checkpoint,
    "ModelCheckpoint(save_weights_only=True)": by_weights_checkpoint,
    "BackupAndRestore": by_backup,
    "training.Checkpoint": by_checkpoint,
}

# What comes back ---------------------------------------------------------------------------------------------

KEPT = "kept"  # all that is compared below
ANSWERS = "answers"  # what the model answers, and its options; not what belongs to its training
ARCHITECTURE = "kept, but for the optimizer"  # Which weights are pruned is found in them when training begins.
MERGED = "in the weights"  # the same, and the adapter is no longer beside the weights
REFUSED = "refused"  # with a sentence that names what to do instead

WITH_ADAPTER = (
    "an adapter",
    "several adapters",
    "a scaled adapter",
    "an adapter with wholly trained layers",
    "a DoRA",
    "a PiSSA",
    "vectors and biases",
    "a bottleneck",
    "a prompt",
    "a prompt of a network",
    "a prefix",
    "QLoRA",
    "LoRA+",
)
IN_THE_WEIGHTS = ("a merged adapter", "LoRA of Keras's own")
# (states, ways): what the sentence says. The first that fits.
REFUSALS = {
    (WITH_ADAPTER, ("save_to_preset",)): r"save_adapter.*merge\(\).*disable_adapter",
    (("trained for int4",), ("save_to_preset",)): r"quantize\(.*quantization_unaware",
    (("a merged adapter",), ("save_weights",)): r"unmerge\(\)",
    (IN_THE_WEIGHTS, ("get_config", "clone_model")): "set_weights",
}


def verdict(state: str, way: str) -> str:
    """What comes back of a state that was saved in a way."""
    if refusal(state, way):
        return REFUSED
    if state in IN_THE_WEIGHTS:
        return MERGED
    return {"save_to_preset": ANSWERS, "clone_model": ARCHITECTURE, "get_config": ARCHITECTURE}.get(way, KEPT)


def refusal(state: str, way: str) -> str | None:
    """What the sentence says that refuses a state, if it is refused."""
    return next((says for (states, ways), says in REFUSALS.items() if state in states and way in ways), None)


ATTRIBUTES = ("cache_dtype",)  # of a model, that are no arguments of its constructor
NOT_OPTIONS = ("name", "dtype", "tokenizer", "structure", "generation_config")
ROLES = ("start", "end", "pad", "mask", "unk")
OF_A_TOKENIZER = ("fingerprint", "chat_template", *(f"{role}_token_id" for role in ROLES))


def facts(model) -> dict:
    """All that is compared, read from the model itself."""
    config = model.get_config()
    state, zeros = state_of(model), zeros_of(model)
    layers = {layer.path: layer for layer in model._flatten_layers()}
    found = {
        "answers": [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(inputs_of(model)))],
        "options": {name: value for name, value in config.items() if name not in NOT_OPTIONS},
        **{name: getattr(model, name) for name in ATTRIBUTES},
        "generation": config["generation_config"],
        "tokenizer": model.tokenizer and {name: getattr(model.tokenizer, name) for name in OF_A_TOKENIZER},
        "adapters": model.adapters,
        "active": state and {name: each.amount for name, each in state.all.items()},
        "trained": state and (state.trained, state.fingerprint),
        "longest": model.config.max_sequence_length,
        "quantized": {path: layer.dtype_policy.name for path, layer in layers.items()},
        "rounded": {path: getattr(layer, "scheme", None) for path, layer in layers.items()},
        "zeros": [keras.ops.convert_to_numpy(each.mask) for each in zeros.values()],
        "zeros at": list(zeros),
        "flags": [(v.path, v.trainable) for v in model.weights],
        "weights": [keras.ops.convert_to_numpy(v.value) for v in model.weights],
        "penalty": [float(keras.ops.convert_to_numpy(loss)) for loss in model.losses],
        "compiled": model.compiled,
    }
    return {**found, **(training(model) if model.compiled else {})}


def training(model) -> dict:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {
        "optimizer": (type(model.optimizer).__name__, {**optimizer.get_config(), "name": None}),
        "decayed": [v.path for v in model.trainable_variables if optimizer._use_weight_decay(v)],
        "rates": [getattr(optimizer, "rate_factor", lambda v: 1.0)(v) for v in model.trainable_variables],
        "optimizer's variables": [keras.ops.convert_to_numpy(v.value) for v in model.optimizer.variables],
        "loss": (model.uses_default_loss, model.label_smoothing, model.z_loss),
    }


OF_ANSWERS = ("answers", "options", "generation", "tokenizer", *ATTRIBUTES)
OF_TRAINING = ("compiled", "optimizer", "decayed", "rates", "optimizer's variables", "loss")


def assert_same(model, again, what: str) -> None:
    one, other = facts(model), facts(again)
    names = {KEPT: one, ARCHITECTURE: [name for name in one if name not in (*OF_TRAINING, "zeros")]}
    for name in names.get(what, OF_ANSWERS):
        mine, its = one[name], other[name]
        if name == "generation":  # A preset has the tokenizer's special tokens there, too.
            its = {key: value for key, value in its.items() if key in mine or what != ANSWERS}
        if isinstance(mine, list) and mine and isinstance(mine[0], np.ndarray):
            assert len(mine) == len(its), name
            for a, b in zip(mine, its):
                np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
        else:
            assert mine == its, name
