"""The ONNX graphs compute the models' outputs, for every family and task, and the decoder the models' tokens."""

import keras
import numpy as np
import pytest

import kerasllm
from kerasllm.serving.onnx_models import save_onnx

onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.one_backend

IDS = np.random.default_rng(0).integers(0, 48, (2, 7)).astype("int32")
MASK = np.array([[1] * 5 + [0] * 2, [1] * 7], "int32")
LLAMA = {
    "positions": "rotary",
    "norm": "rms_norm",
    "gated": True,
    "activation": "silu",
    "use_bias": False,
    "num_kv_heads": 2,
    "tie_embeddings": False,
}
BERT = {"causal": False, "num_segments": 2, "embedding_norm": True, "norm_position": "post", "pooler": True}
BERT |= {"activation": "gelu"}
SCALING = {"type": "linear", "factor": 2.0}
FORWARDS = {
    "gpt": ("CausalLM", {}, {}),
    "llama": ("CausalLM", {**LLAMA, "sliding_window": 3, "rope_scaling": SCALING}, {}),
    "relative": ("CausalLM", {"positions": "relative", "scale_logits": True, "num_kv_heads": 2}, {}),
    "vaswani": ("CausalLM", {"positions": "sinusoidal", "scale_embeddings": True, "activation": "relu"}, {}),
    "bert": ("MaskedLM", BERT, {}),
    "pairs": ("PairedMaskedLM", BERT, {}),
    "electra": ("ReplacedTokenDetector", BERT, {}),
    "classifier": ("TextClassifier", BERT, {"num_labels": 3}),
    "gpt-classifier": ("TextClassifier", {}, {"num_labels": 3}),
    "tokens": ("TokenClassifier", BERT, {"num_labels": 3}),
    "embedder": ("TextEmbedder", BERT, {}),
    "plain-embedder": ("TextEmbedder", BERT, {"pooling": "first", "normalize": False}),
}


def make(task, changes, options):
    keras.utils.set_random_seed(3)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24, "initializer_range": 0.4}
    if task == "Seq2SeqLM":
        config = kerasllm.TransformerConfig.from_name(
            "t5_tiny", vocabulary_size=48, max_sequence_length=24, num_encoder_layers=1, **sizes, **changes
        )
    else:
        config = kerasllm.TransformerConfig(48, 24, **sizes, **changes)
    model = getattr(kerasllm, task)(config, **options)
    for variable in model.weights:  # biases and scales too must be seen to count
        if variable.dtype == "float32" and len(variable.shape) == 1:
            variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2, seed=len(variable.path)))
    return model


def run(path, inputs):
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    asked = {x.name for x in session.get_inputs()}
    arrays = {k: v.astype("int64") if v.dtype.kind in "ib" else v for k, v in inputs.items() if k in asked}
    return dict(zip(names, session.run(names, arrays)))


@pytest.mark.parametrize("kind", FORWARDS)
def test_the_forward_pass(kind, tmp_path):
    model = make(*FORWARDS[kind])
    save_onnx(model, tmp_path)
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    if model.config.num_segments:
        inputs["segment_ids"] = IDS % 2
    wanted = keras.tree.map_structure(keras.ops.convert_to_numpy, model(inputs, training=False))
    wanted = wanted if isinstance(wanted, dict) else {"embeddings" if "embedder" in kind else "logits": wanted}
    made = run(tmp_path / "model.onnx", inputs)
    assert made.keys() == wanted.keys()
    for name, values in wanted.items():
        a_token = values.ndim > 1 and values.shape[1] == 7
        where = MASK.astype(bool) if a_token else slice(None)  # what padding gives is nobody's business
        np.testing.assert_allclose(made[name][where], values[where], atol=1e-4)


