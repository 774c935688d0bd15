"""Tokenizers in the files that came before tokenizer.json, read as transformers reads them, or refused by name."""

import json
import warnings
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from kerasllm.interop.sentencepiece_tokenizers import read_sentencepiece

MAX_BYTES = 1 << 26
BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer", "ConvBertTokenizer")
BERT += ("LayoutLMTokenizer", "LxmertTokenizer", "SqueezeBertTokenizer", "DPRQuestionEncoderTokenizer")
SENTENCEPIECE = ("T5Tokenizer", "MT5Tokenizer", "LlamaTokenizer", "GemmaTokenizer")
BYTE_LEVEL = ("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "Qwen2Tokenizer")
ANY = (None, "PreTrainedTokenizer", "TokenizersBackend")  # say nothing of what is in the files
# What transformers takes where no file names a class, by the model_type of config.json.
CLASSES = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert", "convbert", "layoutlm"), "BertTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "codegen", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("roberta", "bart", "longformer", "data2vec-text"), "RobertaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("t5", "mt5", "switch_transformers"), "T5Tokenizer"),
    **dict.fromkeys(("llama", "mistral", "mixtral"), "LlamaTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
}
# Files of tokenizers that are not read. A directory that has one, and no tokenizer.json, is opened with a warning.
UNREAD = ("tekken.json", "sentencepiece.bpe.model", "spm.model", "source.spm", "spm_char.model", "tiktoken.model")
UNREAD += ("qwen.tiktoken", "bpe.codes", "vocab.bpe", "encoder.json", "vocab.json", "merges.txt", "vocab.model")
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_of_directory(directory):
    """The `Tokenizer` of a model's directory; `None`, with a warning if it has one that is not read.

    Raises:
        ValueError: a file is damaged, or of a tokenizer that would be read wrongly.
    """
    from kerasllm.tokenizers import Tokenizer

    directory = Path(directory)
    if (directory / "tokenizer.json").is_file() or _reader(directory) is not None:
        return Tokenizer.from_preset(directory)
    if found := [name for name in UNREAD if (directory / name).is_file()]:
        warnings.warn(f"The model is opened without its tokenizer. {_unread(directory, found)}", stacklevel=4)
    return None


def read_older(directory, config: dict) -> RustTokenizer | None:
    """The tokenizer of a directory without a tokenizer.json; `None` if it has none of the older files.

    Args:
        directory: where to look.
        config: the contents of its tokenizer_config.json and special_tokens_map.json.

    Raises:
        ValueError: a file is damaged, too large or of a kind that is not read.
    """
    directory = Path(directory)
    reader = _reader(directory)
    if reader is None:
        if found := [name for name in UNREAD if (directory / name).is_file()]:
            raise ValueError(_unread(directory, found))
        return None
    names, classes, read = reader
    for path in (directory / name for name in names):
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{str(path)!r} is larger than {MAX_BYTES} bytes, too large for a vocabulary.")
    its_class = _class_of(directory, config)
    if its_class not in (*ANY, *classes):
        raise ValueError(
            f"{str(directory / names[0])!r} is of a {its_class}, which is not read: its tokens would be others. "
            f"{_REMEDY.format(directory)}"
        )
    tokenizer, starts, ends = read(directory / names[0], {**config, "tokenizer_class": its_class})
    return _between(tokenizer, starts, ends)


_REMEDY = (
    "Make a tokenizer.json of it: transformers.AutoTokenizer.from_pretrained({0!r}).save_pretrained({0!r})."
).replace("{0!r}", "'{0}'")


def _unread(directory: Path, found: list[str]) -> str:
    return (
        f"{str(directory)!r} has a tokenizer in {' and '.join(found)}, which is not read. {_REMEDY.format(directory)}"
    )


def _reader(directory: Path):
    """The first of `READERS` whose files are all there."""
    return next((r for r in READERS if all((directory / name).is_file() for name in r[0])), None)


def _class_of(directory: Path, config: dict) -> str | None:
    """The class that transformers would read the files with."""
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    values = values if isinstance(values, dict) else {}
    its_class = str(config.get("tokenizer_class") or values.get("tokenizer_class") or "").removesuffix("Fast")
    if its_class not in ("", *ANY):
        return its_class
    kind = values.get("model_type")
    return CLASSES.get(kind, None if kind is None else f"tokenizer of model_type {kind!r}")


def _lines(path: Path) -> list[str]:
    r"""The lines of a file of tokens, cut at "\n" alone: a token may be any other line end of Unicode's."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    if text.startswith("\ufeff"):
        raise ValueError(
            f"{str(path)!r} begins with a byte order mark, which would be part of its first token. Save it as UTF-8 "
            "without one."
        )
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _wordpiece(path: Path, config: dict):
    """BERT's vocab.txt, a token a line; Devlin et al. (2018)."""
    if config.get("do_basic_tokenize") is False or config.get("never_split"):
        raise ValueError(
            f"The tokenizer_config.json beside {str(path)!r} sets do_basic_tokenize=False or never_split, which is not "
            "read: its tokens would be others."
        )
    vocabulary = {token: index for index, token in enumerate(_lines(path))}
    unknown, start, end, pad, mask = (
        _content(config.get(f"{role}_token"), f"[{role.upper()}]") for role in ("unk", "cls", "sep", "pad", "mask")
    )
    if unknown not in vocabulary:
        raise ValueError(f"{str(path)!r} is no vocabulary of a BERT: it lacks {unknown}.")
    tokenizer = RustTokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in (pad, unknown, start, end, mask) if token in vocabulary])
    both = {start, end} <= vocabulary.keys()
    return tokenizer, [start] if both else [], [end] if both else []


