"""One tokenizer class over the Rust `tokenizers` library.

Five kinds can be trained: characters, bytes, byte-level BPE (Radford et al., 2019; Sennrich et al., 2016),
WordPiece (Schuster and Nakajima, 2012) and Unigram (Kudo, 2018). Any `tokenizer.json` can be loaded.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from kerasllm.closed_vocabulary import closed
from kerasllm.files import written_aside
from kerasllm.long_texts import LONG, LONG_WORD, cuts_lines, has_long_word, line_parts

KINDS = ("char", "byte", "bpe", "wordpiece", "unigram")
DEFAULT_VOCABULARY_SIZE = 2048
DEFAULT_SPECIAL_TOKENS = {
    "char": (),
    "byte": ("<|endoftext|>",),
    "bpe": ("<|endoftext|>",),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "</s>", "<unk>"),
}
# The part a special token plays is told by its name, in the words of tokenizer_config.json.
ROLES = {
    "pad_token": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "eos_token": ("</s>", "<eos>", "<|eos|>", "<|endoftext|>"),
    "bos_token": ("<s>", "<bos>", "<|bos|>", "<|startoftext|>", "<|endoftext|>"),
    "unk_token": ("<unk>", "[UNK]", "<|unk|>"),
    "mask_token": ("<mask>", "[MASK]", "<|mask|>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
}

MAX_TEMPLATE_CHARACTERS = 1 << 17
CHAT_TEMPLATE_FILE = "chat_template.jinja"

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")  # SentencePiece's spelling of a byte that no piece has


class Tokenizer:
    """Turns text into token ids and back.

    Make one with `Tokenizer.train`, `Tokenizer.from_preset` or `Tokenizer.from_file`.

    Args:
        tokenizer: a `tokenizers.Tokenizer`. Its truncation and padding are switched off.
        config: the contents of a `tokenizer_config.json`. Special tokens it does not name are told by their
            usual names (`<|endoftext|>`, `[PAD]`, `</s>`, …).

    Example:

    ```python
    tokenizer = kerasllm.Tokenizer.train("to be or not to be", kind="bpe", vocabulary_size=300)
    ids = tokenizer.encode("to be")
    text = tokenizer.decode(ids)
    ```
    """

    def __init__(self, tokenizer: RustTokenizer, config: dict | None = None):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._config = dict(config or {})
        # `auto_map` names Python files to run; a tokenizer is data, so it is neither obeyed nor passed on.
        self._config.pop("auto_map", None)
        if "chat_template" in self._config:
            self.chat_template = self._config["chat_template"]
        self._roles = _roles(self._config, tokenizer)

    @classmethod
    def train(
        cls,
        texts: str | Iterable[str],
        kind: str = "bpe",
        vocabulary_size: int | None = None,
        special_tokens: Sequence[str] | None = None,
    ) -> "Tokenizer":
        """Learns a vocabulary from text.

        Args:
            texts: a string, or any iterable of strings, which is read once and not kept in memory.
            kind: `"char"`: every character seen is a token. `"byte"`: the 256 bytes. `"bpe"`: byte-level BPE
                as GPT-2. `"wordpiece"`: lower-cased WordPiece as BERT. `"unigram"`: Unigram on NFKC text.
            vocabulary_size: the most tokens to have, special tokens included. `None` is 2048 for the kinds
                that learn, and as many as there are for `"char"` and `"byte"`.
            special_tokens: tokens that never come from ordinary text. `None` takes the kind's usual ones:
                `<|endoftext|>` for byte and bpe, `[PAD] [UNK] [CLS] [SEP] [MASK]` for wordpiece,
                `<pad> </s> <unk>` for unigram, none for char. WordPiece and Unigram need an unknown token; a
                char tokenizer without one refuses characters that it has not seen.

        Raises:
            ValueError: unknown kind, empty texts, or a vocabulary too small for its alphabet.

        Example:

        ```python
        tokenizer = kerasllm.Tokenizer.train(["one text", "another text"], kind="char")
        ```
        """
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}. Received: kind={kind!r}")
        special_tokens = list(DEFAULT_SPECIAL_TOKENS[kind] if special_tokens is None else special_tokens)
        unk_token = next((token for token in special_tokens if token in ROLES["unk_token"]), None)
        if kind in ("wordpiece", "unigram") and unk_token is None:
            raise ValueError(
                f"A {kind} tokenizer needs an unknown token. Received: special_tokens={special_tokens}. "
                f"Add one of {', '.join(ROLES['unk_token'])}."
            )
        if kind in ("byte", "bpe") and (bytes_ := {*special_tokens} & {*byte_alphabet()}):
            raise ValueError(
                f"A special token of a {kind} tokenizer must not be one of the characters that spell its bytes. "
                f"Received: special_tokens={special_tokens}, where {sorted(bytes_)} are. Use longer names."
            )
        texts = _checked_texts(texts)
        if kind == "char":
            tokenizer = _char(texts, special_tokens, unk_token)
        elif kind == "byte":
            next(texts)
            tokenizer = _byte(special_tokens)
        else:
            tokenizer = _learned(texts, kind, vocabulary_size, special_tokens, unk_token)
        if vocabulary_size is not None and tokenizer.get_vocab_size() > vocabulary_size:
            raise ValueError(
                "`vocabulary_size` is too small: this text's alphabet and the special tokens "
                f"{special_tokens} take {tokenizer.get_vocab_size()} tokens. "
                f"Received: vocabulary_size={vocabulary_size}"
            )
        return cls(tokenizer)

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Tokenizer":
        """Loads one `tokenizer.json`; special tokens are told by their usual names.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a tokenizer.
        """
        return cls(_read_tokenizer(Path(path)))

    @classmethod
    def from_preset(cls, directory: str | os.PathLike) -> "Tokenizer":
        """Loads a directory written by `save_to_preset` or by transformers' `save_pretrained`.

        Reads `tokenizer.json` (else `spiece.model`, `tokenizer.model`, `vocab.txt`, or `vocab.json` and
        `merges.txt`) and, where there, `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
        `chat_template.jinja`.

        Raises:
            FileNotFoundError: there is no tokenizer in the directory.
            ValueError: a file is damaged, or has what would be read wrongly; says what.
        """
        from kerasllm.interop.added_tokens import add_tokens
        from kerasllm.interop.tokenizer_files import read_older

        directory = Path(directory)
        config = _read_json(directory / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # An older directory, whose map has the last word.
            config |= _read_json(directory / "special_tokens_map.json")
        if (template := directory / CHAT_TEMPLATE_FILE).is_file():
            config["chat_template"] = _read_template(template)
        path = directory / "tokenizer.json"
        older = None if path.is_file() else read_older(directory, config)
        tokenizer = older or _read_tokenizer(path)
        add_tokens(tokenizer, config, _read_json(directory / "added_tokens.json"), str(directory))
        _check_config(tokenizer, config, str(directory))
        return cls(tokenizer, config)

    def save_to_preset(self, directory: str | os.PathLike) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` loads.

        Each file is written aside, flushed to disk and renamed, so that an earlier one is never half lost.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config = {**config, **self._config, **self._roles}
        with written_aside(directory / "tokenizer.json") as path:
            path.write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
        with written_aside(directory / "tokenizer_config.json") as path:
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # An earlier one would win over what the config says.
        (directory / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)

    def encode(
        self, text: str | Sequence[str], add_special_tokens: bool = False, parse_special: bool = True
    ) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each of a list of texts.

        Args:
            text: a string, or a list of strings.
            add_special_tokens: add what the tokenizer's template adds, such as `[CLS] … [SEP]`.
            parse_special: text that spells a special token becomes that token, as in transformers. `False`
                treats it as any other text, in every kind of tokenizer: use it for text from others, which must
                not be able to end a document or switch roles. The ids then have no special token but the unknown
                one.

        Returns:
            A list of ids, or one list for each text.

        Raises:
            ValueError: the text holds a lone surrogate, or a character that a char tokenizer has not seen.

        Example:

        ```python
        ids = tokenizer.encode("To be<|endoftext|>")
        safe = tokenizer.encode("To be<|endoftext|>", parse_special=False)
        ```
        """
        texts = [text] if isinstance(text, str) else list(text)
        tokenizer = self._tokenizer if parse_special else self._plain_tokenizer
        try:
            if not add_special_tokens and max(map(len, texts), default=0) > LONG and self._cuts_lines:
                rows = [self._in_parts(tokenizer, each) for each in texts]
            else:
                encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
                rows = [encoding.ids for encoding in encodings]
        except TypeError:
            for each in texts:
                _check_text(each)
            raise
        if self._alphabet is not None:
            for each in texts:
                self._check_alphabet(each, parse_special)
        return rows[0] if isinstance(text, str) else rows

    def encode_texts(self, texts: Sequence[str], parse_special: bool = True) -> list[list[int]]:
        """Token ids of texts as a language model reads them: after the start token, where the tokenizer has such.

        A Llama's tokenizer puts `<s>` before a text, and the model answers otherwise without it. A text that spells
        it already gets no second one.

        Args, Raises: as in `encode`.

        Example:

        ```python
        [ids] = tokenizer.encode_texts(["To be"])
        ```
        """
        start = self.text_start_ids
        rows = self.encode(list(texts), parse_special=parse_special)
        return [ids if start and ids[:1] == start else start + ids for ids in rows]

    def template_ids(self, *texts: str) -> list[list[int]]:
        """The special tokens that the tokenizer's template puts before, between and behind one or two texts.

        Example:

        ```python
        before, behind = tokenizer.template_ids("To be")
        ```
        """
        encoding = self._tokenizer.encode(*texts)
        found = [[]]
        for token_id, of_text, before in zip(encoding.ids, encoding.sequence_ids, [None, *encoding.sequence_ids]):
            if of_text is None:
                found[-1].append(token_id)
            elif of_text != before or before is None:
                found.append([])
        return found

    def encode_with_offsets(self, text: str, parse_special: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the characters that each stands for, `(start, stop)`.

        Args, Raises: as in `encode`; but special tokens come from their literal spelling alone, and not from other
        characters that are normalized to it.

        Example:

        ```python
        ids, places = tokenizer.encode_with_offsets("To be")
        ```
        """
        _check_text(text)
        if self._alphabet is not None:
            self._check_alphabet(text, parse_special)
        tokenizer = self._literal_tokenizer if parse_special else self._plain_tokenizer
        encoding = tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str | list[str]:
        """The text of token ids; a list of texts if `ids` is a list of lists (or a 2-D array).

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in ids]
        if rows and not isinstance(rows[0], int):
            return [self.decode(row, skip_special_tokens) for row in rows]
        for token_id in rows:
            self._check_id(token_id)
        return self._tokenizer.decode(rows, skip_special_tokens=skip_special_tokens)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as they stand in the vocabulary."""
        return [self._tokenizer.id_to_token(token_id) for token_id in self.encode(text)]

    def token_to_id(self, token: str) -> int:
        """The id of a token.

        Raises:
            KeyError: the token is not in the vocabulary.
        """
        if token not in self._vocabulary:
            raise KeyError(f"{token!r} is not one of the {self.vocabulary_size} tokens of this tokenizer")
        return self._vocabulary[token]

    def id_to_token(self, token_id: int) -> str:
        """The token of an id.

        Raises:
            ValueError: the id is outside the vocabulary.
        """
        self._check_id(token_id)
        return self._tokenizer.id_to_token(int(token_id))

    @cached_property
    def vocabulary_size(self) -> int:
        """The largest id plus one, special tokens included."""
        return max(self._vocabulary.values()) + 1

    @cached_property
    def kind(self) -> str:
        """`"char"`, `"byte"`, `"bpe"`, `"wordpiece"` or `"unigram"`, told from how the tokenizer works."""
        description = json.loads(self._tokenizer.to_str())
        model, pre_tokenizer = description["model"], description["pre_tokenizer"] or {}
        if model["type"] != "BPE" or model["merges"]:
            return model["type"].lower()
        if pre_tokenizer.get("type") != "ByteLevel":
            return "char"
        return "bpe" if pre_tokenizer.get("use_regex", True) else "byte"

    @cached_property
    def byte_lengths(self) -> list[int]:
        """UTF-8 bytes that each token stands for, which bits per byte are counted with; 0 for special tokens."""
        # A byte-level token spells each byte as one character.
        byte_level = "ByteLevel" in self._tokenizer.to_str()
        lengths = [0] * self.vocabulary_size
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            text = token.removeprefix("##").replace("▁", " ")
            if byte_level:
                lengths[token_id] = len(token)
            else:
                lengths[token_id] = 1 if _BYTE_TOKEN.fullmatch(token) else len(text.encode())
        for token in self.special_tokens:
            lengths[self._vocabulary[token]] = 0
        return lengths

    def get_config(self) -> dict:
        """What `from_config` makes an equal tokenizer of, as JSON can hold it."""
        return {"tokenizer": self._tokenizer.to_str(), "config": self._config}

    @classmethod
    def from_config(cls, config: dict) -> "Tokenizer":
        return cls(RustTokenizer.from_str(config["tokenizer"]), config["config"])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's canonical JSON: equal for tokenizers that give equal ids."""
        # The Rust library reads numbers back with an error in the last place: Unigram's scores are rounded
        # first.
        description = json.loads(self._tokenizer.to_str(), parse_float=lambda digits: f"{float(digits):.6g}")
        canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def special_tokens(self) -> list[str]:
        """The special tokens, in the order of their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [token.content for _, token in sorted(added.items()) if token.special]

    @property
    def role_tokens(self) -> dict[str, str]:
        """The tokens that play a part, by its name in tokenizer_config.json, such as `{"eos_token": "</s>"}`."""
        return dict(self._roles)

    @property
    def chat_template(self) -> str | None:
        """The Jinja2 template that makes text of a conversation, kept in tokenizer_config.json; `None` for none.

        Raises:
            ValueError: it is set to what is no template, or one that is too large. It is not run: see
                `kerasllm.chat.template`.
        """
        return self._config.get("chat_template")

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self._config["chat_template"] = _checked_template(template)

    @property
    def pad_token_id(self) -> int | None:
        """The id that fills up short rows; `None` if there is none."""
        return self._role_id("pad_token")

    @property
    def start_token_id(self) -> int | None:
        """The id that begins a sequence (bos, or BERT's `[CLS]`); `None` if there is none."""
        return self._role_id("bos_token", "cls_token")

    @cached_property
    def text_start_ids(self) -> list[int]:
        """The start token, where the tokenizer's own template puts it before a text as Llama's does; else `[]`.

        Of a template that marks texts for an encoder (`[CLS] … [SEP]`) it is `[]`, too.
        """
        start = self._role_id("bos_token")
        if start is None or "cls_token" in self._roles:
            return []
        return [start] if self.template_ids("a")[0] == [start] else []

    @property
    def end_token_id(self) -> int | None:
        """The id that ends a document (eos, or BERT's `[SEP]`); `None` if there is none."""
        return self._role_id("eos_token", "sep_token")

    @property
    def mask_token_id(self) -> int | None:
        """The id that hides a token from a masked language model; `None` if there is none."""
        return self._role_id("mask_token")

    @property
    def unk_token_id(self) -> int | None:
        """The id of what is not in the vocabulary; `None` if there is none."""
        return self._role_id("unk_token")

    def __repr__(self) -> str:
        return f"<Tokenizer kind={self.kind!r} vocabulary_size={self.vocabulary_size}>"

    @cached_property
    def _literal_tokenizer(self) -> RustTokenizer:
        """The same tokenizer, where special tokens come from their literal spelling alone."""
        return closed(self._tokenizer)

    @cached_property
    def _plain_tokenizer(self) -> RustTokenizer:
        """The same tokenizer, blind to special tokens: a switch on the one would race in threads."""
        tokenizer = closed(self._tokenizer)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _cuts_lines(self) -> bool:
        return cuts_lines(json.loads(self._tokenizer.to_str()))

    def _in_parts(self, tokenizer: RustTokenizer, text: str) -> list[int]:
        ids = []
        for part in line_parts(text):
            ids += tokenizer.encode_batch_fast([part], add_special_tokens=False)[0].ids
        return ids

    @cached_property
    def _alphabet(self) -> frozenset[str] | None:
        """What a char tokenizer can encode; `None` for a tokenizer that can encode anything."""
        if self.kind != "char" or self.unk_token_id is not None:
            return None
        return frozenset(token for token in self._vocabulary if len(token) == 1) - frozenset(self.special_tokens)

    def _check_alphabet(self, text: str, parse_special: bool) -> None:
        if unknown := set(text) - self._alphabet:
            for token in self.special_tokens if parse_special else []:
                text = text.replace(token, "")
            unknown &= set(text)
        if unknown:
            character = min(unknown, key=text.index)
            place = text.index(character)
            raise ValueError(
                f"The character {character!r} (U+{ord(character):04X}) at position {place} is not in this "
                f"char tokenizer's vocabulary of {self.vocabulary_size}. Train with text that has it, "
                'or with special_tokens=["<unk>"], or use kind="byte".'
            )

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.vocabulary_size:
            raise ValueError(f"Token ids must be in [0, {self.vocabulary_size}), the vocabulary. Received: {token_id}")

    def _role_id(self, *roles: str) -> int | None:
        return next((self._vocabulary[self._roles[role]] for role in roles if role in self._roles), None)


def _roles(config: dict, tokenizer: RustTokenizer) -> dict[str, str]:
    """Which token plays which part: as the config says, else by name among the special tokens."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    roles = {}
    for role, names in ROLES.items():
        if role in config:
            token = config[role]
            token = token.get("content") if isinstance(token, dict) else token
        else:
            token = next((name for name in names if name in special), None)
        if token is not None and tokenizer.token_to_id(token) is not None:
            roles[role] = token
    return roles


def _check_config(tokenizer: RustTokenizer, config: dict, name: str) -> None:
    """Refuses what a tokenizer_config.json says that would change the ids, and that the tokenizer does not do."""
    if config.get("split_special_tokens"):
        raise ValueError(
            f"{name!r} sets split_special_tokens in tokenizer_config.json, which a tokenizer here does not keep. Take "
            "it out, and encode with parse_special=False."
        )
    parts = [part for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part is not None]
    adds = [_adds_space(json.loads(part.__getstate__())) for part in parts]
    wanted = config.get("add_prefix_space")
    if isinstance(wanted, bool) and any(value is not None for value in adds) and wanted not in adds:
        raise ValueError(
            f"{name!r} says add_prefix_space={wanted} in tokenizer_config.json, and its tokenizer.json does the "
            "opposite, so programs do not agree on its tokens. Make them agree: save it again with transformers."
        )


def _adds_space(part: dict) -> bool | None:
    """Whether a part of a tokenizer.json puts a space in front of a text; `None` if it has nothing to do with it."""
    answers = [_adds_space(inner) for inner in part.get("normalizers", part.get("pretokenizers", []))]
    if "prepend_scheme" in part:
        answers.append(part["prepend_scheme"] != "never")
    elif "add_prefix_space" in part:
        answers.append(part["add_prefix_space"])
    elif part.get("type") == "Prepend":
        answers.append(True)
    answers = [answer for answer in answers if answer is not None]
    return any(answers) if answers else None


def _checked_template(template: object) -> str | None:
    if isinstance(template, list):  # of several, for different uses
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default", template)
    if template is not None and not isinstance(template, str):
        raise ValueError(f"A chat template is a text in Jinja2. Received: {repr(template)[:80]}")
    if template is not None and len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(
            f"A chat template has at most {MAX_TEMPLATE_CHARACTERS:,} characters. Received: {len(template):,}"
        )
    return template


def _char(texts: Iterator[str], special_tokens: list[str], unk_token: str | None) -> RustTokenizer:
    alphabet = sorted(set().union(*texts) - {*special_tokens})
    vocabulary = {token: index for index, token in enumerate([*special_tokens, *alphabet])}
    # BPE without merges walks over characters, and needs no regular expression to do so.
    tokenizer = RustTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unk_token))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


def _byte(special_tokens: list[str]) -> RustTokenizer:
    tokenizer = RustTokenizer(models.BPE(vocab={c: i for i, c in enumerate(byte_alphabet())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer


def byte_alphabet() -> list[str]:
    """The 256 characters that byte-level tokens spell bytes with, byte 0 first."""
    # GPT-2's are visible: printable ones as they are, the rest from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def _learned(
    texts: Iterator[str],
    kind: str,
    vocabulary_size: int | None,
    special_tokens: list[str],
    unk_token: str | None,
) -> RustTokenizer:
    options = {
        "vocab_size": DEFAULT_VOCABULARY_SIZE if vocabulary_size is None else vocabulary_size,
        "special_tokens": special_tokens,
        "show_progress": False,
    }
    if kind == "bpe":
        tokenizer = RustTokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    elif kind == "wordpiece":
        tokenizer = RustTokenizer(models.WordPiece(unk_token=unk_token))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**options)
    else:
        tokenizer = RustTokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        # No dummy space in front: a text cut in pieces between words then gives the ids of the whole.
        metaspace = pre_tokenizers.Metaspace(prepend_scheme="never")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", behavior="isolated"), metaspace])
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
        trainer = trainers.UnigramTrainer(unk_token=unk_token, **options)
    try:
        tokenizer.train_from_iterator(_short_words(texts) if kind != "unigram" else texts, trainer)
    except (TypeError, ValueError, OSError, ImportError):  # of the texts
        raise
    except Exception as error:
        raise ValueError(
            f"Could not train a {kind} tokenizer: {error}. Received: vocabulary_size="
            f"{options['vocab_size']}; a larger one may be what is needed."
        ) from error
    template = {"wordpiece": ("[CLS]", "$A", "[SEP]"), "unigram": ("$A", "</s>")}.get(kind, ())
    added = [token for token in template if token != "$A"]
    if added and set(added) <= set(special_tokens):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=list(template), special_tokens=[(token, tokenizer.token_to_id(token)) for token in added]
        )
    return tokenizer


def _checked_texts(texts: str | Iterable[str]) -> Iterator[str]:
    """The texts that are not empty, each checked; raises at the end if there were none."""
    if isinstance(texts, str):
        # A path given where the text was meant would train on the letters of a file name.
        if len(texts) < 1024 and "\n" not in texts and os.path.exists(texts):
            raise ValueError(
                f"`texts` must be text, not a path. Received: {texts!r}. "
                f"Read the file with kerasllm.data.read_texts({texts!r})."
            )
        texts = [texts]
    empty = True
    for text in texts:
        _check_text(text)
        if text:
            empty = False
            yield text
    if empty:
        raise ValueError("`texts` is empty: there is nothing to train a tokenizer on.")


def _short_words(texts: Iterator[str]) -> Iterator[str]:
    """The texts, with a warning where one has a word that takes very long."""
    warned = False
    for text in texts:
        if not warned and has_long_word(text):
            warned = True
            warnings.warn(
                f"A text has a word of {LONG_WORD:,} characters or more, without a space or a mark between them. The "
                "time to learn from it grows with the square of its length: 80,000 take half a minute. Give such texts "
                "in lines or sentences.",
                stacklevel=5,
            )
        yield text


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"Texts must be strings. Received: {text!r} of type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The text holds a lone surrogate, {text[error.start]!r} at position {error.start}, which is no "
            'Unicode character and cannot be encoded. Clean it with text.encode("utf-8", "replace").decode().'
        ) from None


def _read_tokenizer(path: Path) -> RustTokenizer:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no tokenizer at {path}. Expected a tokenizer.json, as save_to_preset and "
            "transformers' save_pretrained write."
        )
    try:
        return RustTokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(f"{path} is damaged or is not a tokenizer: {error}") from error


def _read_template(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_TEMPLATE_CHARACTERS + 1)  # one more is found to be too many
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found a {type(contents).__name__}")
    return contents
