"""One interface for all adapters: added, trained, saved, loaded, swapped, merged, deleted; on any Keras model."""

import json

import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import ops

import kerasllm
from kerasllm import tuning
from kerasllm.compression import quantization_aware
from kerasllm.generation.programs import programs_of
from kerasllm.tuning import IA3, BitFit, Bottleneck, LayerNormTuning, LoRA, PromptTuning
from kerasllm.tuning.model_adapters import adapter_of

CONFIG = kerasllm.TransformerConfig(31, 16, num_layers=1, num_heads=2, hidden_dim=8, initializer_range=0.3)
TOKENS = np.random.default_rng(0).integers(0, 31, (4, 9)).astype("int32")
METHODS = {
    "lora": LoRA(rank=2, dropout=0.1, bias="lora_only"),
    "dora": LoRA(rank=2, dora=True, targets=["attention.*", "re:.*feed_forward\\.(up|down)"]),
    "pissa": LoRA(rank={"query": 2, "value": 3}, initialization="pissa", rslora=True),
    "ia3": IA3(),
    "bottleneck": Bottleneck(dim=3),
    "bitfit": BitFit(),
    "norms": LayerNormTuning(),
}
NOT_MERGED = ("bottleneck",)


def new_model():
    keras.utils.set_random_seed(3)
    return kerasllm.CausalLM(CONFIG)


def compiled(model, **options):
    model.compile(keras.optimizers.Adam(0.05), jit_compile=keras.backend.backend() == "jax", **options)
    return model


def output(model, x=TOKENS):
    return ops.convert_to_numpy(model(x))


def values(variables):
    return [ops.convert_to_numpy(v.value).copy() for v in variables]


def randomize(model, name, size=0.2):
    for i, variable in enumerate(adapter_of(model, name).variables):
        if variable.trainable:
            variable.assign(variable + size * np.random.default_rng(i).normal(size=variable.shape))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_added_saved_loaded_merged_deleted(method, tmp_path):
    model = new_model()
    base, weights, variables = output(model), values(model.weights), list(model.weights)
    model.add_adapter("mine", METHODS[method])
    close(output(model), base)  # An adapter begins as nothing.
    randomize(model, "mine")
    adapted = output(model)
    assert np.abs(adapted - base).max() > 1e-2

    model.save_adapter(tmp_path / "adapter", "mine")
    with model.disable_adapter():
        model.save_to_preset(tmp_path / "base")
    again = kerasllm.CausalLM.from_preset(tmp_path / "base")
    close(output(again), base)
    again.load_adapter(tmp_path / "adapter")
    close(output(again), adapted)

    with model.disable_adapter():
        close(output(model), base)
    model.scale(0.5)
    half = output(model)
    assert np.abs(half - adapted).max() > 1e-3
    if method in NOT_MERGED:
        with pytest.raises(ValueError, match="cannot be merged"):
            model.merge()
    else:
        for factor, expected in ((0.5, half), (1.0, adapted)):
            model.scale(factor)
            model.merge()
            close(output(model), expected)
            model.save_to_preset(tmp_path / f"merged_{factor}")
            close(output(kerasllm.CausalLM.from_preset(tmp_path / f"merged_{factor}")), expected)
            model.unmerge()
            assert all((a == b).all() for a, b in zip(values(variables), weights))
    model.delete_adapter("mine")
    assert (output(model) == base).all()
    assert model.adapters == {} and {id(v) for v in model.weights} == {id(v) for v in variables}
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in variables}


