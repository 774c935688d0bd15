"""Ablation: without a head is without its output, for all doors to a model, and nothing is left of it afterwards."""

import keras
import numpy as np
import pytest
from inspected_models import TEXT, TEXTS, made, make, numpy, trace

from kerasllm.generation.programs import programs_of
from kerasllm.inspection import ablate, ablation_effects, text_loss
from kerasllm.tuning import LoRA

T5 = [("t5", stack) for stack in ("decoder", "encoder", "cross")]
CASES = [("gpt", "decoder"), ("llama", "decoder"), ("bert", "encoder"), *T5]


def blocks_of(model, stack):
    network = model.transformer
    if model.config.num_encoder_layers:
        network = network.encoder if stack == "encoder" else network.decoder
    return network.blocks


def without_inputs(monkeypatch, layer, places):
    """The layer reads zeros in these places, whatever its weights are."""
    call, keep = layer.call, np.ones(layer.kernel.shape[0], "float32")
    keep[places] = 0
    monkeypatch.setattr(layer, "call", lambda x, *rest, **more: call(x * keep, *rest, **more))


@pytest.mark.parametrize(("kind", "stack"), CASES)
def test_without_a_head_is_without_its_output(kind, stack, monkeypatch):
    model = made(kind)
    before = trace(model).logits
    with ablate(model, heads=[(1, 2), (0, 3), (1, 2)], stack=stack):
        found = trace(model).logits
    for layer, head in ((1, 2), (0, 3)):
        block = blocks_of(model, stack)[layer]
        attention = block.source_attention if stack == "cross" else block.attention
        size = attention.head_dim
        without_inputs(monkeypatch, attention.output_dense, range(head * size, head * size + size))
    np.testing.assert_allclose(found, trace(model).logits, atol=1e-6)
    assert np.abs(found - before).max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_without_a_neuron_is_without_its_value(kind, monkeypatch):
    model = made(kind)
    with ablate(model, neurons=[(0, 5), (0, 6), (np.int64(1), 23)]):
        found = trace(model).logits
    for layer, neurons in ((0, [5, 6]), (1, [23])):
        without_inputs(monkeypatch, blocks_of(model, "decoder")[layer].feed_forward.down, neurons)
    np.testing.assert_allclose(found, trace(model).logits, atol=1e-6)


def test_every_door_sees_it_and_afterwards_nothing_is_left():
    model = make("gpt")
    model.compile(run_eagerly=False, jit_compile=keras.backend.backend() != "torch")

    def doors():
        answers = model.predict(TEXTS, verbose=0), np.concatenate(model.score(TEXTS)), trace(model).logits
        loss = model.evaluate(TEXTS, return_dict=True, verbose=0)["loss"]
        return (*answers, np.array(loss), np.array(model.generate(TEXT, max_new_tokens=6, details=True).token_ids))

    before, weights = doors(), model.get_weights()
    compilations = programs_of(model).compilations
    with ablate(model):
        assert all(np.array_equal(a, b) for a, b in zip(before, doors()))
    with ablate(model, heads=[(0, 0), (0, 1), (1, 3)], neurons=[(1, 7)]):
        inside = doors()
    assert not any(np.array_equal(a, b) for a, b in zip(before[:4], inside[:4]))

    head = slice(0, 8)  # By hand, in a model of its own.
    other = make("gpt")
    for layer, rows in ((0, head), (1, slice(12, 16))):
        kernel = other.transformer.blocks[layer].attention.output_dense.kernel
        value = np.array(numpy(kernel))
        value[rows] = 0
        kernel.assign(value)
    down = other.transformer.blocks[1].feed_forward.down.kernel
    down.assign(numpy(down) * (np.arange(24) != 7)[:, None])
    np.testing.assert_allclose(inside[2], trace(other).logits, atol=1e-6)
    np.testing.assert_allclose(inside[1], np.concatenate(other.score(TEXTS)), atol=1e-5)
    np.testing.assert_allclose(inside[3], -np.mean(inside[1]), atol=0.1)  # (evaluate also counts the end tokens.)
    assert inside[4].tolist() == other.generate(TEXT, max_new_tokens=6, details=True).token_ids

    assert all(np.array_equal(a, b) for a, b in zip(before, doors()))
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights()))
    assert programs_of(model).compilations == compilations


