"""`model.quantize`: every shape of model, every mode, on every backend; saved, loaded, and what is refused."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops
from keras.quantizers import AWQConfig, GPTQConfig, Int4QuantizationConfig, Int8QuantizationConfig
from tiny_models import CALIBRATION, IDS, make

import kerasllm
from kerasllm.compression.calibration import calibration_rows, first_batches, observe
from kerasllm.compression.chain import chain_of
from kerasllm.compression.post_training import quantized_layers
from kerasllm.compression.report import layer_errors
from kerasllm.compression.rounding import nearest, output_error
from kerasllm.compression.schemes import float_weights, quantizable_layers
from kerasllm.layers.inner import inner
from kerasllm.tuning import LoRA


def output(model, inputs):
    return ops.convert_to_numpy(model(inputs))


def numpy(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def with_float_weights(quantized, model):
    """A float model with the weights that a quantized one stands for."""
    layers = quantizable_layers(model)
    for name, layer in quantizable_layers(quantized).items():
        matrices = [numpy(part) for part in float_weights(layer)]
        table = isinstance(layer, keras.layers.ReversibleEmbedding)
        (layers[name]._embeddings if table else layers[name]._kernel).assign(matrices[0])
        if len(matrices) > 1:
            layers[name].reverse_embeddings.assign(matrices[1])
    return model


@pytest.mark.parametrize(
    ("kind", "mode", "bound"),
    [
        ("gpt", "gptq", 0.25),
        ("llama", "int4", 0.25),
        ("bert", "awq", 0.25),
        ("classifier", {"*": "int8", "block_1.*": "int4", "classifier": "float"}, 0.25),
        ("t5", "int8", 0.02),
    ],
)
def test_quantized_saved_loaded(kind, mode, bound, tmp_path):
    model, inputs = make(kind)
    before = output(model, inputs)
    model.quantize(mode, **({"calibration": CALIBRATION} if mode in ("gptq", "awq") else {}))
    after = output(model, inputs)
    assert 0 < layer_errors(make(kind)[0], model)[0]["error"] < bound
    assert np.abs(after - before).max() > 0
    # What a report, a loss or an export reads of it is what it computes with.
    oracle = with_float_weights(model, make(kind)[0])
    np.testing.assert_allclose(after, output(oracle, inputs), atol=2e-4 * np.abs(after).max())

    model.save_to_preset(tmp_path)
    loaded = type(model).from_preset(tmp_path)
    assert quantized_layers(loaded) == quantized_layers(model)
    np.testing.assert_allclose(output(loaded, inputs), after, atol=1e-6)
    stored = sum(np.prod(v.shape) * np.dtype(v.dtype).itemsize for v in model.weights)
    assert stored < (tmp_path / "model.safetensors").stat().st_size < stored + 100 * len(model.weights) + 1000


def test_tokens_and_likelihoods_come_from_the_quantized_weights():
    model, inputs = make("gpt")
    model.generate([1, 2, 3], max_new_tokens=2)
    model.quantize("int4")
    made = [1, 2, 3]
    for _ in range(4):
        logits = output(model, {"token_ids": np.array([(made + [0] * 7)[:7]], "int32")})
        made.append(int(logits[0, len(made) - 1].argmax()))
    assert model.generate([1, 2, 3], max_new_tokens=4) == made
    log_probs = output(model, inputs)
    log_probs = log_probs - np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(log_probs[:, :-1], IDS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(model.score(IDS), expected, atol=1e-4)


def test_dynamic_activations_and_float8():
    model, inputs = make("gpt", num_layers=1)
    before = output(model, inputs)
    model.quantize("int8", activations=True)
    assert all(scheme.activations for scheme in quantized_layers(model).values())
    assert 0 < np.abs(output(model, inputs) - before).mean() < 0.05 * np.abs(before).mean()
    model, _ = make("gpt", num_layers=1)
    model.quantize("float8")
    assert "embedding.tokens" not in quantized_layers(model)
    assert np.abs(output(model, inputs) - before).mean() < 0.2 * np.abs(before).mean()


@pytest.mark.parametrize("kind", ["gpt", "bert", "llama", "t5"])
def test_the_chain_is_the_network(kind):
    model, inputs = make(kind, **({"sliding_window": 3} if kind == "gpt" else {}))
    if kind == "t5":
        inputs = {"encoder_token_ids": IDS, "decoder_token_ids": IDS[:, ::-1]}
        rows = np.concatenate([IDS, IDS[:, ::-1]], axis=1)
    else:
        rows = IDS
    first, *steps = chain_of(model)
    x = first(ops.convert_to_tensor(rows))
    for step in steps:
        x = step(x)
    stack = model.transformer.decoder if kind == "t5" else model.transformer
    x = x[:, IDS.shape[1] :] if kind == "t5" else x
    x = inner(stack.final_norm, x) if model.config.norm_position == "pre" else x
    np.testing.assert_allclose(numpy(x), numpy(model.transformer(training=False, **inputs)), atol=1e-5)
    structure = model.get_quantization_layer_structure("gptq")
    assert len(structure["sequential_blocks"]) == 2 and len(structure["pre_block_layers"]) == 1


@pytest.mark.parametrize("mode", ["gptq", "awq"])
def test_calibrated_layers_err_less_than_rounded_ones(mode):
    model, _ = make("gpt", num_layers=1)
    layers = {name: layer for name, layer in quantizable_layers(model).items() if name.startswith("block_0")}
    kernels = {name: numpy(layer.kernel) for name, layer in layers.items()}
    first, block = chain_of(model)
    seen = observe(block, layers, first_batches(first, calibration_rows(model, CALIBRATION)))
    model.quantize(mode, calibration=CALIBRATION, group_size=-1)
    for name, layer in layers.items():
        gram, kernel = seen[name].gram, kernels[name]
        error = output_error(kernel, numpy(float_weights(layer)[0]), gram)
        assert error < output_error(kernel, nearest(kernel, 4).values(), gram) * (1 + 1e-6), name


def test_what_keras_says_of_it_works():
    model, inputs = make("gpt", num_layers=1)
    model.quantize(keras.quantizers.Int4QuantizationConfig(block_size=8), filters="query|up")
    assert set(quantized_layers(model)) == {"block_0.attention.query", "block_0.feed_forward.up"}
    assert {scheme.group_size for scheme in quantized_layers(model).values()} == {8}
    model, _ = make("gpt", num_layers=1)
    config = keras.quantizers.GPTQConfig(
        CALIBRATION, None, weight_bits=3, num_samples=4, sequence_length=8, group_size=4
    )
    model.quantize(config=config, keep=["*.down"], embeddings=False)
    names = {f"block_0.attention.{name}" for name in ("query", "key", "value", "output_dense")}
    assert set(quantized_layers(model)) == {*names, "block_0.feed_forward.up"}
    assert {scheme.policy for scheme in quantized_layers(model).values()} == {"gptq/3/4"}
    assert np.isfinite(output(model, inputs)).all()


def test_calibration_rows_are_the_same_each_time():
    tokenizer = kerasllm.Tokenizer.train(["to be or not to be, that is the question"], kind="char")
    config = kerasllm.TransformerConfig(tokenizer.vocabulary_size, 16, 1, num_heads=1, hidden_dim=8)
    model = kerasllm.CausalLM(config, tokenizer)
    texts = ["to be or not to be", "that is the question"] * 5
    rows = calibration_rows(model, texts, 4, 64)
    assert rows.shape == (4, 16)
    np.testing.assert_array_equal(rows, calibration_rows(model, texts, 4, 64))
    assert tokenizer.decode([int(i) for i in rows[0]]) == "".join(texts)[:16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int7",), "int8, int4, float8, gptq, awq"),
        ((None,), "int8, int4"),
        (({"no.such": "int8"},), "No layer matches the target 'no.such'"),
        (("int8", "int4"), "one of Keras's"),
        ({"mode": "int8", "keep": "block_0.attention.quer"}, "Did you mean"),
        ({"mode": "int4", "group_size": 5}, "must divide the inputs of each layer, and 'embedding.tokens' has 16"),
        ({"mode": "int4", "group_size": 0}, "positive"),
        ({"mode": "int8", "group_size": 8}, "no groups"),
        ({"mode": "int4", "activations": True}, "Only int8"),
        ({"mode": "int8", "keep": "*"}, "No layer is left"),
        ({"mode": "gptq", "calibration": [[1, 2, 3]]}, "too short: it has 3 tokens"),
        ({"mode": "gptq", "calibration": [[99] * 50]}, "Token id out of range: 99"),
        ({"mode": "gptq"}, "`calibration` must be rows of token ids.*no tokenizer"),
        ({"mode": "awq", "calibration": ["text"]}, "`calibration` must be rows of token ids.*no tokenizer"),
        ({"mode": "awq", "calibration": []}, "`calibration` is empty"),
        ({"mode": "gptq", "calibration": [{"token_ids": CALIBRATION}]}, "batches of several arrays"),
        ({"mode": "gptq", "calibration": CALIBRATION * 1.5}, "must be integers"),
        ({"mode": "int8", "calibration": CALIBRATION}, "Only gptq and awq look at calibration data"),
        ({"mode": "gptq", "calibration": CALIBRATION, "activations": True}, "Only int8"),
        ({"config": Int4QuantizationConfig(block_size=-1), "group_size": 16}, "With a `config`, .*block_size"),
        ({"config": Int8QuantizationConfig(None, None), "activations": True}, "With a `config`"),
        ({"config": GPTQConfig(CALIBRATION, None, per_channel=False)}, "config.per_channel"),
        ({"config": AWQConfig(["text"], tokenizer=len)}, "config.tokenizer"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(arguments, message):
    model, _ = make("gpt", num_layers=1)
    weights = [id(v) for v in model.weights]
    with pytest.raises(ValueError, match=message):
        model.quantize(**arguments) if isinstance(arguments, dict) else model.quantize(*arguments)
    assert weights == [id(v) for v in model.weights] and not quantized_layers(model)


def test_twice_and_with_adapters_is_refused():
    model, _ = make("gpt", num_layers=1)
    model.quantize("int8", keep="*.up")
    with pytest.raises(ValueError, match=r"quantized already: .* is int8"):
        model.quantize("int4")
    model, _ = make("gpt", num_layers=1)
    model.add_adapter("mine", LoRA(rank=2))
    with pytest.raises(ValueError, match=r"has adapters \(mine\)"):
        model.quantize("int8")


def test_a_directory_that_disagrees_with_itself_is_refused(tmp_path):
    model, _ = make("gpt", num_layers=1)
    model.quantize("int4")
    model.save_to_preset(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())

    def changed(function):
        values = json.loads(json.dumps(whole))
        function(values["quantization"][0])
        (tmp_path / "config.json").write_text(json.dumps(values))
        return pytest.raises(ValueError)

    for change, message in [
        (lambda s: s.update(group_size=8), "is F32"),
        (lambda s: s["layers"].remove("block_0.attention.query"), "knows nothing of"),
        (lambda s: s["layers"].append("block_7.attention.query"), "block_7.attention.query"),
        (lambda s: s.update(mode="int8", bits=8, group_size=-1), "knows nothing of|is I8"),
        (lambda s: s.update(mode="int5"), "int5"),
        (lambda s: s.pop("bits"), "Unknown entry"),
    ]:
        with changed(change) as raised:
            kerasllm.CausalLM.from_preset(tmp_path)
        assert re.search(message, str(raised.value)), raised.value
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.warns(UserWarning, match="classifier"):
        kerasllm.TextClassifier.from_preset(tmp_path)
