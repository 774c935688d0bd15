"""A recipe carried out: text in, a run directory out."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import keras
from rich.console import Console

import kerasllm
from kerasllm.chat.template import DEFAULT_TEMPLATE, render_template
from kerasllm.chat.tokens import template_of
from kerasllm.data import TokenDataset, from_text, read_texts
from kerasllm.data.chat import conversation_data
from kerasllm.data.sources import source_files
from kerasllm.data.tables import MissingColumn
from kerasllm.files import written_aside
from kerasllm.interop.presets import read_config
from kerasllm.locks import LOCK_FILE, only_writer
from kerasllm.models.language_model import LanguageModel
from kerasllm.tokenizers import Tokenizer
from kerasllm.training.callbacks import Figure, JSONLLogger, Progress, Samples, StopOnNaN, Throughput, say
from kerasllm.training.checkpoint import Checkpoint, latest
from kerasllm.training.model_card import model_card
from kerasllm.training.optimizers import OPTIMIZERS
from kerasllm.training.plots import plot_curves
from kerasllm.training.recipe import WHOLE_MODEL, Recipe, Training, differing_keys, load_recipe
from kerasllm.training.tasks import TASKS, fit_arguments, label_counts, model_options, split_pairs
from kerasllm.tuning.features import cache_features
from kerasllm.tuning.forgetting import release
from kerasllm.tuning.freezing import trained
from kerasllm.tuning.methods import ADAPTER, prepare, with_rates

EXTENDING = ("training.steps", "training.evaluate_every")  # What a resumed run may be given anew, see `_check_steps`.


def train(
    recipe: Recipe | str | os.PathLike,
    output: str | os.PathLike,
    resume: bool = False,
    data: str | os.PathLike | None = None,
    console: Console | None = None,
) -> LanguageModel:
    """Trains a model as a recipe says, and writes a run directory.

    The directory has the model as `save_to_preset` writes it, with its last weights, or the adapter that was
    trained, as `save_adapter` writes it, and `recipe.yaml`,
    `metrics.jsonl`, `curves.png`, `samples.txt`, `checkpoints/` and a model card, `README.md`. Nothing is
    written before the recipe, the text and the model have been checked.

    Args:
        recipe: a `Recipe`, the name of one, or the path of a YAML file.
        output: the directory; it must be new or empty, unless `resume`. No other process may write into it meanwhile.
        resume: go on from the newest checkpoint in `output`, with the same recipe, of which only `training.steps` may
            be another: more of them extend a finished run. Begin if there is no checkpoint.
        data: the text, in place of the recipe's `data.source`.
        console: where to report; standard output when left out.

    Returns:
        The trained model.

    Raises:
        ValueError: the recipe lacks a text, the directory is in use, or it was made by another recipe.
        FloatingPointError: the loss became NaN. The checkpoints are whole.
        Interrupted: SIGINT or SIGTERM came, and a checkpoint was saved.
        OSError: something could not be written. The checkpoints are whole.

    Example:

    ```python
    model = kerasllm.training.train("quickstart", "saved_models/quickstart")
    ```
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if data is not None:
        recipe = replace(recipe, data=replace(recipe.data, source=os.fspath(data)))
    output, console = Path(output), console or Console()
    _check_source(recipe)
    with only_writer(output):
        _check_directory(output, recipe, resume)
        try:
            return _train(recipe, output, resume, console)
        except MissingColumn as error:
            raise ValueError(f"{error.found} Say which with data.column: --set data.column=NAME.") from None


