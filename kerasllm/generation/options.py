"""The arguments of `generate`: what they are when left out, what they are called elsewhere, and which go together."""

import dataclasses
import difflib
import numbers
from types import SimpleNamespace

from kerasllm.generation.beam import Beams
from kerasllm.generation.defaults import OF_BEAMS, completed
from kerasllm.generation.sampling import Sampler

DEFAULTS = {  # where neither the caller nor the model's generation_config.json says otherwise
    "max_new_tokens": None,
    "sampler": "greedy",
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "truncation": False,
    "strip_prompt": False,
    "stream": False,
    "n": 1,
    "details": False,
    "log_probs": None,
    "slots": None,
    "draft": None,
    "num_draft_tokens": 4,
    "num_beams": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "renormalize_logits": False,
    "penalty_alpha": None,
    "no_repeat_ngram_size": 0,
    "bad_words": (),
    "min_new_tokens": None,
    "logit_bias": None,
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "regex": None,
    "json_schema": None,
    "choice": None,
}
SETTINGS = tuple(field.name for field in dataclasses.fields(Sampler) if field.name != "seed")
ELSEWHERE = {  # names of transformers, OpenAI, vLLM and llama.cpp
    "max_length": "max_new_tokens, which does not count the prompt",
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "n_predict", "length"), "max_new_tokens"),
    **dict.fromkeys(("min_length", "min_tokens"), "min_new_tokens"),
    **dict.fromkeys(("num_return_sequences", "best_of", "num_samples"), "n"),
    "do_sample": "sampler='temperature' (or 'top_k', 'top_p', …), or sampler='greedy'",
    **dict.fromkeys(("stop_strings", "stop_sequences", "stop_words"), "stop"),
    **dict.fromkeys(("eos_token_id", "stop_token_id", "end_token_id"), "stop_token_ids"),
    "ignore_eos": "stop_token_ids=[]",
    **dict.fromkeys(("bad_words_ids", "bad_words_list"), "bad_words"),
    "sequence_bias": "logit_bias",
    **dict.fromkeys(("logprobs", "top_logprobs", "output_scores"), "log_probs, with details=True"),
    **dict.fromkeys(("return_dict_in_generate", "return_dict"), "details"),
    "return_full_text": "strip_prompt",
    "streamer": "stream=True",
    "assistant_model": "draft",
    "prompt_lookup_num_tokens": "draft='lookup', with num_draft_tokens",
    "beam_size": "num_beams",
    **dict.fromkeys(("guided_regex", "pattern"), "regex"),
    **dict.fromkeys(("guided_json", "response_format", "schema"), "json_schema"),
    **dict.fromkeys(("guided_choice", "choices"), "choice"),
    **dict.fromkeys(("random_seed", "random_state", "rng"), "seed"),
    **dict.fromkeys(("logits_processor", "logits_function"), "sampler, a function of the logits and the tokens"),
    "repeat_penalty": "repetition_penalty",
    "typical": "typical_p",
    "temp": "temperature",
}
MOST_LOG_PROBS = 100


def options_of(model, given: dict) -> SimpleNamespace:
    """The arguments of `generate`, complete and checked; `sampler` a `Sampler`, `beams` a `Beams`.

    Raises:
        ValueError: an unknown name, a value out of range, or two that do not go together.
    """
    for name in given:
        if name not in DEFAULTS and name not in SETTINGS:
            raise ValueError(_unknown(name, given[name]))
    explicit = {name for name, value in given.items() if value is not None}
    found = completed(model, given)
    settings = {name: found.pop(name) for name in SETTINGS if name in found}
    options = SimpleNamespace(**{**DEFAULTS, **{name: value for name, value in found.items() if value is not None}})
    options.beams = Beams(
        options.num_beams,
        options.length_penalty,
        options.early_stopping,
        options.num_beam_groups,
        options.diversity_penalty,
        options.renormalize_logits,
    )
    options.function = None
    if callable(options.sampler) and not isinstance(options.sampler, Sampler):
        options.function, options.sampler = options.sampler, "temperature"
    options.candidates = settings.pop("top_k", None) if options.penalty_alpha is not None else None
    options.candidates = 4 if options.candidates is None else options.candidates
    options.sampler = Sampler.from_arguments(options.sampler, seed=options.seed, **settings)
    _check(model, options, explicit)
    return options


def _unknown(name: str, value) -> str:
    if name in ELSEWHERE:
        return f"Unknown argument {name!r}: here it is {ELSEWHERE[name]}. Received: {name}={value!r}"
    near = difflib.get_close_matches(name, [*DEFAULTS, *SETTINGS], n=3)
    known = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join([*DEFAULTS, *SETTINGS])}."
    return f"Unknown argument {name!r}. {known} Received: {name}={value!r}"


def _check(model, options, explicit: set) -> None:
    size, log_probs = model.config.vocabulary_size, options.log_probs
    if options.sampler.top_k > size:
        raise ValueError(f"`top_k` is larger than the vocabulary of {size}. Received: top_k={options.sampler.top_k}")
    if isinstance(options.n, bool) or not isinstance(options.n, int) or not 1 <= options.n <= 1024:
        raise ValueError(f"`n` must be a whole number from 1 to 1024. Received: n={options.n!r}")
    if log_probs is not None and (
        isinstance(log_probs, bool)
        or not isinstance(log_probs, numbers.Integral)
        or not 0 <= log_probs <= MOST_LOG_PROBS
    ):
        raise ValueError(
            f"`log_probs` is how many alternatives to list, from 0 to {MOST_LOG_PROBS}, or None. "
            f"Received: log_probs={log_probs!r}"
        )
    if options.draft is not None and options.draft != "lookup" and not hasattr(options.draft, "transformer"):
        raise ValueError(f"`draft` must be a CausalLM or 'lookup'. Received: draft={options.draft!r}")
    search = "num_beams" if options.num_beams > 1 else "penalty_alpha" if options.penalty_alpha is not None else None
    if search:
        _check_search(options, search)
    _check_needed(options, explicit, search)


def _check_search(options, search: str) -> None:
    """A search is neither sampled, streamed nor drafted, and there is one of them."""
    others = {
        "temperature": options.function is None and options.sampler.temperature,
        "sampler": options.function,
        "stream": options.stream,
        "draft": options.draft,
    }
    if search == "num_beams":
        others["penalty_alpha"] = options.penalty_alpha
        if options.n > options.num_beams:
            raise ValueError(
                f"A search with {options.num_beams} beams has as many answers. Received: n={options.n}. "
                "Pass more beams, or num_beams=1 and a sampler."
            )
    elif options.n > 1:
        raise ValueError(f"Contrastive search has one answer. Received: penalty_alpha with n={options.n}")
    for name, value in others.items():
        if value not in (None, False, 0):
            raise ValueError(
                f"Beam search and contrastive search are neither sampled, streamed nor drafted, and one excludes the "
                f"other. Received: {search}={getattr(options, search)!r} with {name}={value!r}"
            )


def _check_needed(options, explicit: set, search) -> None:
    """What has no effect without another argument is refused without it."""
    needed = {name: (search == "num_beams", "num_beams above 1") for name in OF_BEAMS if name != "num_beams"}
    needed["num_draft_tokens"] = (options.draft is not None, "draft")
    needed["log_probs"] = (options.details, "details=True")
    for name, (there, what) in needed.items():
        value = getattr(options, name)
        if name in explicit and not there and value != DEFAULTS[name]:
            raise ValueError(f"`{name}` has no effect without {what}. Received: {name}={value!r}")
