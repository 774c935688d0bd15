"""Linear cross-entropy against PyTorch's, in value and gradient, for every chunk size and option."""

import keras
import numpy as np
import pytest
import torch
from differentiate import gradients
from keras import ops

from kerasllm import CausalLM, TextEmbedder, TransformerConfig, losses
from kerasllm.losses import chunk_tokens, linear_cross_entropy, token_log_likelihoods

TOKENS, DIM, VOCABULARY = 21, 8, 13
OPTIONS = [(0.1, 0.0), (0.0, 0.3), (0.25, 0.01)]  # (label smoothing, z-loss)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, DIM)).astype("float32")
    kernel = rng.normal(size=(DIM, VOCABULARY)).astype("float32")
    targets = rng.integers(0, VOCABULARY, TOKENS).astype("int32")
    weights = rng.uniform(0, 2, TOKENS).astype("float32") * (rng.random(TOKENS) > 0.3)
    return hidden, kernel, targets, weights.astype("float32")


def oracle(hidden, kernel, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """PyTorch's cross_entropy in float64: loss, plain loss, correct, and the gradients of the loss."""
    h, k = (torch.tensor(np.asarray(x, "float64"), requires_grad=True) for x in (hidden, kernel))
    t, w = torch.tensor(targets).long(), torch.tensor(weights).double()
    with torch.enable_grad():
        logits = h @ k
        loss = torch.nn.functional.cross_entropy(logits, t, reduction="none", label_smoothing=label_smoothing)
        loss = (w * (loss + z_loss * logits.logsumexp(-1) ** 2)).sum()
        loss.backward()
    nll = (torch.nn.functional.cross_entropy(logits, t, reduction="none") * w).sum()
    correct = (w * (logits.argmax(-1) == t)).sum()
    return loss.item(), nll.item(), correct.item(), h.grad.numpy(), k.grad.numpy()


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 7, 20, 21, 64])
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_dense_cross_entropy(case, chunk_size, weighted):
    hidden, kernel, targets, weights = case
    given = weights if weighted else None
    loss, _, correct, d_hidden, d_kernel = oracle(*case[:3], weights if weighted else np.ones(TOKENS, "float32"))

    def scaled_loss(h, k):
        return linear_cross_entropy(h, k, targets, given, chunk_size)[0] * 0.5

    found_loss, nll, found_correct = linear_cross_entropy(*map(ops.convert_to_tensor, case[:3]), given, chunk_size)
    assert float(found_loss) == float(nll) == pytest.approx(loss, rel=1e-5)
    assert float(found_correct) == pytest.approx(correct, rel=1e-5)
    found = gradients(scaled_loss, hidden, kernel)
    np.testing.assert_allclose(found[0], 0.5 * d_hidden, atol=1e-5)
    np.testing.assert_allclose(found[1], 0.5 * d_kernel, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 4, 7])
@pytest.mark.parametrize("rows", [False, True])
def test_a_frozen_kernel_gets_no_gradient(case, chunk_size, rows):
    """Either way it lies, the loss and the hidden states' gradient are the same, and nothing reaches the kernel."""
    hidden, kernel, targets, weights = case
    loss, _, correct, d_hidden, _ = oracle(*case)
    given = ops.convert_to_tensor(kernel.T if rows else kernel)
    how = {"frozen_rows": True} if rows else {"frozen_kernel": True}
    arguments = (ops.convert_to_tensor(x) for x in (hidden, given, targets, weights))
    found_loss, _, found_correct = linear_cross_entropy(*arguments, chunk_size, **how)
    assert float(found_loss) == pytest.approx(loss, rel=1e-5) and float(found_correct) == pytest.approx(correct)

    def of_both(h, factor):
        return linear_cross_entropy(h, given * factor, targets, weights, chunk_size, **how)[0] + 0.0 * factor

    found = gradients(of_both, hidden, np.float32(1.0))
    np.testing.assert_allclose(found[0], d_hidden, atol=1e-5)
    assert found[1] == 0


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 64])
@pytest.mark.parametrize("label_smoothing, z_loss", OPTIONS)
def test_label_smoothing_and_z_loss(case, chunk_size, label_smoothing, z_loss):
    hidden, kernel, targets, weights = case
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    expected = oracle(*case, **options)

    def scaled_loss(h, k):
        loss, nll, correct = linear_cross_entropy(h, k, targets, weights, chunk_size, **options)
        return 0.5 * loss + nll + correct  # of which only the first is differentiated

    found = linear_cross_entropy(*map(ops.convert_to_tensor, case[:3]), weights, chunk_size, **options)
    assert [float(x) for x in found] == pytest.approx(expected[:3], rel=1e-5)
    assert abs(expected[0] - expected[1]) > 0.1
    for gradient, wanted in zip(gradients(scaled_loss, hidden, kernel), expected[3:]):
        np.testing.assert_allclose(gradient, 0.5 * wanted, atol=1e-5)