def _train(recipe: Recipe, output: Path, resume: bool, console: Console) -> LanguageModel:
    keras.utils.set_random_seed(recipe.training.seed)
    task = TASKS[recipe.task]
    pairs, held_out = split_pairs(recipe.data, task) if task.objective is None else (None, None)
    tokenizer = _tokenizer(recipe, output, pairs)
    cls, options = getattr(kerasllm, task.model), model_options(task, pairs)
    if recipe.start_from is None:
        config = recipe.config(tokenizer.vocabulary_size)
        model = cls(config, tokenizer, dtype=recipe.training.dtype, **options)
    else:
        model = cls.from_preset(recipe.start_from, dtype=recipe.training.dtype, **options)
        prepare(model, recipe.tuning)
        config = model.config
    tokenizer = model.tokenizer
    if task.conversations:
        tokenizer.chat_template = template_of(tokenizer)
    model.transformer.embedding.add_noise(recipe.training.neftune_alpha, recipe.training.seed)
    model.compile(optimizer=with_rates(_optimizer(recipe, model), model, recipe.tuning))
    if pairs is None:
        train_data, validation_data = _text_data(recipe, model)
    elif task.conversations:
        train_data, validation_data = _conversation_data(recipe, model, pairs, held_out)
    else:
        train_data, validation_data = _pair_data(recipe, model, pairs, held_out)
    size = f"{len(train_data.shards):,} training tokens" if pairs is None else f"{len(pairs):,} examples"
    if recipe.tuning.method == "features":
        train_data = cache_features(model, train_data)
    # What Keras calls an epoch is, here, the steps between two evaluations.
    train_data.steps_per_epoch = recipe.training.steps_per_evaluation * recipe.training.accumulation

    with written_aside(output / "recipe.yaml") as aside:
        aside.write_text(recipe.to_yaml(), encoding="utf-8")
    tokenizer.save_to_preset(output)
    say(
        console,
        f"{recipe.name}: {config.num_parameters():,} parameters, {size}, {recipe.training.steps:,} steps, "
        f"{keras.backend.backend()}",
    )
    if getattr(model, "labels", None) and pairs is not None:
        say(console, label_counts(pairs))
    if recipe.start_from is not None:
        counts = trained(model)
        say(console, f"{recipe.tuning.method}: {counts.parameters:,} parameters are trained")
    if resume and (checkpoint := latest(output / "checkpoints")):
        is_over = _batches_done(output) >= recipe.training.steps * recipe.training.accumulation
        more = "; the run is finished: give it more with --set training.steps=..." if is_over else ""
        say(console, f"Resuming from {checkpoint}{more}")

    progress, throughput = Progress(console), Throughput()
    callbacks = _callbacks(recipe, output, resume, progress, throughput, console, held_out)
    training = recipe.training
    try:
        epochs = training.steps // training.steps_per_evaluation
        model.fit(train_data, validation_data=validation_data, epochs=epochs, callbacks=callbacks, verbose=0)
    except OSError as error:
        where = latest(output / "checkpoints")
        kept = f"{where} is whole; make room and resume." if where else "There is no checkpoint yet."
        raise OSError(error.errno, f"Training stopped: {error.strerror or error}. {kept}") from error
    finally:
        progress.close()

    if recipe.tuning.anchor:
        release(model)
    if recipe.tuning.method in WHOLE_MODEL:
        model.save_to_preset(output)
    else:
        model.save_adapter(output, ADAPTER)
    _plot(output, console)
    with written_aside(output / "README.md") as aside:
        aside.write_text(model_card(recipe, model, output, throughput.mfu_denominator), encoding="utf-8")
    say(console, f"Saved to {output}")
    return model


def _check_directory(output: Path, recipe: Recipe, resume: bool) -> None:
    if not any(path.name != LOCK_FILE for path in output.iterdir()):
        return
    saved = output / "recipe.yaml"
    if not resume:
        going_on = " or go on with --resume" if saved.is_file() else ""
        raise ValueError(f"The output directory {str(output)!r} is not empty. Choose another{going_on}.")
    if not saved.is_file():
        raise ValueError(f"There is no run to resume in {str(output)!r}: it has no recipe.yaml.")
    before = load_recipe(saved)
    if differing := [key for key in differing_keys(recipe, before) if key not in EXTENDING]:
        raise ValueError(
            f"The run in {str(output)!r} was begun with another recipe: {', '.join(differing)} differ. "
            f"Resume with the same one, {str(saved)!r}, or choose another directory. Only training.steps may change."
        )
    _check_steps(output, recipe.training, before.training)