def test_training_changes_the_adapter_alone_and_switching_compiles_nothing(monkeypatch):
    model = new_model()
    base, variables = values(model.weights), list(model.weights)
    model.add_adapter("other", METHODS["lora"])
    randomize(model, "other")
    model.add_adapter("mine", LoRA(rank=2, targets=["attention.*", "feed_forward.*"]))
    other = values(adapter_of(model, "other").variables)
    compiled(model)
    assert {id(v) for v in model.trainable_variables} == {id(v) for v in adapter_of(model, "mine").variables}
    losses = model.fit(TOKENS, epochs=50, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all((a == b).all() for a, b in zip(values(variables), base))
    assert all((a == b).all() for a, b in zip(values(adapter_of(model, "other").variables), other))

    traces, call = [], type(model.transformer).call
    monkeypatch.setattr(type(model.transformer), "call", lambda *a, **k: traces.append(1) or call(*a, **k))
    both = model.predict(TOKENS, verbose=0)
    prompt = [1, 2, 3]
    made = model.generate(prompt, max_new_tokens=6, stop_token_ids=[])
    before, compilations = len(traces), programs_of(model).compilations
    outputs, texts = [both], [made]
    for names, weights in (("other", None), (["mine", "other"], [0.5, 0.5]), ([], None), ("mine", None)):
        model.set_adapter(names, weights)
        outputs.append(model.predict(TOKENS, verbose=0))
        texts.append(model.generate(prompt, max_new_tokens=6, stop_token_ids=[]))
    if keras.backend.backend() != "torch":  # Which runs `call` at every step, and compiles nothing here.
        assert len(traces) == before
    assert programs_of(model).compilations == compilations > 0
    close(outputs[4], outputs[0])
    assert texts[4] == texts[0] and texts[3] != texts[0]
    assert np.abs(outputs[1] - outputs[3]).max() > 1e-2 and np.abs(outputs[2] - outputs[1]).max() > 1e-2


def test_the_weighted_sum_is_that_of_the_kernels_and_merges():
    model = new_model()
    kernel = model.transformer.blocks[0].attention.query.kernel
    start, changes = values([kernel])[0], []
    for i, name in enumerate(("a", "b")):
        model.add_adapter(name, LoRA(rank=2, targets="attention.query", seed=i))
        randomize(model, name)
        model.merge()
        changes.append(values([kernel])[0] - start)
        model.unmerge()
    model.set_adapter(["a", "b"], [0.7, -0.3])
    summed = output(model)
    model.merge()
    close(values([kernel])[0], start + 0.7 * changes[0] - 0.3 * changes[1])
    close(output(model), summed)
    model.unmerge()

    tuning.combine_adapters(model, ["a", "b"], "linear", [0.7, -0.3])
    close(output(model), summed)
    model.scale(2.0, "a")
    tuning.combine_adapters(model, ["a", "b"], "scaled", [0.35, -0.3])  # What is scaled counts as much here.
    close(output(model), summed)
    model.delete_adapter("scaled")
    model.scale(1.0, "a")
    tuning.combine_adapters(model, ["a", "b"], "ties", [1.0, 1.0], method="ties", density=1.0)
    model.merge()
    found = values([kernel])[0] - start
    model.unmerge()
    u, s, v = np.linalg.svd(brute_force_ties(*changes))
    np.testing.assert_allclose(found, u[:, :4] * s[:4] @ v[:4], atol=1e-4)
    tuning.combine_adapters(model, ["a", "b"], "dare", method="dare", density=1.0)
    model.merge()
    np.testing.assert_allclose(values([kernel])[0] - start, changes[0] + changes[1], atol=1e-4)


def brute_force_ties(a, b):
    """Of two numbers, the one of the heavier sign, or their mean."""
    merged = np.zeros_like(a)
    for i in np.ndindex(*a.shape):
        agreeing = [x for x in (a[i], b[i]) if x * (a[i] + b[i]) > 0]
        merged[i] = np.mean(agreeing) if agreeing else 0.0
    return merged


def own_model(units=6):
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(12, 8, name="words")(inputs)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", name="heads")(x)
    x = keras.layers.EinsumDense("abde,dec->abc", (None, 8), activation="tanh", name="joined")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(units, activation="softmax", name="answer")(x))


