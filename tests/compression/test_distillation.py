"""A student learns what its teacher answers, with `fit`; students begin as their teachers; what is refused."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import CALIBRATION, make

import kerasllm
from kerasllm.compression import Distiller, OnPolicy, student_from, written_rows

ROWS = CALIBRATION[:, :9]
BATCH = {"token_ids": ROWS[:, :-1]}


def numpy(x):
    return ops.convert_to_numpy(x)


def log_softmax(x):
    return x - np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)) - x.max(-1, keepdims=True)


def data(kind):
    """(x, y, weights) as `fit` takes it."""
    random = np.random.default_rng(0)
    if kind == "t5":
        x = {"encoder_token_ids": ROWS[:, :5], "decoder_token_ids": ROWS[:, :4]}
        return x, ROWS[:, 1:5], random.random((8, 4)).astype("float32")
    return BATCH, ROWS[:, 1:], random.random((8, 8)).astype("float32")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt", {"divergence": "jensen_shannon", "beta": 0.3}),
        ("bert", {"hidden": 0.5, "attention": 2.0, "layer_map": {0: 1}}),
        ("t5", {"divergence": "reverse_kl", "hidden": 1.0}),
    ],
)
def test_a_step_is_the_formula(kind, settings):
    teacher, _ = make(kind, **({"dropout": 0.0, "attention_dropout": 0.0} if kind == "t5" else {}))
    student = student_from(teacher, 1)
    keras.utils.set_random_seed(5)
    for variable in student.trainable_variables:
        variable.assign_add(keras.random.normal(variable.shape, stddev=0.3))
    x, y, weights = data(kind)
    expected = formula(student, teacher, x, y, weights, **settings)
    distiller = Distiller(student, teacher, temperature=2.0, hard=0.25, **settings)
    distiller.compile(keras.optimizers.Adam(0.001))
    before = [numpy(v.value) for v in teacher.variables]
    history = distiller.fit(x, y, sample_weight=weights, batch_size=8, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], expected, rtol=1e-4)
    assert history["loss"][1] < history["loss"][0]
    for value, variable in zip(before, teacher.variables):
        np.testing.assert_array_equal(numpy(variable.value), value)
    assert len(teacher.trainable_variables) == len(make(kind)[0].trainable_variables)
    if kind != "gpt":
        return
    student.compile()
    alone = student.evaluate(x, y, sample_weight=weights, batch_size=8, verbose=0, return_dict=True)
    mine = distiller.evaluate(x, y, sample_weight=weights, batch_size=8, verbose=0, return_dict=True)
    assert mine == pytest.approx(alone, rel=1e-5)


def formula(student, teacher, x, y, weights, divergence="forward_kl", beta=0.5, hidden=0.0, attention=0.0, **_):
    """The loss as the papers have it, with temperature 2 and hard 0.25."""
    p, q = (np.exp(log_softmax(numpy(model(x)) / 2)) for model in (teacher, student))
    if divergence == "forward_kl":
        apart = (p * np.log(p / q)).sum(-1)
    elif divergence == "reverse_kl":
        apart = (q * np.log(q / p)).sum(-1)
    else:
        m = beta * p + (1 - beta) * q
        apart = beta * (p * np.log(p / m)).sum(-1) + (1 - beta) * (q * np.log(q / m)).sum(-1)
    nll = -np.take_along_axis(log_softmax(numpy(student(x))), y[..., None].astype("int64"), -1)[..., 0]
    loss = (weights * (0.75 * 4 * apart + 0.25 * nll)).sum() / weights.sum()
    if hidden or attention:
        mine, its = (model.transformer(**x, trace=True) for model in (student, teacher))
        stacks = zip(mine[1:], its[1:]) if isinstance(mine[1], tuple) else [(mine, its)]
        for here, there in stacks:  # The student's last block follows the teacher's last one.
            loss += hidden * np.square(numpy(here[1][-1]) - numpy(there[1][-1])).mean()
            loss += attention * np.square(numpy(here[2][-1]) - numpy(there[2][-1])).mean()
    return loss


@pytest.mark.parametrize("batch_size", [8, 7])  # The last batch is as large as the others, or smaller.
def test_narrow_students_and_maps(batch_size):
    teacher, _ = make("gpt")
    config = teacher.config.replace(hidden_dim=8, num_layers=1, head_dim=None)
    student = kerasllm.CausalLM(config)
    distiller = Distiller(student, teacher, hidden=1.0, layer_map={0: 0})
    assert distiller.pairs == [[(0, 0)]]
    distiller.compile(keras.optimizers.Adam(0.01))
    losses = distiller.fit(ROWS, batch_size=batch_size, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_students_are_their_teachers_blocks():
    teacher, inputs = make("gpt", num_layers=4)
    student = student_from(teacher, num_layers=[1, 2])
    assert student.config == teacher.config.replace(num_layers=2)
    weights = {v.path: numpy(v.value) for v in teacher.variables}
    for variable in student.variables:
        path = variable.path.replace("block_1", "block_2").replace("block_0", "block_1")
        np.testing.assert_array_equal(numpy(variable.value), weights[path])
    np.testing.assert_allclose(numpy(student_from(teacher, 4)(inputs)), numpy(teacher(inputs)), atol=1e-6)
    translator, inputs = make("t5")
    assert student_from(translator, 1).config.num_encoder_layers == 1


@pytest.mark.parametrize("kind", ["gpt", "t5"])
def test_what_a_teacher_writes(kind):
    teacher, _ = make(kind)
    prompts = [[1, 2, 3], [4, 5]]
    x, y, weights = written_rows(teacher, prompts, 4, stop_token_ids=[])
    answers = teacher.generate(prompts, 4, strip_prompt=True, stop_token_ids=[])
    for row, answer in enumerate(answers):
        assert y[row][weights[row] > 0].tolist() == answer
    key = "decoder_token_ids" if kind == "t5" else "token_ids"
    first = [teacher.start_token_id] if kind == "t5" else prompts[1]
    assert x[key][1].tolist()[: len(first) + 3] == [*first, *answers[1][:3]]
    if kind == "gpt":
        teacher.compile(keras.optimizers.SGD(0.1))
        assert np.isfinite(teacher.fit(x, y, sample_weight=weights, verbose=0).history["loss"]).all()


def test_on_policy_learns_from_its_own_writing():
    teacher, _ = make("gpt", num_layers=1)
    student = kerasllm.CausalLM(teacher.config)
    dataset = OnPolicy(student, [[1, 2], [3]], max_new_tokens=6, batch_size=2, stop_token_ids=[])
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((dataset.parts[1].copy(), logs["loss"]))

    distiller = Distiller(student, teacher, divergence="jensen_shannon", hard=0.0, temperature=1.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    expected = student.generate(
        [[1, 2], [3]], 6, sampler="temperature", temperature=1.0, seed=0, strip_prompt=True, stop_token_ids=[]
    )
    distiller.fit(dataset, epochs=8, verbose=0, callbacks=[Seen()])
    assert seen[0][0][0, 1:].tolist() == expected[0]
    assert (seen[0][0] != seen[1][0]).any()
    assert seen[-1][1] < seen[0][1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "kl"}, "forward_kl, reverse_kl, jensen_shannon"),
        ({"temperature": 0}, "`temperature` must be positive"),
        ({"hard": 1.5}, "`hard`"),
        ({"beta": 1.0}, "`beta`"),
        ({"hidden": -1}, "`hidden` must not be negative"),
        ({"layer_map": {0: 7}}, "teacher's 2, counted from 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    teacher, _ = make("gpt")
    with pytest.raises(ValueError, match=message):
        Distiller(student_from(teacher, 1), teacher, **settings)


def test_teachers_of_others_are_refused():
    teacher, _ = make("gpt", num_layers=1)
    with pytest.raises(ValueError, match="its own teacher"):
        Distiller(teacher, teacher)
    with pytest.raises(ValueError, match="another vocabulary than the student: 48 and 50 tokens"):
        Distiller(kerasllm.CausalLM(teacher.config.replace(vocabulary_size=50)), teacher)
    with pytest.raises(ValueError, match="same task"):
        Distiller(make("bert")[0], teacher)
    with pytest.raises(ValueError, match="head by head"):
        Distiller(kerasllm.CausalLM(teacher.config.replace(num_heads=1, num_kv_heads=1)), teacher, attention=1.0)
    tokenizers = [kerasllm.Tokenizer.train([text], kind="char") for text in ("abcd", "bcde")]
    config = teacher.config.replace(vocabulary_size=max(t.vocabulary_size for t in tokenizers))
    with pytest.raises(ValueError, match="and other tokenizers"):
        Distiller(*(kerasllm.CausalLM(config, tokenizer) for tokenizer in tokenizers))
    with pytest.raises(ValueError, match="from 1 to the teacher's 1"):
        student_from(teacher, 2)
    with pytest.raises(ValueError, match="blocks from 0 to 0"):
        student_from(teacher, [1])
    with pytest.raises(ValueError, match="room for 13 after the longest"):
        written_rows(teacher, [[1, 2]], 14)


@pytest.mark.one_backend
def test_a_distiller_is_saved_while_it_trains(tmp_path):
    teacher, _ = make("gpt", num_layers=2)
    distiller = Distiller(student_from(teacher, num_layers=1), teacher, hidden=1.0, layer_map={0: 1})
    distiller.compile(keras.optimizers.Adam(0.1))
    distiller.fit(ROWS, verbose=0, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")])
    again = keras.saving.load_model(tmp_path / "best.keras")
    np.testing.assert_allclose(numpy(again.student(ROWS)), numpy(distiller.student(ROWS)), atol=1e-6)
    np.testing.assert_allclose(numpy(again.teacher(ROWS)), numpy(teacher(ROWS)), atol=1e-6)
    losses = [each.fit(ROWS, verbose=0, shuffle=False).history["loss"] for each in (distiller, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.one_backend
def test_every_door_may_be_the_first():
    teacher = kerasllm.CausalLM(kerasllm.TransformerConfig(16, 8, num_layers=2, num_heads=2, hidden_dim=8))
    rows = np.random.default_rng(0).integers(0, 16, (4, 7))
    for first in ("evaluate", "test_on_batch", "train_on_batch"):
        distiller = Distiller(student_from(teacher, num_layers=1), teacher)
        distiller.compile("adamw")
        getattr(distiller, first)(rows)
        assert np.isfinite(distiller.fit(rows, None, 4, 1, 0).history["loss"]).all()
    assert all(variable.trainable for variable in teacher.transformer.embedding.tokens.variables)
