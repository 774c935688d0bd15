"""The vocabulary of a GGUF file: only such as llama.cpp reads text with exactly as our tokenizer does."""

import json
import warnings

from kerasllm.interop.sentencepiece import NORMAL, Piece, merges
from kerasllm.interop.tokenizer_files import QWEN2_WORDS
from kerasllm.tokenizers import byte_alphabet

LLAMA3_WORDS = QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
END_ROLES = ("eos", "eot", "eom")
PLAIN_BPE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")  # must be empty
# llama.cpp tells these by their names, whatever the file says of them: it takes the first for special tokens, and the
# others for text.
SPECIAL_THERE = {
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<turn|>"),
    *("<end_of_utterance>", "<eos>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "[PAD]", "<PAD>"),  # noqa: RUF001
    *(
        form.format(part)
        for part in ("prefix", "suffix", "middle", "pad", "repo")
        for form in ("<|fim_{}|>", "<fim_{}>")
    ),
    *(f"<fim-{part}>" for part in ("prefix", "suffix", "middle", "pad", "repo")),
    *(form.format(part) for part in ("PRE", "SUF", "MID") for form in ("<{}>", "▁<{}>")),
    *(form.format(part) for part in ("prefix", "suffix", "middle") for form in ("<|{}|>", "<|code_{}|>")),
    *("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
    *("<|repo_name|>", "<REPO>", "<reponame>", "<|file_sep|>"),
}
TEXT_THERE = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"}
PREFIX, SPACES = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _split(words: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**LEVEL, "use_regex": False}]}


# How a tokenizer cuts texts, whether it takes whole words first, and what llama.cpp calls that.
DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, LEVEL]}
PRE = (
    (LEVEL, False, "gpt-2"),
    (_split(LLAMA3_WORDS), True, "llama-bpe"),
    (_split(LLAMA3_WORDS), False, "smaug-bpe"),
    (_split(QWEN2_WORDS), False, "qwen2"),
    (DIGITS, False, "smollm"),
)


def write_vocabulary(writer, tokenizer, size: int, ends: list[int]) -> None:
    """Writes a tokenizer, or that there is none, with a warning that says why.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: a `Tokenizer` or `None`.
        size: rows that the model has; a tokenizer may have fewer.
        ends: the tokens that end an answer.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return
    description = json.loads(tokenizer.get_config()["tokenizer"])
    try:
        kind = _kind(description)
    except ValueError as error:
        warnings.warn(
            f"The GGUF file has no vocabulary, since llama.cpp would not read text as this tokenizer does: {error}. "
            "Give it token ids, and make text of its ids, with the model's own tokenizer.",
            stacklevel=4,
        )
        writer.add_tokenizer_model("no_vocab")
        return
    from gguf import TokenType

    kinds = [TokenType.NORMAL] * tokenizer.vocabulary_size
    for token in description["added_tokens"]:
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.vocabulary_size)]
    unused = [f"<unused{i}>" for i in range(len(tokens), size)]  # A vocabulary may be padded.
    if kind == "llama":
        for i, token in enumerate(tokens):
            if token in _BYTES:
                kinds[i] = TokenType.BYTE
        unknown = description["model"]["unk_token"]
        if unknown is not None:
            kinds[tokens.index(unknown)] = TokenType.UNKNOWN
        scores = _scores(_pairs(description["model"]))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(token, 0.0) for token in tokens] + [0.0] * len(unused))
        writer.add_add_space_prefix(PREFIX in _steps(description))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_merges([" ".join(pair) for pair in _pairs(description["model"])])
        writer.add_add_space_prefix(False)
    writer.add_token_list(tokens + unused)
    writer.add_token_types(kinds + [TokenType.UNUSED] * len(unused))
    writer.add_add_bos_token(bool(tokenizer.text_start_ids))
    writer.add_add_eos_token(False)
    roles = {"bos": tokenizer.start_token_id, "pad": tokenizer.pad_token_id, **_end_roles(ends, tokenizer.end_token_id)}
    for role, token_id in roles.items():
        if token_id is not None:
            getattr(writer, f"add_{role}_token_id")(token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _end_roles(ends: list[int], first: int | None) -> dict[str, int]:
    """llama.cpp's names of the tokens that end an answer: of the text, of a turn and of a message; there are three."""
    ends = sorted(ends, key=lambda token: token != first)
    if len(ends) > len(END_ROLES):
        warnings.warn(
            f"A GGUF file has {len(END_ROLES)} tokens that end an answer: {ends[len(END_ROLES) :]} are left out, at "
            "which llama.cpp will not stop.",
            stacklevel=4,
        )
    return dict(zip(END_ROLES, ends))