def _check_steps(output: Path, now: Training, before: Training) -> None:
    """A run goes on to more steps than it was begun with, or to fewer, if it has not made them yet."""
    if now.steps_per_evaluation != before.steps_per_evaluation:
        raise ValueError(
            f"The run in {str(output)!r} was begun with evaluations every {before.steps_per_evaluation} steps. Resume "
            f"it with --set training.evaluate_every={before.steps_per_evaluation}. "
            f"Received: steps={now.steps}, evaluate_every={now.evaluate_every}"
        )
    if (done := _batches_done(output) // now.accumulation) > now.steps:
        raise ValueError(f"The run in {str(output)!r} has made {done} steps already. Received: steps={now.steps}")


def _batches_done(output: Path) -> int:
    """Batches that the newest checkpoint has seen."""
    checkpoint = latest(output / "checkpoints")
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def _check_source(recipe: Recipe) -> None:
    """Finds out what is not there before anything is made."""
    if recipe.data.source is None:
        wanted = f" ({recipe.data.wanted})" if recipe.data.wanted else ""
        raise ValueError(f"The recipe {recipe.name!r} needs a text{wanted}: give it with --data PATH.")
    source_files(recipe.data.source)
    if recipe.start_from is not None:
        read_config(recipe.start_from)


def _tokenizer(recipe: Recipe, output: Path, pairs: list | None) -> Tokenizer:
    data, vocabulary = recipe.data, recipe.tokenizer
    if (output / "tokenizer.json").is_file():
        return Tokenizer.from_preset(output)
    if recipe.start_from is not None:
        return Tokenizer.from_preset(recipe.start_from)
    if vocabulary.preset is not None:
        return Tokenizer.from_preset(vocabulary.preset)
    if TASKS[recipe.task].conversations:
        # The end token, which is no text, is left out.
        texts = (render_template(DEFAULT_TEMPLATE, messages, {"eos_token": ""}).text for messages in pairs)
    else:
        texts = read_texts(data.source, data.column) if pairs is None else itertools.chain.from_iterable(pairs)
    special_tokens = TASKS[recipe.task].tokens(vocabulary.kind)
    return Tokenizer.train(texts, vocabulary.kind, vocabulary.vocabulary_size, special_tokens)


def _text_data(recipe: Recipe, model: LanguageModel) -> tuple[TokenDataset, TokenDataset | None]:
    data, training = recipe.data, recipe.training
    train_data, validation_data = from_text(
        data.source,
        model.tokenizer,
        TASKS[recipe.task].objective,
        sequence_length=min(data.sequence_length, model.config.max_sequence_length),
        batch_size=data.batch_size,
        validation_fraction=data.validation_fraction,
        seed=training.seed,
        packing=data.packing,
        cache_dir=data.cache_dir,
        column=data.column,
    )
    if validation_data is not None and training.evaluate_steps is not None:
        validation_data = _beginning(validation_data, training.evaluate_steps)
    return train_data, validation_data


def _pair_data(recipe: Recipe, model, pairs: list, held_out: list | None):
    task, data, training = TASKS[recipe.task], recipe.data, recipe.training
    train_data = model.as_data(*fit_arguments(task, pairs), batch_size=data.batch_size, shuffle=True)
    train_data.seed = training.seed
    if held_out is None:
        return train_data, None
    stop = training.evaluate_steps and training.evaluate_steps * data.batch_size
    return train_data, model.as_data(*fit_arguments(task, held_out[:stop]), batch_size=data.batch_size)


def _conversation_data(recipe: Recipe, model, conversations: list, held_out: list | None):
    data, training = recipe.data, recipe.training
    options = {
        "tokenizer": model.tokenizer,
        "sequence_length": min(data.sequence_length, model.config.max_sequence_length),
        "batch_size": data.batch_size,
    }
    train_data = conversation_data(conversations, shuffle=True, seed=training.seed, **options)
    if held_out is None:
        return train_data, None
    validation_data = conversation_data(held_out, shuffle=False, **options)
    if training.evaluate_steps is not None:
        validation_data = _beginning(validation_data, training.evaluate_steps)
    return train_data, validation_data


def _beginning(dataset: TokenDataset, steps: int) -> TokenDataset:
    """The first batches of a validation set. (Fewer steps an epoch would walk on through it.)"""
    stop = min(len(dataset.shards), steps * dataset.tokens_per_batch + 1)
    return TokenDataset(
        dataset.shards.slice(0, stop),
        dataset.sequence_length,
        dataset.batch_size,
        packing=dataset.packing,
        objective=dataset.objective,
        pad_token_id=dataset.pad_token_id,
        shuffle=False,
    )


def _optimizer(recipe: Recipe, model: LanguageModel) -> keras.optimizers.Optimizer:
    training = recipe.training
    return OPTIMIZERS[training.optimizer](
        training.learning_rate,
        total_steps=training.steps,
        warmup_steps=training.warmup_steps,
        final_fraction=training.final_fraction,
        weight_decay=training.weight_decay,
        beta_2=training.beta_2,
        clipnorm=training.clipnorm,
        accumulation=training.accumulation,
        model=model,
    )


def _callbacks(recipe, output, resume, progress, throughput, console, held_out) -> list[keras.callbacks.Callback]:
    """In the order in which they must see the end of an epoch: who adds to the logs first, who saves last."""
    training, callbacks = recipe.training, keras.callbacks
    every = training.checkpoint_every and training.checkpoint_every * training.accumulation
    chosen = [
        StopOnNaN(output / "checkpoints"),
        throughput,
        *_figures(recipe, held_out),
        progress,
        JSONLLogger(output / "metrics.jsonl"),
    ]
    if training.csv:
        chosen.append(callbacks.CSVLogger(output / "metrics.csv", append=resume))
    if training.tensorboard:
        chosen.append(callbacks.TensorBoard(output / "tensorboard"))
    if training.sample_prompt is not None and TASKS[recipe.task].writes_text:
        path, tokens = output / "samples.txt", training.sample_tokens
        chosen.append(Samples(path, training.sample_prompt, max_new_tokens=tokens, console=console))
    if training.early_stopping:
        chosen.append(callbacks.EarlyStopping("val_loss", patience=training.early_stopping))
    checkpoints = output / "checkpoints"
    return [*chosen, Checkpoint(checkpoints, every, keep=training.keep_checkpoints, resume=resume)]


def _figures(recipe: Recipe, held_out: list | None) -> list[keras.callbacks.Callback]:
    figure = TASKS[recipe.task].figure
    if figure is None or held_out is None:
        return []
    name, function = figure
    return [Figure(f"val_{name}", lambda model: function(model, held_out))]


def _plot(output: Path, console: Console) -> None:
    try:
        plot_curves(output / "metrics.jsonl", output / "curves.png")
    except ImportError as error:
        say(console, f"No curves.png: {error}")
