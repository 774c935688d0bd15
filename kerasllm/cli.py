"""The command line: `kerasllm train | finetune | generate | chat | evaluate | quantize | info | recipes` and others.

Commands import what they use when they run: `--help` answers at once, and KERAS_BACKEND is set in time.
"""

import functools
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

INPUT_ERROR, FAILURE = 2, 1

app = typer.Typer(
    help="Train language models, look at them, and let them write.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
settings = {"debug": False}


class Backend(StrEnum):
    """The Keras backends that there are."""

    tensorflow = "tensorflow"
    jax = "jax"
    torch = "torch"


class CacheDtype(StrEnum):
    """What keys and values are kept in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


class SamplerName(StrEnum):
    """The samplers of `generate`."""

    greedy = "greedy"
    temperature = "temperature"
    top_k = "top_k"
    top_p = "top_p"
    min_p = "min_p"
    typical = "typical"
    top_a = "top_a"
    mirostat = "mirostat"


class MethodName(StrEnum):
    """The methods of `finetune`."""

    full = "full"
    last_n = "last-n"
    features = "features"
    lora = "lora"
    dora = "dora"
    adapter = "adapter"
    prompt = "prompt"
    prefix = "prefix"
    ia3 = "ia3"
    bitfit = "bitfit"


class PictureName(StrEnum):
    """The pictures of `inspect`."""

    heads = "heads"
    lens = "lens"


BackendOption = Annotated[
    Backend | None, typer.Option("--backend", help="Keras backend; KERAS_BACKEND, else Keras's own choice.")
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter's directory, from `finetune`.")
]
ModelArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A saved model's directory.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from kerasllm import __version__

        print(f"kerasllm {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    settings["debug"] = debug


class OnceEach(typer.core.TyperCommand):
    """A command that refuses an option given twice, of which click would take the last without a word."""

    def parse_args(self, ctx, args):
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            if option.param_type_name == "option" and not option.multiple and order.count(option) > 1:
                raise typer.BadParameter("it is given more than once.", ctx=ctx, param=option)
        return super().parse_args(ctx, args)


def command(function: Callable) -> Callable:
    """A command whose expected errors are one line and an exit code, not a traceback."""

    @functools.wraps(function)
    def run(**arguments: Any) -> None:
        try:
            function(**arguments)
        except (ValueError, KeyError, OSError, ImportError, FloatingPointError) as error:
            if settings["debug"]:
                raise
            typer.echo(f"Error: {_one_line(error)}", err=True)
            is_input = isinstance(error, ValueError | KeyError | FileNotFoundError)
            raise typer.Exit(INPUT_ERROR if is_input else FAILURE) from None

    return app.command(cls=OnceEach)(run)


@command
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a YAML file.")],
    data: Annotated[str | None, typer.Option(help="The text: a file, folder, glob, or hf:NAME.")] = None,
    task: Annotated[str | None, typer.Option(help="What is learned, in place of the recipe's task.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run directory.  [default: saved_models/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the recipe.")
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Train a model as a recipe says."""
    from kerasllm.training.recipe import load_recipe

    loaded = load_recipe(recipe, [*([f"task={task}"] if task else []), *(set_ or ())])
    _train(loaded, output, resume, data, backend)


@command
def finetune(
    directory: ModelArgument,
    task: Annotated[str, typer.Option(help="What is learned: causal, masked, seq2seq, classify, instruct, embed …")],
    data: Annotated[str, typer.Option(help="Text, or a table of pairs: a file, folder, glob, hf: or builtin:NAME.")],
    method: Annotated[MethodName, typer.Option(help="What is trained: all of it, its last blocks, or an adapter.")] = (
        MethodName.full
    ),
    output: Annotated[Path | None, typer.Option(help="Run directory.  [default: DIR-TASK-METHOD]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A value of the recipe: steps=500, rank=4.")
    ] = None,
    backend: BackendOption = None,
) -> None:
    """Train a saved model further, on a task of yours: the whole of it, or an adapter beside it."""
    from kerasllm.training.recipe import FINETUNING, METHODS, Recipe, override

    task = {"causal": "causal-lm", "masked": "masked-lm"}.get(task, task)
    method = method.value
    output = output or directory.with_name("-".join([directory.name, task, *([method] if method != "full" else [])]))
    values = {
        "name": output.name,
        "task": task,
        "start_from": str(directory),
        # Features are kept of rows that stay the same.
        "data": {"source": data, "packing": "documents" if method == "features" else "stream"},
        "tuning": {"method": method},
        "training": {**FINETUNING, "learning_rate": METHODS[method]},
    }
    _train(Recipe.from_dict(override(values, set_ or ())), output, resume, None, backend)


def _train(recipe, output: Path | None, resume: bool, data: str | None, backend: Backend | None) -> None:
    _use(backend)
    from kerasllm.training.checkpoint import Interrupted
    from kerasllm.training.run import train as run

    try:
        run(recipe, output or Path("saved_models") / recipe.name, resume=resume, data=data)
    except Interrupted as interruption:
        typer.echo(f"{interruption} Go on with the same command and --resume.", err=True)
        raise typer.Exit(128 + interruption.signal) from None


@command
def generate(
    directory: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="What the model continues.")],
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens to write at the most; when left out 100, or as many as the context has room for."),
    ] = None,
    sampler: Annotated[SamplerName, typer.Option(help="How the next token is chosen.")] = SamplerName.top_p,
    temperature: Annotated[float | None, typer.Option(help="Below 1 is safer, above 1 bolder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among this many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens of this probability.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which to stop.")] = None,
    truncation: Annotated[bool, typer.Option("--truncation", help="Let the context slide.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print as it is written.")] = False,
    engine: Annotated[
        str, typer.Option(help="What makes tokens: auto, keras, llama.cpp, onnxruntime or openvino.")
    ] = "keras",
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Continue a text, or answer it with a model that has an encoder."""
    _use(backend)
    import kerasllm
    from kerasllm.interop.presets import read_config

    has_encoder = read_config(directory)[1].num_encoder_layers > 0
    model = _load(kerasllm.Seq2SeqLM if has_encoder else kerasllm.CausalLM, directory, adapter)
    if engine != "keras":
        from kerasllm.compression.engines import use_engine

        use_engine(model, engine)
    answer = model.generate(
        prompt,
        max_new_tokens,
        sampler=sampler.value,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop or None,
        truncation=truncation,
        stream=stream,
    )
    # Streamed pieces are only what is new; a whole answer begins with the prompt.
    begins = [prompt] if stream and not has_encoder else []
    for piece in itertools.chain(begins, answer if stream else [answer]):
        print(piece, end="", flush=True)
    print()


def _load(task: type, directory: Path, adapter: Path | None) -> Any:
    """A model, with an adapter's labels and weights if there is one."""
    if adapter is None:
        return task.from_preset(directory)
    from kerasllm.tuning.files import saved_labels

    labels = saved_labels(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # A head that the base lacks comes with the adapter.
        model = task.from_preset(directory, **({"labels": labels} if labels else {}))
    model.load_adapter(adapter)
    return model


@command
def chat(
    directory: ModelArgument,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at the most.")] = 256,
    sampler: Annotated[SamplerName, typer.Option(help="How the next token is chosen.")] = SamplerName.greedy,
    temperature: Annotated[float | None, typer.Option(help="Below 1 is safer, above 1 bolder.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Choose among this many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among tokens of this probability.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same answers.")] = 0,
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Talk with a model that was tuned on conversations. /reset begins anew, /quit ends."""
    _use(backend)
    import kerasllm
    from kerasllm.chat.session import Chat
    from kerasllm.generation.sampling import Sampler

    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen = Sampler.from_arguments(sampler.value, seed=seed, **settings)
    model = _load(kerasllm.CausalLM, directory, adapter)
    session = Chat(model, system, max_new_tokens, chosen)
    if model.tokenizer.chat_template is None:
        typer.echo("(The model has no chat template: a default one is used, which it may not know.)", err=True)
    for said in _lines():
        if said == "/quit":
            return
        if said == "/reset":
            session.reset()
            typer.echo("A new conversation.", err=True)
        elif said:
            _answer(session, said)


def _lines() -> Iterator[str]:
    """What is typed, or comes through a pipe, line by line."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return


def _answer(session, said: str) -> None:
    before = session.dropped
    try:
        for piece in session.send(said):
            print(piece, end="", flush=True)
    except ValueError as error:
        typer.echo(f"Error: {_one_line(error)}", err=True)
        return
    except KeyboardInterrupt:
        pass  # Enough of this answer.
    print()
    if session.dropped > before:
        typer.echo(f"(The oldest {session.dropped} messages no longer fit, and were left out.)", err=True)


@command
def fill_mask(
    directory: ModelArgument,
    text: Annotated[str, typer.Argument(help="A text with the tokenizer's mask token, such as [MASK].")],
    top_k: Annotated[int, typer.Option(min=1, help="Tokens to show for each mask.")] = 5,
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Show what a masked language model puts in place of each mask."""
    _use(backend)
    import kerasllm

    model = _load(kerasllm.MaskedLM, directory, adapter)
    for number, mask in enumerate(model.predict_masks(text, top_k), start=1):
        _print_table(f"mask {number}", {filled.token: f"{filled.probability:.1%}" for filled in mask})


@command
def classify(
    directory: ModelArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts to label.")],
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Give texts the labels of a trained classifier."""
    _use(backend)
    import kerasllm

    if adapter is None and (saved := _class_of(directory, None)) is not kerasllm.TextClassifier:
        raise ValueError(
            f"{str(directory)!r} holds a {saved.__name__}, which has learned no labels of texts. Train one: kerasllm "
            f"finetune {directory} --task classify --data TABLE."
        )
    for text, answer in zip(texts, _load(kerasllm.TextClassifier, directory, adapter).classify(texts)):
        _print_table(text, {str(label): f"{probability:.1%}" for label, probability in answer.probabilities.items()})


@command
def embed(
    directory: ModelArgument,
    texts: Annotated[list[str], typer.Argument(help="Texts to turn into vectors.")],
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Print the vector of each text, as a line of JSON."""
    _use(backend)
    import json

    import kerasllm

    for text, vector in zip(texts, _load(kerasllm.TextEmbedder, directory, adapter).predict(texts, verbose=0)):
        print(json.dumps({"text": text, "vector": [round(float(x), 6) for x in vector]}, ensure_ascii=False))


@command
def evaluate(
    directory: ModelArgument,
    data: Annotated[str, typer.Option(help="Text, or a table of pairs: a file, folder, glob, hf: or builtin:NAME.")],
    column: Annotated[str | None, typer.Option(help="The text's column in a table.")] = None,
    source_column: Annotated[str | None, typer.Option(help="Of pairs: the column of the first texts.")] = None,
    target_column: Annotated[str | None, typer.Option(help="Of pairs: that of their labels or targets.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Measure a model as in training: on text, or, where it labels, answers or embeds texts, on pairs."""
    if (source_column is None) != (target_column is None):
        raise ValueError("Pairs have two columns: give both --source-column and --target-column.")
    columns = None if source_column is None else (source_column, target_column)
    _use(backend)
    from kerasllm.data.tables import MissingColumn
    from kerasllm.training.evaluation import evaluate_model

    model = _load(_class_of(directory, adapter), directory, adapter)
    try:
        rows = evaluate_model(model, data, column, columns, batch_size)
    except MissingColumn as error:
        raise ValueError(f"{error.found} Say which: --column, or --source-column and --target-column.") from None
    _print_table(data, rows)


def _class_of(directory: Path, adapter: Path | None) -> type:
    """The class that a directory was saved as; with a classifier's adapter, that of the adapter."""
    import kerasllm
    from kerasllm.compression.command import saved_class
    from kerasllm.tuning.files import saved_labels

    saved = saved_class(directory)
    labels = adapter and saved_labels(adapter)
    return kerasllm.TextClassifier if labels and saved is not kerasllm.TokenClassifier else saved


@command
def inspect(
    directory: ModelArgument,
    text: Annotated[str, typer.Argument(help="What the model reads.")],
    target: Annotated[
        str | None, typer.Option(help="What a model with an encoder writes; its own answer when left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where pictures go: a folder, or a .png file for one.")] = None,
    picture: Annotated[PictureName, typer.Option(help="Which one, in a .png file.")] = PictureName.heads,
    ablate: Annotated[bool, typer.Option("--ablate", help="Measure the loss without each head, too.")] = False,
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Look at how a model reads a text: its answer layer by layer, where its heads look, what they are good for."""
    _use(backend)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from kerasllm.inspection.command import inspect_directory

    console = Console(highlight=False)
    tables, paths = inspect_directory(directory, text, target, output, picture.value, ablate, adapter)
    for title, columns, rows in tables:
        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(Text(title, "bold"), table, "", sep="\n")
    for path in paths:
        print(path)


@command
def quantize(
    directory: ModelArgument,
    eval_: Annotated[str, typer.Option("--eval", help="Text to compare on: a file, folder, glob, or builtin:NAME.")],
    mode: Annotated[str, typer.Option(help="int8, int4, gptq, awq or float8.")] = "int8",
    output: Annotated[Path | None, typer.Option(help="Where the model goes.  [default: DIR-MODE]")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Layers to keep in float, such as 'block_0.*'.")] = None,
    embeddings: Annotated[bool, typer.Option(help="Quantize the token embedding and head, too.")] = True,
    group_size: Annotated[int | None, typer.Option(help="Inputs that share a scale, in int4, gptq and awq.")] = None,
    activations: Annotated[bool, typer.Option("--activations", help="int8 inputs of layers, too.")] = False,
    smooth: Annotated[
        float | None, typer.Option(help="Even out large inputs first (SmoothQuant): 0.5 is usual, with --activations.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="Text that gptq, awq and --smooth look at.")] = None,
    search: Annotated[
        float | None, typer.Option(help="Mix int4 and int8, for at most this rise of perplexity: 0.01 is 1 %.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="What makes tokens: auto, keras, llama.cpp, onnxruntime or openvino.")
    ] = "auto",
    backend: BackendOption = None,
) -> None:
    """Make a model smaller, and measure what it cost and brought."""
    _use(backend)
    from kerasllm.compression.command import quantize_directory
    from kerasllm.locks import only_writer

    output = output or directory.with_name(f"{directory.name}-{'mixed' if search else mode}")
    options = {
        "keep": keep or (),
        "embeddings": embeddings,
        "group_size": group_size,
        "activations": activations,
        "calibration": calibration,
    }
    with only_writer(output):
        rows = quantize_directory(directory, output, eval_, mode, options, search, engine, smooth)
    _print_table(f"{directory} → {output}", rows)


@command
def prune(
    directory: ModelArgument,
    eval_: Annotated[str, typer.Option("--eval", help="Text to compare on: a file, folder, glob, or builtin:NAME.")],
    method: Annotated[
        str | None, typer.Option(help="How zeros are chosen: magnitude, wanda or sparsegpt.  [default: wanda]")
    ] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="Share of zeros, or a pattern such as 2:4.  [default: 0.5]")
    ] = None,
    heads: Annotated[float, typer.Option(help="Share of heads to take away, instead of zeros.")] = 0.0,
    neurons: Annotated[float, typer.Option(help="Share of feed-forward neurons to take away.")] = 0.0,
    layers: Annotated[float, typer.Option(help="Share of blocks to take away.")] = 0.0,
    calibration: Annotated[str | None, typer.Option(help="Text that is looked at to choose.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the model goes.  [default: DIR-pruned]")] = None,
    backend: BackendOption = None,
) -> None:
    """Set weights to zero, or take heads, neurons and blocks away, and measure what it cost and brought."""
    _use(backend)
    from kerasllm.compression.command import prune_directory
    from kerasllm.locks import only_writer

    output = output or directory.with_name(f"{directory.name}-pruned")
    with only_writer(output):
        rows = prune_directory(directory, output, eval_, method, sparsity, heads, neurons, layers, calibration)
    _print_table(f"{directory} → {output}", rows)


@command
def distil(
    directory: ModelArgument,
    data: Annotated[str, typer.Option(help="Text to train on: a file, folder, glob, hf: or builtin:NAME.")],
    num_layers: Annotated[int, typer.Option(min=1, help="Blocks of the student, which begin as the teacher's.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 1000,
    learning_rate: Annotated[float, typer.Option(help="The highest; it comes down by a cosine.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 16,
    divergence: Annotated[str, typer.Option(help="forward_kl, reverse_kl or jensen_shannon.")] = "forward_kl",
    temperature: Annotated[float, typer.Option(help="What logits are divided by.")] = 2.0,
    hard: Annotated[float, typer.Option(help="Share of the true tokens in the loss.")] = 0.5,
    output: Annotated[Path | None, typer.Option(help="Where the student goes.  [default: DIR-student]")] = None,
    backend: BackendOption = None,
) -> None:
    """Train a smaller model to answer as a saved one does."""
    _use(backend)
    from kerasllm.compression.command import distil_directory
    from kerasllm.locks import only_writer

    output = output or directory.with_name(f"{directory.name}-student")
    settings = {"divergence": divergence, "temperature": temperature, "hard": hard}
    with only_writer(output):
        rows = distil_directory(directory, output, data, num_layers, steps, learning_rate, batch_size, **settings)
    _print_table(f"{directory} → {output}", rows)


@command
def serve(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Saved models; each goes by its name.")],
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen; any free one, which the log names, when 0.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help="What clients must send; KERASLLM_API_KEY when left out.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="An adapter of the first model, as a model of its own.")
    ] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Answers made at once; up to 16 when left out.")] = None,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens of prompt and answer; the model's context.")] = None,
    cache_dtype: Annotated[
        CacheDtype | None, typer.Option(help="What keys and values are kept in; int8 has room for four times as much.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait for a slot.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 600.0,
    hang_timeout: Annotated[
        float, typer.Option(min=1, help="A model that is asked and silent for so many seconds is started again.")
    ] = 300.0,
    ssl_certfile: Annotated[Path | None, typer.Option(help="Certificate, for TLS.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(help="An origin whose pages may call the server.")] = None,
    log_text: Annotated[bool, typer.Option("--log-text", help="Log what people send, too.")] = False,
    backend: BackendOption = None,
) -> None:
    """Serve models over HTTP, as OpenAI's clients expect it."""
    _choose(backend)  # Each model is in a process of its own, and Keras there.
    from kerasllm.serving.command import serve as run

    run(
        directories,
        host,
        port,
        api_key=api_key,
        adapters=adapter or (),
        slots=slots,
        length=length,
        cache_dtype=cache_dtype and cache_dtype.value,
        max_waiting=max_waiting,
        seconds=timeout,
        hang_seconds=hang_timeout,
        certificate=ssl_certfile,
        certificate_key=ssl_keyfile,
        cors_origins=cors_origin or (),
        log_text=log_text,
    )


@command
def playground(
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="A model of yours, to begin with.")] = None,
    host: Annotated[str, typer.Option(help="Where to listen; beyond this machine only with --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="A free one from 7860 on, when 0.")] = 0,
    auth: Annotated[str | None, typer.Option(metavar="NAME:PASSWORD", help="What the page asks for.")] = None,
    desktop: Annotated[bool, typer.Option("--desktop", help="In a window of its own.")] = False,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    folder: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("saved_models/playground"),
    backend: BackendOption = None,
) -> None:
    """Open a page in which models are trained, looked into, changed, compared and taken away."""
    if backend is None and "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("torch"):
        backend = Backend.torch  # It compiles nothing: answers come at once.
    _use(backend)
    try:
        from playground.server import Settings, run
    except ModuleNotFoundError:
        raise ImportError("The playground is not installed: pip install 'kerasllm[playground]'") from None
    run(Settings(host=host, port=port, auth=auth, model=model, root=folder), desktop, browser)


@command
def export(
    directory: ModelArgument,
    format_: Annotated[
        str, typer.Option("--format", help="tf_saved_model, onnx, openvino, litert, gguf or huggingface.")
    ] = "tf_saved_model",
    output: Annotated[Path | None, typer.Option(help="Where it goes.  [default: DIR-FORMAT]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a directory that exists.")] = False,
    kind: Annotated[str | None, typer.Option(help="The weights of a GGUF file: f32, f16, q8_0 or q4_0.")] = None,
    adapter: AdapterOption = None,
    backend: BackendOption = None,
) -> None:
    """Write a model for other programs: TensorFlow Serving, ONNX Runtime, OpenVINO, LiteRT, llama.cpp, transformers."""
    _use(backend)
    from kerasllm.compression.command import saved_class
    from kerasllm.serving.export import export_saved

    model = _load(saved_class(directory), directory, adapter)
    output = output or directory.with_name(f"{directory.name}-{format_}")
    options = {} if kind is None else {"kind": kind}
    typer.echo(str(export_saved(model, directory, output, format_, overwrite, **options)))


@command
def info(
    model: Annotated[str, typer.Argument(metavar="NAME_OR_DIR", help="A named size, or a model's directory.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences, for the cache and activations.")] = 1,
) -> None:
    """Count parameters, memory and FLOPs of a model, without allocating it."""
    from kerasllm.sizes import figures

    _print_table(model, figures(_config(model), batch_size))


@command
def recipes() -> None:
    """List the recipes and what to expect of them."""
    from rich.console import Console
    from rich.table import Table

    from kerasllm.training.recipe import load_recipe, recipe_names

    table = Table("recipe", "steps", "val_loss", "minutes", "memory", "on", box=None, pad_edge=False)
    loaded = [load_recipe(name) for name in recipe_names()]
    for recipe in loaded:
        expected = {"hardware": "", **recipe.expected}
        memory = f"{expected['memory_gb']} GB" if "memory_gb" in expected else ""
        figures = [str(expected.get(key, "")) for key in ("val_loss", "minutes")]
        table.add_row(recipe.name, f"{recipe.training.steps:,}", *figures, memory, expected["hardware"])
    console = Console(highlight=False)
    console.print(table)
    for recipe in loaded:
        console.print(f"\n[bold]{recipe.name}[/bold]  {recipe.description}")
        if recipe.data.source is None:
            console.print(f"  needs --data: {recipe.data.wanted}", markup=False)


def main() -> None:
    """The `kerasllm` command."""
    # Quiet unless asked: TensorFlow greets on standard error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {_one_line(message)}\n"
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # A terminal that cannot show a character ends nothing.
    app(prog_name="kerasllm")


def _choose(backend: Backend | None) -> None:
    """Sets the backend, which Keras reads once, when it is imported."""
    if backend is None:
        found = os.environ.get("KERAS_BACKEND")
        if found and found not in list(Backend):
            raise ValueError(f"The backend must be one of {', '.join(Backend)}. Received: KERAS_BACKEND={found}")
        return
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != backend.value:
        raise ValueError(f"Keras has been imported with another backend than {backend.value}.")
    os.environ["KERAS_BACKEND"] = backend.value


def _use(backend: Backend | None) -> None:
    """Sets the backend, and imports it without the lines with which it greets."""
    _choose(backend)
    from kerasllm.quiet import load_backend

    load_backend()


def _config(name_or_directory: str):
    from kerasllm.config import TransformerConfig

    if os.sep in name_or_directory or Path(name_or_directory).is_dir():
        from kerasllm.interop.presets import read_config

        return read_config(name_or_directory)[1]
    return TransformerConfig.from_name(name_or_directory)


def _print_table(title: str, rows: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _one_line(error: BaseException) -> str:
    if found := getattr(error, "found", None):  # a MissingColumn, where the command has no option for it
        return f"{found} Give the columns these names."
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        # str() of a KeyError is the repr of its message.
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())