def test_a_users_own_keras_model(tmp_path):
    keras.utils.set_random_seed(5)
    model = own_model()
    x = np.random.default_rng(0).integers(0, 12, (16, 5))
    y = x[:, 0] % 6
    base, weights = output(model, x), values(model.weights)
    variables = list(model.weights)
    targets = ["words", "heads", "joined"]
    tuning.add_adapter(model, "mine", LoRA(rank=2, targets=targets, also_train="answer"))
    close(output(model, x), base)
    model.compile(
        tuning.lora_plus(keras.optimizers.Adam(0.02), model, ratio=4),
        loss="sparse_categorical_crossentropy",
        jit_compile=keras.backend.backend() == "jax",
    )
    losses = model.fit(x, y, epochs=20, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all((a == b).all() for a, b in zip(values(variables), weights))
    adapted = output(model, x)
    tuning.merge(model)
    close(output(model, x), adapted)
    tuning.unmerge(model)
    assert all((a == b).all() for a, b in zip(values(variables), weights))
    tuning.save_adapter(model, tmp_path, "mine")
    other = own_model()
    with pytest.raises(ValueError, match="another base"):
        tuning.load_adapter(other, tmp_path)
    other.set_weights(weights)
    tuning.load_adapter(other, tmp_path)
    close(output(other, x), adapted)


def test_lora_plus_moves_b_faster():
    """A step of plain gradient descent moves each factor by its own rate times its gradient."""
    moved = []
    for ratio in (1.0, 3.0):
        model = new_model()
        model.add_adapter("mine", LoRA(rank=2, initialization="orthogonal"))
        before = values(model.trainable_variables)
        optimizer = tuning.lora_plus(keras.optimizers.SGD(0.1), model, ratio)
        model.compile(optimizer, jit_compile=keras.backend.backend() == "jax")
        model.fit(TOKENS, batch_size=4, shuffle=False, verbose=0)
        moved.append([b - a for a, b in zip(before, values(model.trainable_variables))])
    for variable, once, faster in zip(model.trainable_variables, *moved):
        np.testing.assert_allclose(faster, once * (3 if variable.name == "lora_b" else 1), atol=1e-6, rtol=1e-3)
        assert np.abs(once).max() > 1e-5


@pytest.mark.parametrize("mode", [pytest.param("int8", marks=pytest.mark.one_backend), "int4"])
def test_over_a_quantized_base(mode):
    model = new_model()
    projections = ["query", "key", "value", "output_dense", "up", "down"]
    model.quantize(mode, type_check=False, filters=projections)
    base, kernels = output(model), values(model.weights)
    variables = list(model.weights)
    model.enable_lora(rank=2, targets=["attention.*", "feed_forward.*"])
    assert model.transformer.blocks[0].attention.query.quantization_mode == mode
    close(output(model), base)
    compiled(model)
    began = values(model.trainable_variables)
    losses = model.fit(TOKENS, epochs=15, batch_size=4, verbose=0).history["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert all((a == b).all() for a, b in zip(values(variables), kernels))
    assert model.transformer.recompute  # Which changes nothing but the memory it takes.
    model.transformer.recompute = False
    for variable, value in zip(model.trainable_variables, began):
        variable.assign(value)
    compiled(model)
    again = model.fit(TOKENS, epochs=15, batch_size=4, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, again, rtol=1e-4)
    with pytest.raises(ValueError, match="is quantized"):
        model.merge()
    with pytest.raises(ValueError, match="DoRA and PiSSA"):
        model.add_adapter("dora", LoRA(rank=2, dora=True))


def test_a_classifiers_new_head_goes_with_its_adapter(tmp_path):
    keras.utils.set_random_seed(3)
    model = kerasllm.TextClassifier(CONFIG.replace(dropout=0.1), num_labels=3)
    base = output(model)
    model.add_adapter("mine", LoRA(rank=2))
    compiled(model).fit(TOKENS, np.array([0, 1, 2, 0]), epochs=3, verbose=0)
    names = {path.split("/")[-1] for path in (v.path for v in model.trainable_variables)}
    assert names == {"lora_a", "lora_b", "kernel_offset", "bias_offset"}
    adapted = output(model)
    model.save_adapter(tmp_path, "mine")
    model.delete_adapter("mine")
    assert (output(model) == base).all()
    model.load_adapter(tmp_path)
    close(output(model), adapted)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: LoRA(rank=0), "`rank` must be a whole number of at least 1. Received: rank=0"),
        (
            lambda: LoRA(rank=9, targets="attention.value"),
            "rank=9 for 'block_0.attention.value', which is 8 by 8",
        ),
        (lambda: LoRA(targets="atention.*"), "Did you mean 'attention"),
        (lambda: LoRA(targets="*.quary"), "Did you mean 'query'"),
        (lambda: LoRA(targets="embedding.positions"), "No layer matches"),
        (lambda: LoRA(targets="embedding.tokens", dora=True), "DoRA goes to Dense"),
        (lambda: LoRA(rank={"query": 2}, targets=["query", "key"]), "No pattern in `rank` matches"),
        (lambda: LoRA(dropout=1.0), "`dropout`"),
        (lambda: LoRA(initialization="zero"), "`initialization` must be one of"),
        (lambda: LoRA(targets="query", also_train="query"), "as both"),
        (lambda: LoRA(rank={"query": 2, "*": 3, "valeu": 4}, targets="attention.*"), "Did you mean 'value'"),
        (lambda: LoRA(rank=2, alpha={"quary": 4.0}, targets="attention.*"), "Did you mean 'query'"),
        (lambda: IA3(on_input="feed_forward.dwon"), "Did you mean"),
        (lambda: PromptTuning(num_tokens=2, initial_ids=[1, 2, 3]), "`initial_ids` must be 1 to num_tokens=2"),
        (lambda: PromptTuning(num_tokens=2, initial_ids=[]), "`initial_ids` must be 1 to num_tokens=2"),
        (lambda: Bottleneck(place="inside"), "`place` must be one of"),
        (lambda: Bottleneck(dim=0), "`dim`"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    model = new_model()
    count = len(model.weights)
    with pytest.raises(ValueError) as error:
        model.add_adapter("mine", settings())
    assert message in str(error.value)
    assert len(model.weights) == count and model.adapters == {} and model.trainable_variables


@pytest.mark.one_backend
def test_calls_at_the_wrong_time(tmp_path):
    model = new_model()
    for call in (model.merge, model.unmerge, lambda: model.scale(2.0), lambda: model.set_adapter("mine")):
        with pytest.raises(ValueError, match="The model has no adapters"):
            call()
    with pytest.raises(TypeError, match="such as LoRA"):
        model.add_adapter("mine", {"rank": 8})
    with pytest.raises(ValueError, match="name is made of"):
        model.add_adapter("my/adapter", LoRA(rank=2))
    model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match="'mine' is there already"):
        model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match=r"no adapter 'yours'. Adapters: mine"):
        model.set_adapter("yours")
    with pytest.raises(ValueError, match="one weight each"):
        model.set_adapter(["mine"], [1.0, 2.0])
    with pytest.raises(ValueError, match="No adapters are merged"):
        model.unmerge()
    model.merge()
    for call in (model.merge, lambda: model.add_adapter("x", LoRA(rank=2)), lambda: model.delete_adapter("mine")):
        with pytest.raises(ValueError, match="merged into the base"):
            call()
    model.compile()
    with pytest.raises(ValueError, match="merged into the base"):
        model.fit(TOKENS)
    model.unmerge()
    model.set_adapter([])
    with pytest.raises(ValueError, match="is not active"):
        model.fit(TOKENS)
    with pytest.raises(ValueError, match="nothing to merge"):
        model.merge()
    model.delete_adapter("mine")
    model.trainable = False
    with pytest.raises(ValueError, match="Nothing in the model is trainable"):
        model.fit(TOKENS)
    model.trainable = True
    compiled(model).fit(TOKENS, verbose=0)
    model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match="Compile it again"):
        model.fit(TOKENS)


