"""The tokens that a tokenizer's directory adds to its vocabulary, as transformers adds them."""

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def add_tokens(tokenizer: RustTokenizer, config: dict, added: dict, name: str) -> None:
    """Adds what the files beside a vocabulary declare, and makes special what plays a part.

    Args:
        tokenizer: is changed.
        config: the contents of tokenizer_config.json and special_tokens_map.json.
        added: the contents of added_tokens.json, token → id.
        name: of the directory, for errors.

    Raises:
        ValueError: a token is declared with another id than it would have, or wrongly.
    """
    named = [token for token in _named(config) if isinstance(token, str | dict)]
    special = {_content(token) for token in named}
    declared = _declared(config, added, special, name)
    known = tokenizer.get_added_tokens_decoder()
    tokens = [token for i, token in sorted(declared.items()) if _flags(token) != _flags(known.get(i))]
    listed = {token.content for token in declared.values()}
    for token in named:
        # A part that no token plays stays unplayed: the token would have an id that the model has no row for.
        is_extra = token in _extra(config)
        if _content(token) not in listed and (is_extra or tokenizer.token_to_id(_content(token)) is not None):
            tokens.append(_token(token, special=True))
    for token in tokens:
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    for i, token in declared.items():
        if (its := tokenizer.token_to_id(token.content)) != i:
            raise ValueError(
                f"{name!r} declares the token {token.content!r} with the id {i}, and it has the id {its}: tokens "
                "before it are missing, or there are two of one name. The files are damaged, or not of one tokenizer."
            )
    ids = tokenizer.get_vocab(with_added_tokens=True)
    if len(ids) != len({*ids.values()}):
        seen = {}
        twice = next((token, seen[i]) for token, i in ids.items() if seen.setdefault(i, token) != token)
        raise ValueError(f"{name!r} has two tokens of one id: {twice[0]!r} and {twice[1]!r}.")


def _declared(config: dict, added: dict, special: set[str], name: str) -> dict[int, AddedToken]:
    """The tokens that are declared with their ids. A tokenizer_config.json that lists them has the last word."""
    try:
        if "added_tokens_decoder" in config:
            return {int(i): _token(token) for i, token in config["added_tokens_decoder"].items()}
        return {int(i): _token({"content": text}, special=text in special) for text, i in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name!r} has a damaged list of added tokens: {error!r}") from None


def _token(token: str | dict, special: bool | None = None) -> AddedToken:
    values = {} if isinstance(token, str) else {flag: bool(token[flag]) for flag in FLAGS if flag in token}
    if special is not None:
        values["special"] = special
    return AddedToken(_content(token), **values)


def _named(config: dict) -> list:
    """The tokens that play a part, and the extra ones."""
    return [*(config[role] for role in ROLES if config.get(role)), *_extra(config)]


def _extra(config: dict) -> list:
    extra = next((config[key] for key in EXTRA if config.get(key)), [])
    return [*extra.values()] if isinstance(extra, dict) else [*extra]


def _content(token: str | dict) -> str:
    return token if isinstance(token, str) else token["content"]


def _flags(token: AddedToken | None) -> tuple | None:
    return token and (token.content, *(getattr(token, flag) for flag in FLAGS))
