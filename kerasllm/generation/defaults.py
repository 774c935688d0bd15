"""What generation_config.json says of how a model writes: the defaults of `generate`, of chats and of engines.

A model carries the file's keys as they are (`model.generation_config`) and writes them back when it is saved. Arguments
of `generate` win over them. Every key of transformers' GenerationConfig is in one of the tables below.
"""

import warnings

from kerasllm.generation.sampling import Sampler

ARGUMENTS = {  # key → the argument of `generate` whose default it is
    "stop_strings": "stop",
    "num_beams": "num_beams",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "num_beam_groups": "num_beam_groups",
    "diversity_penalty": "diversity_penalty",
    "renormalize_logits": "renormalize_logits",
    "penalty_alpha": "penalty_alpha",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "begin_suppress_tokens",
    "forced_bos_token_id": "forced_bos_token_id",
    "forced_eos_token_id": "forced_eos_token_id",
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")  # used where do_sample is true
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
OTHERS = ("do_sample", "max_new_tokens", "max_length", "min_new_tokens", "min_length")  # understood elsewhere
NEUTRAL = {  # not supported, and what each must be to change nothing
    "constraints": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "num_return_sequences": 1,
    "sequence_bias": None,
    "token_healing": False,
    "top_h": None,
    "watermarking_config": None,
}
HARMLESS = {  # how transformers computes and what else it returns, which does not change the answer
    *("_commit_hash", "_from_model_config", "transformers_version", "generation_kwargs"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "remove_invalid_values", "use_mtp"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type"),
}
READ = {*ARGUMENTS, *SAMPLING, *SPECIAL, *OTHERS, *NEUTRAL}
TOP_K = 50  # of transformers, where a file that samples says nothing else
MAX_NEW_TOKENS = 100
OF_BEAMS = ("num_beams", "length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty")


def check_config(config: dict, path) -> None:
    """Warns of the keys of a generation_config.json that are kept but not followed, by name."""
    for key, value in config.items():
        if key in NEUTRAL and value not in (None, NEUTRAL[key]):
            warnings.warn(
                f"{str(path)!r} says {key}={value!r}, which kerasllm does not support: it is kept, and answers may "
                "differ from those of transformers.",
                stacklevel=4,
            )
        elif key not in READ | HARMLESS:
            warnings.warn(f"Unknown key in {str(path)!r}: {key}={value!r}. It is kept, and not used.", stacklevel=4)


def config_of(model) -> dict:
    """The keys that are set."""
    return {key: value for key, value in model.generation_config.items() if value is not None}


def token_ids(model, key: str) -> list[int]:
    """The ids of a key that holds one or a list of them, without those that no token has."""
    value = config_of(model).get(key, [])
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise ValueError(f"`{key}` in generation_config.json must be a token id or a list of them. Received: {value!r}")
    return [i for i in ids if 0 <= i < model.config.vocabulary_size]


def completed(model, given: dict) -> dict:
    """The arguments of `generate`, with those that were left out (`None`) as generation_config.json has them.

    A sampler, a stream, a draft or a contrastive search that is asked for takes the place of the file's beams, and
    beams or a sampler that are asked for that of its sampling.

    Raises:
        ValueError: the file asks for sampled beam search, which is not supported.
    """
    config = config_of(model)
    found = {argument: config[key] for key, argument in ARGUMENTS.items() if key in config}
    asked = {name for name, value in given.items() if value not in (None, False)}
    if "num_beams" in asked:
        beams = given["num_beams"]
    else:
        beams = 1 if asked & {"sampler", "stream", "draft", "penalty_alpha"} else found.get("num_beams", 1)
    samples = config.get("do_sample") and not asked & {"sampler", "penalty_alpha"}
    if samples and beams != 1:
        if "num_beams" not in asked:
            raise ValueError(
                f"The model's generation_config.json says do_sample=True and num_beams={beams}, and beams are not "
                "sampled here. Choose one of them: pass num_beams=1, or sampler='greedy' and num_beams."
            )
        samples = False
    unused = OF_BEAMS if beams == 1 else ()
    if samples or asked & {"sampler", "stream", "draft", "num_beams", "penalty_alpha"}:
        unused = (*unused, "penalty_alpha")
    elif "penalty_alpha" in found:
        found["top_k"] = config.get("top_k", TOP_K)
    if "sampler" in asked and not isinstance(given["sampler"], str):
        unused = (*unused, "repetition_penalty")  # A Sampler or a function is the whole way to choose.
    if samples:
        found |= {"sampler": "temperature", **sampling(model)}
    if "bad_words" in found:  # As in transformers: the end of the text is not a bad word.
        ends = [[i] for i in token_ids(model, "eos_token_id")]
        found["bad_words"] = [word for word in found["bad_words"] if word not in ends]
    found = {name: value for name, value in found.items() if name not in unused}
    return {**found, **{name: value for name, value in given.items() if value is not None or name not in found}}


def sampling(model) -> dict:
    """The settings of a sampler that generation_config.json asks for; none where it does not sample."""
    config = config_of(model)
    if not config.get("do_sample"):
        return {}
    settings = {"top_k": TOP_K, **{name: config[name] for name in SAMPLING if name in config}}
    return {**settings, "top_k": min(settings["top_k"], model.config.vocabulary_size)}


def default_sampler(model, seed: int = 0) -> Sampler:
    """The sampler that generation_config.json asks for; greedy where it does not sample."""
    settings = sampling(model) or {"temperature": 0.0}
    penalty = config_of(model).get("repetition_penalty", 1.0)
    return Sampler(**settings, repetition_penalty=penalty, seed=seed)


def length_limits(model, prompt_size: int, most, least, slide: bool = False) -> tuple[int, int]:
    """How many new tokens an answer may have and must have.

    Args:
        model: whose generation_config.json holds where these are left out.
        prompt_size: tokens of the prompt.
        most, least: as asked for; `None` is as the file says. Its limit, or our own, ends with the context.
        slide: whether the context slides, and has no end.
    """
    config = config_of(model)
    if most is None:
        total = config.get("max_length", prompt_size + MAX_NEW_TOKENS)
        most = max(1, config.get("max_new_tokens", total - prompt_size))
        room = model.config.max_sequence_length - prompt_size
        most = most if slide else min(most, max(1, room))
    if least is None:
        least = max(0, config.get("min_new_tokens", config.get("min_length", 0) - prompt_size))
    return most, least


def constraint_settings(model) -> dict:
    """The arguments of `constraints_of` that hold for every answer, for chats and servers."""
    found = completed(model, {"num_beams": 1})
    names = ("no_repeat_ngram_size", "bad_words", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id")
    return {name: found[name] for name in names if name in found}