def make_model(tied=True):
    config = TransformerConfig(
        VOCABULARY, 8, num_layers=1, num_heads=2, hidden_dim=DIM, initializer_range=0.4, tie_embeddings=tied
    )
    return CausalLM(config)


@pytest.mark.one_backend
@pytest.mark.parametrize("value", [-0.1, float("nan"), "0.1", True, None])
@pytest.mark.parametrize("name", ["label_smoothing", "z_loss"])
def test_options_out_of_range(case, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a number in .*Received: {name}="):
        linear_cross_entropy(*case[:3], **{name: value})
    with pytest.raises(ValueError, match=name):
        make_model().compile("sgd", **{name: value})


@pytest.mark.one_backend
def test_options_are_not_for_another_loss():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="options of the default loss over tokens"):
        make_model().compile("sgd", loss=loss, z_loss=1e-4)
    with pytest.raises(ValueError, match="not of this TextEmbedder's loss"):
        TextEmbedder(make_model().config).compile("sgd", label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing"):
        make_model().compile("sgd", label_smoothing=1.0)


def test_training_reports_the_options_and_evaluation_does_not():
    model, smoothing, z_loss = make_model(), 0.2, 0.05
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (5, 7)).astype("int32")
    weights = np.random.default_rng(1).uniform(0, 2, (5, 6)).astype("float32")
    # A rate of 0: what is trained on is what is evaluated afterwards.
    model.compile(keras.optimizers.SGD(0.0), label_smoothing=smoothing, z_loss=z_loss, jit_compile=False)
    hidden = ops.convert_to_numpy(model.transformer(rows[:, :-1])).reshape(-1, DIM)
    kernel = ops.convert_to_numpy(model.head_kernel())
    flat = rows[:, 1:].reshape(-1), weights.reshape(-1)
    loss, nll, correct = np.array(oracle(hidden, kernel, *flat, smoothing, z_loss)[:3]) / weights.sum()
    x, y = {"token_ids": rows[:, :-1]}, rows[:, 1:]
    data = {"y": y, "sample_weight": weights, "batch_size": 5}
    history = model.fit(x, validation_data=(x, y, weights), verbose=0, **data).history
    found = {name: values[0] for name, values in history.items()}
    plain = {"perplexity": np.exp(nll), "accuracy": correct}
    expected = {"loss": loss, **plain, "val_loss": nll, **{f"val_{name}": value for name, value in plain.items()}}
    assert found == pytest.approx(expected, rel=1e-4)
    assert model.evaluate(x, verbose=0, return_dict=True, **data)["loss"] == pytest.approx(nll, rel=1e-4)


def test_options_move_the_weights_as_their_gradients_say():
    model, rate, options = make_model(tied=False), 0.5, {"label_smoothing": 0.2, "z_loss": 0.05}
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (4, 7)).astype("int32")
    hidden = ops.convert_to_numpy(model.transformer(rows[:, :-1])).reshape(-1, DIM)
    kernel = ops.convert_to_numpy(model.head_kernel())
    targets = rows[:, 1:].reshape(-1)
    *_, d_kernel = oracle(hidden, kernel, targets, np.ones(targets.size), **options)
    model.compile(keras.optimizers.SGD(rate), jit_compile=False, **options)
    model.train_on_batch(rows[:, :-1], rows[:, 1:])
    found = ops.convert_to_numpy(model.head_kernel())
    np.testing.assert_allclose(found, kernel - rate * d_kernel / targets.size, atol=1e-5)