def test_the_forward_pass_with_an_encoder(tmp_path):
    for changes in ({}, {"positions": "sinusoidal", "norm_position": "post", "attention_scale": None}):
        model = make("Seq2SeqLM", changes, {})
        folder = tmp_path / str(len(changes))
        folder.mkdir()
        assert save_onnx(model, folder) == ["model", "encoder", "decoder"]
        inputs = {"encoder_token_ids": IDS, "encoder_padding_mask": MASK, "decoder_token_ids": IDS[:, :4]}
        wanted = keras.ops.convert_to_numpy(model(inputs, training=False))
        np.testing.assert_allclose(run(folder / "model.onnx", inputs)["logits"], wanted, atol=1e-4)


PROMPTS = [[7, 8, 9, 10, 11], [12], [20, 21, 22]]


def greedy(decoder, config, ids, mask, steps, extra=()):
    """Tokens (rows, steps) from a decoder fed with its own keys and values."""
    empty = np.zeros((len(ids), config.num_kv_heads, 0, config.head_dim), "float32")
    past = {f"past.{i}.{part}": empty for i in range(config.num_layers) for part in ("key", "value")}
    made = []
    for _ in range(steps):
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        arrays = {"token_ids": ids, "padding_mask": mask, "positions": positions, **past, **dict(extra)}
        outputs = decoder(arrays)
        past = {name: outputs[name.replace("past", "present")] for name in past}
        ids = outputs["logits"][:, -1:].argmax(axis=-1)
        made.append(ids[:, 0])
        mask = np.concatenate([mask, np.ones((len(mask), 1), mask.dtype)], axis=1)
    return np.stack(made, axis=1).tolist()


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = np.array([[0] * (width - len(p)) + p for p in prompts])
    return ids, np.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


@pytest.mark.parametrize("kind", ["gpt", "llama", "relative"])
def test_the_decoder_makes_the_models_tokens(kind, tmp_path):
    model = make(*FORWARDS[kind])
    save_onnx(model, tmp_path)
    wanted = model.generate(PROMPTS, 6, stop_token_ids=[])
    made = greedy(lambda x: run(tmp_path / "decoder.onnx", x), model.config, *left_padded(PROMPTS), 6)
    assert [prompt + new for prompt, new in zip(PROMPTS, made)] == wanted


def test_the_decoder_with_an_encoder_makes_the_models_tokens(tmp_path):
    model = make("Seq2SeqLM", {}, {})
    save_onnx(model, tmp_path)
    wanted = model.generate(PROMPTS, 6, stop_token_ids=[])
    ids, mask = left_padded(PROMPTS)
    ids, mask = np.array([p + [0] * (5 - len(p)) for p in PROMPTS]), mask[:, ::-1]  # sources: on the right
    source = run(tmp_path / "encoder.onnx", {"encoder_token_ids": ids, "encoder_padding_mask": mask})
    extra = {"encoder_padding_mask": mask, **source}
    start = np.full((3, 1), model.start_token_id)
    made = greedy(lambda x: run(tmp_path / "decoder.onnx", x), model.config, start, np.ones_like(start), 6, extra)
    assert made == wanted


def test_openvino_makes_the_models_tokens(tmp_path):
    openvino = pytest.importorskip("openvino")
    model = make(*FORWARDS["llama"])
    model.export(tmp_path / "out", format="openvino")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(tmp_path / "out/decoder.xml", "CPU", hint)
    names = [x.any_name for x in compiled.inputs]

    def decoder(arrays):
        made = compiled({name: arrays[name] for name in names})
        return {name: made[x] for x in compiled.outputs for name in x.get_names()}

    made = greedy(decoder, model.config, *left_padded(PROMPTS), 6)
    assert [prompt + new for prompt, new in zip(PROMPTS, made)] == model.generate(PROMPTS, 6, stop_token_ids=[])


def test_graphs_share_their_weights(tmp_path):
    model = make(*FORWARDS["gpt"])
    save_onnx(model, tmp_path)
    floats = 4 * sum(int(np.prod(v.shape)) for v in model.weights)
    assert (tmp_path / "weights.bin").stat().st_size < 1.1 * floats