def _byte_level(path: Path, config: dict):
    """GPT-2's vocab.json and merges.txt, and those of RoBERTa and Qwen2; Radford et al. (2019)."""
    vocabulary = _vocabulary(path)
    pairs = []
    for number, line in enumerate(_lines(path.with_name("merges.txt")), start=1):
        if line.startswith("#version") or not line:
            continue
        pair = tuple(line.split(" "))
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise ValueError(
                f"Line {number} of {str(path.with_name('merges.txt'))!r} is not two tokens of vocab.json that make a "
                f"third. Received: {line!r}"
            )
        pairs.append(pair)
    tokenizer = RustTokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    prefix = bool(config.get("add_prefix_space") or False)
    tokenizer.decoder = decoders.ByteLevel()
    if config["tokenizer_class"] == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    roberta = config["tokenizer_class"] in ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer")
    usual = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if roberta else ("<|endoftext|>",)
    tokenizer.add_special_tokens([token for token in usual if token in vocabulary])
    if roberta:
        start, end = _content(config.get("cls_token"), "<s>"), _content(config.get("sep_token"), "</s>")
        if {start, end} <= vocabulary.keys():
            tokenizer.post_processor = processors.RobertaProcessing(
                (end, vocabulary[end]), (start, vocabulary[start]), True, prefix
            )
        return tokenizer, [], []
    start, end = (_content(config.get(f"{role}_token"), "<|endoftext|>") for role in ("bos", "eos"))
    return tokenizer, [start] if config.get("add_bos_token") else [], [end] if config.get("add_eos_token") else []


def _vocabulary(path: Path) -> dict[str, int]:
    try:
        vocabulary = json.loads(path.read_bytes().decode())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from None
    if not isinstance(vocabulary, dict) or not all(isinstance(i, int) and i >= 0 for i in vocabulary.values()):
        raise ValueError(f"{str(path)!r} is damaged: expected a JSON object of tokens and their ids")
    return vocabulary


def _content(token, usual: str) -> str:
    """The text of a token in a config, where it may be an object with flags."""
    token = token.get("content") if isinstance(token, dict) else token
    return usual if token is None else str(token)


def _between(tokenizer: RustTokenizer, starts: list[str], ends: list[str]) -> RustTokenizer:
    """The tokenizer, which then puts a text between these tokens, as far as they are known."""
    starts, ends = (
        [token for token in tokens if tokenizer.token_to_id(token) is not None] for tokens in (starts, ends)
    )
    if starts or ends:
        pair = [*starts, "$A", *ends, *(f"{start}:1" for start in starts), "$B:1", *(f"{end}:1" for end in ends)]
        if isinstance(tokenizer.model, models.WordPiece):
            pair = [*starts, "$A", *ends, "$B:1", *(f"{end}:1" for end in ends)]  # BERT marks the first text alone.
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*starts, "$A", *ends],
            pair=pair,
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*starts, *ends}],
        )
    return tokenizer


READERS = (
    (("spiece.model",), SENTENCEPIECE, read_sentencepiece),
    (("tokenizer.model",), SENTENCEPIECE, read_sentencepiece),
    (("vocab.txt",), BERT, _wordpiece),
    (("vocab.json", "merges.txt"), BYTE_LEVEL, _byte_level),
)