@pytest.mark.one_backend
def test_files_that_are_wrong(tmp_path):
    model = new_model()
    model.add_adapter("mine", LoRA(rank=2))
    model.save_adapter(tmp_path / "good", "mine")
    config = json.loads((tmp_path / "good/adapter_config.json").read_text())
    weights = (tmp_path / "good/adapter_model.safetensors").read_bytes()
    assert len(weights) < 4096 and config["kerasllm"]["fingerprint"]
    model.delete_adapter("mine")

    def attempt(changes, content=weights):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad/adapter_config.json").write_text(json.dumps({**config, **changes}))
        (tmp_path / "bad/adapter_model.safetensors").write_bytes(content)
        model.load_adapter(tmp_path / "bad")

    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        model.load_adapter(tmp_path)
    with pytest.raises(ValueError, match="fingerprint is 0000"):
        attempt({"kerasllm": {"fingerprint": "0000"}})
    with pytest.raises(ValueError, match="peft_type='VERA'"):
        attempt({"peft_type": "VERA"})
    with pytest.raises(ValueError, match="lora_bias=True"):
        attempt({"lora_bias": True})
    with pytest.raises(ValueError, match="damaged"):
        attempt({}, weights[:-8])
    other = kerasllm.CausalLM(kerasllm.TransformerConfig(31, 16, num_layers=1, num_heads=2, hidden_dim=12))
    with pytest.raises(ValueError, match="another base"):
        other.load_adapter(tmp_path / "good")
    (tmp_path / "good/adapter_config.json").write_text(json.dumps({**config, "kerasllm": {}}))
    with pytest.raises(ValueError, match="do not fit: A is"):
        other.load_adapter(tmp_path / "good")
    assert other.adapters == {} and model.adapters == {}


@pytest.mark.one_backend
def test_a_file_of_our_own_that_lacks_a_weight(tmp_path):
    model = new_model()
    model.add_adapter("mine", BitFit())
    model.save_adapter(tmp_path, "mine")
    model.delete_adapter("mine")
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    name = tensors.popitem()[0]
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
        model.load_adapter(tmp_path)
    assert not model.adapters


@pytest.mark.one_backend
def test_a_classifier_s_adapter_goes_to_the_same_labels(tmp_path):
    def classifier(*labels):
        keras.utils.set_random_seed(3)
        return kerasllm.TextClassifier(CONFIG, labels=labels)

    model = classifier("sad", "glad")
    model.add_adapter("mine", LoRA(rank=2))
    model.save_adapter(tmp_path, "mine")
    classifier("sad", "glad").load_adapter(tmp_path)
    for other in (classifier("glad", "sad"), classifier("a", "b")):
        with pytest.raises(ValueError, match=r"labels sad, glad, in this order, .*has .*labels=\['sad', 'glad'\]"):
            other.load_adapter(tmp_path)


@pytest.mark.one_backend
def test_what_is_trained_for_quantization_is_not_merged_into():
    model = new_model()
    quantization_aware(model, "int4", group_size=4)
    model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match=r"quantization_unaware\(model\) first"):
        model.merge()
