"""The command line: what it prints, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import yaml
from typer.testing import CliRunner

import kerasllm
from kerasllm.cli import app
from kerasllm.quiet import without_greetings
from kerasllm.sizes import figures

REPOSITORY = Path(__file__).resolve().parent.parent

BACKENDS = ("keras", "tensorflow", "jax", "torch", "numpy")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory trained by `kerasllm train`, and the text it was trained on."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "a.csv").write_text("a,b\nx,y\n")
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    values = {
        "description": "A test.",
        "data": {"sequence_length": 16, "batch_size": 4},
        "tokenizer": {"kind": "byte"},
        "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16},
        "training": {"steps": 100, "sample_prompt": None},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    output = run(
        *("train", folder / "mine.yaml", "--data", folder / "words.txt", "--output", folder / "run"),
        *("--set", "steps=4", "--set", "training.warmup_steps=1", "--backend", keras.backend.backend()),
    )
    assert "step 4/4" in output and "Saved to" in output
    return folder / "run", folder / "words.txt"


def test_generate_writes_the_same_for_the_same_seed(saved):
    directory, _ = saved
    arguments = ("generate", directory, "the", "--max-new-tokens", 8, "--sampler", "top_k", "--seed", 1)
    whole = run(*arguments)
    assert whole.startswith("the") and len(whole.rstrip("\n")) > 3
    assert run(*arguments, "--stream") == whole
    assert run("generate", directory, "the").startswith("the")  # as much as there is room for


def test_evaluate_prints_the_metrics(saved):
    output = run("evaluate", saved[0], "--data", saved[1])
    for name in ("loss", "perplexity", "bits_per_byte", "accuracy", "tokens"):
        assert name in output


def test_info_reads_a_directory(saved):
    output = run("info", saved[0])
    parameters = f"{json.loads((saved[0] / 'config.json').read_text())['vocab_size']:,}"
    assert "1 layers, 2 heads" in output and parameters in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "{dir}", "the" * 20), "context"),
        (("generate", "{dir}", "the", "--sampler", "greedy", "--top-k", "3"), "top_k"),
        (("generate", "{dir}", "the", "--max-new-tokens", "0"), "max_new_tokens"),
        (("classify", "{dir}", "the"), "holds a CausalLM, which has learned no labels"),
        (("prune", "{dir}", "--eval", "{dir}/../words.txt", "--sparsity", "x", "--output", "{dir}/../p"), "2:4"),
        (("quantize", "{dir}", "--eval", "{dir}/../a.csv", "--output", "{dir}/../q"), "Give the columns these names"),
        (("evaluate", "{dir}", "--data", "{dir}/../a.csv"), "It has: a, b. Say which: --column"),
        (("train", "quickstart", "--data", "{dir}/../a.csv", "--output", "{dir}/../t"), "--set data.column=NAME"),
        (
            ("finetune", "nowhere", "--task", "causal", "--data", "{dir}/../words.txt"),
            "'nowhere' is no model directory",
        ),
        (("evaluate", "{dir}", "--data", "nothing.txt"), "There is no file or folder 'nothing.txt'"),
        (("train", "{dir}/recipe.yaml", "--output", "{dir}"), "is not empty"),
    ],
)
def test_bad_input_is_one_line(saved, arguments, message):
    output = run(*(argument.replace("{dir}", str(saved[0])) for argument in arguments), code=2)
    assert output.startswith("Error: ") and message in output and output.count("\n") == 1
    assert sorted(path.name for path in saved[0].parent.iterdir()) == ["a.csv", "mine.yaml", "run", "words.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "quickstat"), "Unknown recipe 'quickstat'. Did you mean 'quickstart'"),
        (("train", "mine.yaml"), "There is no recipe file 'mine.yaml'"),
        (("train", "quickstart", "--set", "stepz=3"), "Unknown recipe key 'stepz'. Did you mean 'steps'"),
        (("train", "shakespeare-char-cpu", "--output", "run"), "needs a text"),
        (("generate", "nowhere", "the"), "'nowhere'"),
        (("info", "gpt2_smal"), "Did you mean 'gpt2_small'"),
    ],
)
def test_bad_names_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    output = run(*arguments, code=2)
    assert output.startswith("Error: ") and message in output and output.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_another_backend_than_the_loaded_one_is_refused():
    other = "jax" if keras.backend.backend() != "jax" else "torch"
    assert "another backend" in run("generate", ".", "the", "--backend", other, code=2)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FloatingPointError("the loss became nan"), 1, "Error: the loss became nan"),
        (OSError(28, "No space left on device"), 1, "Error: No space left on device"),
        (ValueError("two\nlines"), 2, "Error: two lines"),
        ("SIGINT", 130, "--resume"),
        ("SIGTERM", 143, "--resume"),
    ],
)
def test_exit_codes_of_training(tmp_path, monkeypatch, error, code, message):
    import signal

    from kerasllm.training.checkpoint import Interrupted

    if isinstance(error, str):
        error = Interrupted(signal.Signals[error].value, tmp_path / "step-00000002")

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("kerasllm.training.run.train", fail)
    output = run("train", "quickstart", "--output", tmp_path / "run", code=code)
    assert message in output and "Traceback" not in output


def test_debug_shows_the_error():
    result = CliRunner().invoke(app, ["--debug", "info", "nothing"])
    assert isinstance(result.exception, ValueError)
    run("info", "nothing", code=2)


@pytest.mark.one_backend
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipes"], ["info", "gpt2_small"]])
def test_what_needs_no_backend_imports_none(arguments):
    code = (
        "import sys; from kerasllm.cli import app; app(sys.argv[1:], standalone_mode=False);"
        f"loaded = sorted(set({BACKENDS}) & set(sys.modules)); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.one_backend
def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "kerasllm", "recipes"], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout and "shakespeare-char-cpu" in done.stdout


@pytest.mark.one_backend
def test_info_counts_gpt2():
    from kerasllm import TransformerConfig

    table = figures(TransformerConfig.from_name("gpt2_small"))
    assert table["parameters"] == "124,439,808"
    assert table["weights"] == "498 MB float32, 249 MB bfloat16"
    assert table["training, AdamW"].startswith("1.99 GB float32")
    assert "855 MFLOP trained" in table["FLOPs a token"]


def test_the_version_is_printed():
    assert run("--version") == f"kerasllm {kerasllm.__version__}\n"


@pytest.mark.parametrize("arguments", ["train quickstart --data a --data b", "info a --batch-size 2 --batch-size 2"])
def test_an_option_given_twice_is_refused(arguments):
    assert "more than once" in run(*arguments.split(), code=2)


@pytest.mark.slow
def test_nothing_is_said_before_the_first_line():
    """Standard error of a command is empty: no greetings of TensorFlow, XLA or CUDA."""
    arguments = [sys.executable, "-m", "kerasllm", "generate", "saved_models/gpt-tiny", "The", "--max-new-tokens", "1"]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("The")


@pytest.mark.one_backend
def test_only_greetings_are_held_back(capfd):
    lines = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795886278.087681    7534 cudart_stub.cc:31] Could not find cuda drivers on your machine.",
        "E0000 00:00:1795886283.219816 7534 cuda_platform.cc:52] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)",
        "2025-01-01 10:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.",
        "E0000 00:00:1735689600.1 1 cuda_dnn.cc:8310] Unable to register cuDNN factory: already registered",
    ]
    kept = [
        "E0000 00:00:1795886283.219816 7534 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_NO_DEVICE (100)",
        "W0000 00:00:1795886283.219816 7534 gpu_device.cc:2341] Cannot dlopen some GPU libraries.",
        "UserWarning: something of ours",
    ]
    with pytest.raises(ValueError), without_greetings():
        os.write(2, "\n".join([*lines, *kept, ""]).encode())
        raise ValueError
    assert capfd.readouterr().err.splitlines() == kept