def test_options_are_saved_with_the_model(tmp_path):
    model = make_model()
    model.compile("sgd", label_smoothing=0.1, z_loss=1e-4, jit_compile=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.label_smoothing, loaded.z_loss) == (0.1, 1e-4)
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (4, 7)).astype("int32")
    losses = [m.fit(rows, batch_size=4, verbose=0).history["loss"] for m in (model, loaded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    loaded.compile_from_config({**model.get_compile_config(), "z_loss": 0.0})
    assert (loaded.label_smoothing, loaded.z_loss) == (0.1, 0.0)
    assert not make_model().get_compile_config()


@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("label_smoothing, z_loss", [(0.0, 0.0), OPTIONS[-1]])
def test_equals_dense_when_compiled(case, chunk_size, label_smoothing, z_loss):
    hidden, kernel, targets, weights = case
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    expected = oracle(*case, **options)

    def sums(h, k):
        return linear_cross_entropy(h, k, targets, weights, chunk_size, **options)

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def loss_only(h, k):
            return sums(h, k)[0]

        compiled, compiled_loss = jax.jit(sums), jax.jit(loss_only)
    elif backend == "tensorflow":
        import tensorflow as tf

        compiled = tf.function(sums, jit_compile=True)

        def compiled_loss(h, k):
            return compiled(h, k)[0]
    else:
        pytest.skip("Keras runs PyTorch uncompiled")
    assert [float(x) for x in compiled(hidden, kernel)] == pytest.approx(expected[:3], rel=1e-5)
    for found, wanted in zip(gradients(compiled_loss, hidden, kernel), expected[3:]):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_bfloat16_inputs_stay_near(case, chunk_size):
    half = [torch.tensor(x).bfloat16().float().numpy() for x in case[:2]]
    expected = oracle(*half, *case[2:])

    def loss(h, k):
        h, k = ops.cast(h, "bfloat16"), ops.cast(k, "bfloat16")
        return linear_cross_entropy(h, k, case[2], case[3], chunk_size)[0]

    tensors = [ops.convert_to_tensor(h) for h in half]
    value = loss(*tensors)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == pytest.approx(expected[0], rel=1e-2)
    for found, wanted in zip(gradients(loss, *half), expected[3:]):
        np.testing.assert_allclose(found, wanted, atol=0.1)


@pytest.mark.parametrize("chunk_size", [None, 8])
def test_large_logits_do_not_overflow(case, chunk_size):
    hidden, kernel, targets, weights = case
    expected = oracle(100 * hidden, kernel, targets, weights)
    value = linear_cross_entropy(*map(ops.convert_to_tensor, (100 * hidden, kernel, targets)), weights, chunk_size)[0]
    assert float(value) == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 8, 100])
def test_token_log_likelihoods(case, chunk_size):
    hidden, kernel, targets, _ = case
    found = token_log_likelihoods(*map(ops.convert_to_tensor, (hidden, kernel, targets)), chunk_size)
    logits = hidden.astype("float64") @ kernel
    expected = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[np.arange(TOKENS), targets]
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-5)


@pytest.mark.one_backend
def test_the_chunk_is_chosen_by_size():
    assert chunk_tokens(768, 65) == 768  # small: the dense loss
    for tokens, vocabulary in ((2048, 50257), (8 * 1024, 50304), (65536, 256_000), (10**6, 32_000)):
        size = chunk_tokens(tokens, vocabulary)
        assert size < tokens and size * vocabulary <= losses.CHUNK_LOGITS
        assert 4 * size * vocabulary > losses.CHUNK_LOGITS  # and no smaller than it needs to be
    assert chunk_tokens(10**6, 2**24) >= 1


def test_no_tensor_of_all_logits_is_made():
    if keras.backend.backend() != "jax":
        pytest.skip("reads JAX's program")
    import jax

    tokens, dim, vocabulary, chunk = 1024, 16, 1000, 64
    targets = np.zeros(tokens, "int32")

    def loss(h, k):
        return linear_cross_entropy(h, k, targets, chunk_size=chunk)[0]

    def largest(jaxpr):
        sizes = [np.prod(v.aval.shape) for equation in jaxpr.eqns for v in equation.outvars]
        for equation in jaxpr.eqns:
            for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    sizes.append(largest(inner))
        return max(sizes, default=0)

    arguments = np.zeros((tokens, dim), "float32"), np.zeros((dim, vocabulary), "float32")
    chunked = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    assert chunk * vocabulary <= largest(chunked.jaxpr) <= chunk * vocabulary + vocabulary
    dense = jax.make_jaxpr(lambda h, k: linear_cross_entropy(h, k, targets, chunk_size=tokens)[0])(*arguments)
    assert largest(dense.jaxpr) >= tokens * vocabulary  # the measure itself sees what it should