def test_an_exception_and_another_ablation_inside_leave_nothing():
    model = made("t5")
    weights, before = model.get_weights(), trace(model).logits
    with pytest.raises(RuntimeError), ablate(model, heads=[(0, 1)], stack="cross"), ablate(model, heads=[(0, 1)]):
        assert not np.array_equal(trace(model).logits, before)
        raise RuntimeError
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights()))


def test_what_an_adapter_adds_of_a_head_is_taken_out_too(monkeypatch):
    model = make("gpt")
    model.add_adapter("mine", LoRA(rank=2, targets=["attention.output_dense", "feed_forward.down"]))
    for layer in model.transformer.blocks:
        for host in (layer.attention.output_dense, layer.feed_forward.down):
            host.lora_mine.lora_b.assign(np.random.default_rng(0).normal(size=(2, 16)))
    with ablate(model, heads=[(1, 1)], neurons=[(0, 3)]):
        found = trace(model).logits
    attention, down = model.transformer.blocks[1].attention.output_dense, model.transformer.blocks[0].feed_forward.down
    without_inputs(monkeypatch, attention, range(4, 8))
    without_inputs(monkeypatch, down, [3])
    np.testing.assert_allclose(found, trace(model).logits, atol=1e-5)


@pytest.mark.parametrize(("kind", "stack"), [("gpt", "decoder"), ("bert", "decoder"), ("t5", "cross")])
def test_effects_are_the_losses_without_each_head(kind, stack):
    model, target = made(kind), {"t5": "be to"}.get(kind)
    effects = ablation_effects(model, TEXT, target, stack)
    assert effects.shape == (2, 4)
    with ablate(model, heads=[(1, 0)], stack=stack):
        assert effects[1, 0] == pytest.approx(text_loss(model, TEXT, target), abs=1e-6)
    assert len({round(float(x), 5) for x in [*effects.flat, text_loss(model, TEXT, target)]}) == 9


def test_the_loss_of_a_masked_model_is_that_of_each_token_masked_alone():
    model = made("bert")
    ids = model.as_inputs(["be or"])["token_ids"]
    scores = []
    for place in range(1, ids.shape[1] - 1):
        masked = ids.copy()
        masked[0, place] = model.tokenizer.mask_token_id
        logits = model.trace(masked[0]).logits[0, place, : model.tokenizer.vocabulary_size].astype("float64")
        scores.append(logits[ids[0, place]] - np.log(np.exp(logits).sum()))
    assert text_loss(model, "be or") == pytest.approx(-np.mean(scores), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("gpt", {"heads": [(2, 0)]}, r"no layer 2: they are numbered from 0 to 1"),
        ("gpt", {"heads": [(0, -1)]}, r"no head -1: they are numbered from 0 to 3"),
        ("gpt", {"heads": [(0, 1.0)]}, r"no head 1\.0"),
        ("gpt", {"heads": [3]}, r"list of \(layer, head\) pairs. Received: 3"),
        ("gpt", {"neurons": [(0, 24)]}, r"no neuron 24: they are numbered from 0 to 23"),
        ("gpt", {"heads": [(0, 0)], "stack": "cross"}, "one stack, and no cross-attention"),
        ("t5", {"heads": [(0, 0)], "stack": "both"}, "must be one of decoder, encoder, cross"),
        ("t5", {"neurons": [(0, 0)], "stack": "cross"}, "no neurons"),
    ],
)
def test_what_is_not_there_cannot_be_taken_out(kind, arguments, message):
    with pytest.raises(ValueError, match=message), ablate(made(kind), **arguments):
        pass


def test_weights_that_cannot_be_taken_apart():
    model = make("gpt", num_layers=1)
    model.quantize("int8")
    with pytest.raises(ValueError, match="is quantized"), ablate(model, heads=[(0, 0)]):
        pass
    model = make("gpt", num_layers=1)
    model.add_adapter("mine", LoRA(rank=2, dora=True, targets="attention.output_dense"))
    with pytest.raises(ValueError, match="DoRA"), ablate(model, heads=[(0, 0)]):
        pass


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("gpt", "", "not empty"),
        ("gpt", "b", "one token"),
        ("gpt", "be " * 20, "60 tokens"),
        ("bert", "be " * 20, "62 tokens"),
        ("classifier", "be", "gives no text a loss"),
    ],
)
def test_texts_without_a_loss(kind, text, message):
    with pytest.raises(ValueError, match=message):
        text_loss(made(kind), text)