def _kind(description: dict) -> str:
    """`"llama"` for SentencePiece's BPE, else llama.cpp's name for how a byte-level BPE cuts texts.

    Raises:
        ValueError: llama.cpp has nothing that is equal; says why.
    """
    model = description["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is a {model['type']}, and only BPE is written")
    if found := [name for name in PLAIN_BPE if model.get(name)]:
        raise ValueError(f"it sets {', '.join(found)}")
    special = {token["content"] for token in description["added_tokens"] if token["special"]}
    if found := sorted((SPECIAL_THERE & model["vocab"].keys()) - special) + sorted(TEXT_THERE & special):
        raise ValueError(
            f"it takes the token {found[0]!r} by its name for {'text' if found[0] in special else 'special'}"
        )
    for token in description["added_tokens"]:
        if found := [flag for flag in ("single_word", "lstrip", "rstrip") if token[flag]]:
            raise ValueError(f"the token {token['content']!r} is matched with {', '.join(found)}")
    if _steps(description) in ([PREFIX, SPACES], [SPACES]) and description["pre_tokenizer"] in (None, _NO_SPLIT):
        _check_pieces(description)
        return "llama"
    if description["normalizer"] is not None:
        raise ValueError(f"it normalizes texts with {_name(description['normalizer'])}")
    cut, whole = description["pre_tokenizer"], bool(model.get("ignore_merges"))
    for pre_tokenizer, takes_whole, name in PRE:
        if (cut, whole) == (pre_tokenizer, takes_whole):
            if missing := {*byte_alphabet()} - model["vocab"].keys():
                raise ValueError(f"{len(missing)} of the 256 bytes have no token")
            return name
    raise ValueError(f"it cuts texts with {_name(cut)}, and llama.cpp has no equal of it")


_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_NO_SPLIT = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}


def _steps(description: dict) -> list[dict]:
    normalizer = description["normalizer"] or {}
    return normalizer.get("normalizers", [normalizer])


def _name(part: dict | None) -> str:
    if part is None:
        return "nothing"
    inner = part.get("pretokenizers", part.get("normalizers", []))
    return ", ".join(map(_name, inner)) or part["type"]


def _pairs(model: dict) -> list[tuple[str, str]]:
    return [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]


def _scores(pairs: list[tuple[str, str]]) -> dict[str, float]:
    """A score for each token that merging makes: the sooner, the higher, as SentencePiece has them."""
    scores = {}
    for pair in pairs:
        scores.setdefault("".join(pair), -float(len(scores)))
    return scores


def _check_pieces(description: dict) -> None:
    """SentencePiece joins any two neighbours that make a token, the one of the highest score first."""
    model = description["model"]
    if not model.get("byte_fallback") or not {*_BYTES} <= model["vocab"].keys():
        raise ValueError("its BPE of pieces has no bytes for what no piece has")
    if model.get("ignore_merges"):
        raise ValueError("its BPE of pieces sets ignore_merges")
    pairs = _pairs(model)
    scores = _scores(pairs)
    closed = {token["content"] for token in description["added_tokens"]} | {*_BYTES}
    pieces = [Piece(token, scores.get(token, 0.0), NORMAL) for token in model["vocab"]]
    joined = merges(pieces)
    if any("".join(pair) in closed for pair in joined):
        raise ValueError("text that spells a special token or a byte would become it")
    if [*dict.fromkeys(map("".join, joined))] != [*scores] or {*joined} != {*pairs}:
        raise ValueError("its BPE of pieces merges in an order that no scores give")
