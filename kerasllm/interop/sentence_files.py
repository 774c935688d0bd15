"""What sentence-transformers keeps beside a model: how token vectors become one, how texts are cut, and prompts."""

import json
from pathlib import Path

from kerasllm.interop.weight_files import read_json
from kerasllm.models.marked_text import marks_of, row_limit

MAX_BYTES = 1 << 20
MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta")
)
KINDS = ("Transformer", "Pooling", "Normalize")
MODES = {"mean": "mean", "cls": "first", "lasttoken": "last"}
FLAGS = {  # how older versions spell the modes
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
REMEDY = "Open the model without it by removing modules.json, and give pooling=... and normalize=... to from_preset."


def model_directory(directory: Path) -> Path:
    """Where the Transformer's own files are: old directories have a folder for them."""
    if (directory / "config.json").is_file() or not (directory / MODULES).is_file():
        return directory
    return directory / _folder(_modules(directory)[0])


def read_sentence_options(directory: Path, tokenizer, given: dict) -> dict:
    """Arguments of a `TextEmbedder` that makes the vectors of sentence-transformers; empty without its files.

    Args:
        tokenizer: the directory's, or `None`.
        given: arguments that the user chose, which are not looked for.

    Raises:
        ValueError: the directory does something to texts or vectors that a `TextEmbedder` does not.
    """
    if not (directory / MODULES).is_file():
        return {}
    modules = _modules(directory)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    if kinds not in ([*KINDS], [*KINDS[:2]]):
        raise ValueError(
            f"A TextEmbedder is made of {', '.join(KINDS[:2])} and perhaps {KINDS[2]}, in this order. Received: "
            f"{', '.join(kinds)} in {str(directory / MODULES)!r}. {REMEDY}"
        )
    options = {"normalize": kinds[-1] == "Normalize", "truncation": True, "add_special_tokens": True}
    prompts = _prompts(directory)
    pooling = read_json(directory / _folder(modules[1]) / "config.json", MAX_BYTES)
    if "pooling" not in given:
        options["pooling"] = _pooling(pooling)
    if pooling.get("include_prompt") is False and any(prompts.get("prompts", {}).values()):
        raise ValueError(
            "A TextEmbedder pools all tokens, those of a prompt, too. Received: include_prompt=False, and the prompts "
            f"{', '.join(prompts['prompts'])}. {REMEDY}"
        )
    return {**options, **prompts, **_cut(directory / _folder(modules[0]), tokenizer)}


def _modules(directory: Path) -> list[dict]:
    modules = read_json(directory / MODULES, MAX_BYTES, list)
    if not modules or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{str(directory / MODULES)!r} must hold a list of modules. Received: {str(modules)[:80]}")
    return modules


def _folder(module: dict) -> str:
    folder = module.get("path", "")
    if not isinstance(folder, str) or any(mark in folder for mark in "/\\:") or folder.startswith("."):
        raise ValueError(f"A module in modules.json has a folder beside it. Received: path={folder!r}")
    return folder


def _pooling(values: dict) -> str:
    modes = values.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in FLAGS.items() if values.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in MODES:
        raise ValueError(
            f"A TextEmbedder pools in one of these ways: {', '.join(MODES)}. Received: pooling_mode={modes!r}. {REMEDY}"
        )
    return MODES[modes[0]]


def _prompts(directory: Path) -> dict:
    values = read_json(directory / SETTINGS, MAX_BYTES) if (directory / SETTINGS).is_file() else {}
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
    size = values.get("truncate_dim")
    if size is not None:
        raise ValueError(f"A TextEmbedder gives whole vectors. Received: truncate_dim={size!r} in {SETTINGS}. {REMEDY}")
    prompts = {name: text or "" for name, text in prompts.items()} if isinstance(prompts, dict) else prompts
    return {"prompts": prompts, "default_prompt": default} if prompts or default else {}


def _cut(transformer: Path, tokenizer) -> dict:
    """`max_length`: the tokens after which texts are cut."""
    path = next((transformer / name for name in TRANSFORMER if (transformer / name).is_file()), None)
    values = read_json(path, MAX_BYTES) if path else {}
    for key, usual in {
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "query_length": None,
        "document_length": None,
        "query_expansion": None,
    }.items():
        if values.get(key, usual) != usual:
            raise ValueError(
                f"A TextEmbedder does not do this. Received: {key}={values[key]!r} in {path.name}. {REMEDY}"
            )
    if values.get("do_lower_case") and tokenizer and tokenizer.encode("Aé Bö") != tokenizer.encode("aé bö"):
        raise ValueError(
            f"{path.name} says do_lower_case=true, and the tokenizer tells small letters from capital ones. Put a "
            "Lowercase normalizer into tokenizer.json, and remove do_lower_case."
        )
    settings = transformer / "tokenizer_config.json"
    settings = read_json(settings, MAX_BYTES) if settings.is_file() else {}
    if settings.get("truncation_side", "right") != "right":
        raise ValueError(
            "A TextEmbedder cuts the end of a long text. Received: truncation_side="
            f"{settings['truncation_side']!r} in tokenizer_config.json. {REMEDY}"
        )
    length = values.get("max_seq_length") or settings.get("model_max_length")
    # A tokenizer without a limit says so with a number of 31 digits.
    return {"max_length": length} if isinstance(length, int) and length < 1 << 31 else {}


def write_sentence_files(model, directory: Path) -> None:
    """Writes what sentence-transformers needs to make the same vectors, if it can."""
    modes = {ours: mode for mode, ours in MODES.items()}
    start, _, end = marks_of(model) if model.tokenizer else ((), (), ())
    if model.pooling not in modes or model.tokenizer is None or [start, end] != model.tokenizer.template_ids("a"):
        return
    kinds = KINDS if model.normalize else KINDS[:2]
    folders = ("", "1_Pooling", "2_Normalize")
    files = {
        MODULES: [
            {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, folder) in enumerate(zip(kinds, folders))
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": model.config.hidden_dim,
            **{flag: mode == modes[model.pooling] for flag, mode in FLAGS.items()},
            "include_prompt": True,
        },
        TRANSFORMER[0]: {"max_seq_length": row_limit(model), "do_lower_case": False},
        SETTINGS: {"prompts": model.prompts, "default_prompt_name": model.default_prompt},
    }
    (directory / "1_Pooling").mkdir()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
