"""Text in, text out: what `generate` of every model does."""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from kerasllm.generation.beam import Beams, beam_search
from kerasllm.generation.constraints import constraints_of
from kerasllm.generation.contrastive import contrastive_search
from kerasllm.generation.drafts import Drafts
from kerasllm.generation.engine import Engine, checked_logits
from kerasllm.generation.pieces import Pieces
from kerasllm.generation.programs import CHUNK
from kerasllm.generation.prompts import fit_context, fit_source, stop_strings, stop_token_ids_of, token_prompts
from kerasllm.generation.requests import Request
from kerasllm.generation.sampling import Sampler
from kerasllm.generation.structured import Grammar
from kerasllm.models.inputs import tokenizer_of

SECONDS_A_PIECE = 0.03  # A stream is not faster than an eye.
MOST_LOG_PROBS = 100


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer, or a piece of a streamed one, with what is known about it.

    Attributes:
        text: new text; `None` for models without a tokenizer.
        token_ids: new token ids, those of a stop string included.
        finish_reason: "stop", "length", or "" for a piece of an unfinished answer.
        log_probs: log-probability of each token, if asked for.
        alternatives: for each token the likeliest ones, `{token id: log-probability}`, if asked for.
        drafted, accepted: tokens guessed for it, and those that were right, in speculative decoding.
    """

    text: str | None
    token_ids: list[int]
    finish_reason: str = ""
    log_probs: list[float] = dataclasses.field(default_factory=list)
    alternatives: list[dict[int, float]] = dataclasses.field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


def generate(
    model,
    prompts,
    max_new_tokens=100,
    sampler="greedy",
    seed=0,
    stop=None,
    stop_token_ids=None,
    truncation=False,
    strip_prompt=False,
    stream=False,
    n=1,
    details=False,
    log_probs=None,
    slots=None,
    draft=None,
    num_draft_tokens=4,
    num_beams=1,
    length_penalty=1.0,
    early_stopping=False,
    num_beam_groups=1,
    diversity_penalty=0.0,
    penalty_alpha=None,
    no_repeat_ngram_size=0,
    bad_words=(),
    min_new_tokens=0,
    logit_bias=None,
    regex=None,
    json_schema=None,
    choice=None,
    **settings,
):
    """See `CausalLM.generate`."""
    beams = Beams(num_beams, length_penalty, early_stopping, num_beam_groups, diversity_penalty)
    function = sampler if callable(sampler) and not isinstance(sampler, Sampler) else None
    if penalty_alpha is not None:
        searched_by, settings = {"top_k": settings.pop("top_k", 4), "penalty_alpha": penalty_alpha}, settings
    sampler = Sampler.from_arguments("temperature" if function else sampler, seed=seed, **settings)
    batch, as_text, single = token_prompts(model, prompts)
    stop = stop_strings(model, stop)
    _check(model, sampler, function, n, log_probs, beams, penalty_alpha, stream, draft, single, len(batch))
    limits = _limits(max_new_tokens, len(batch), single)
    stop_token_ids = stop_token_ids_of(model, stop_token_ids)
    has_encoder = model.config.num_encoder_layers > 0
    form = {"regex": regex, "json_schema": json_schema, "choice": choice}
    grammar = None
    if any(value is not None for value in form.values()):
        grammar = Grammar(tokenizer_of(model), **form)

    def constraints():
        size, words = model.config.vocabulary_size, _words(model, bad_words)
        made = constraints_of(size, stop_token_ids, no_repeat_ngram_size, words, min_new_tokens, logit_bias)
        return made if grammar is None else [*made, grammar.constraint(stop_token_ids)]

    def request(ids, limit, count):
        return Request(
            fit_context(model, [model.start_token_id] if has_encoder else ids, limit, truncation),
            limit,
            dataclasses.replace(sampler, seed=sampler.seed + count),
            stop_token_ids,
            slide=truncation,
            source=fit_source(model, ids, truncation) if has_encoder else None,
            constraints=constraints(),
            logits_function=function,
            top_log_probs=log_probs,
        )

    searching = num_beams > 1 or penalty_alpha is not None
    copies = 1 if searching else n
    requests = [request(ids, limit, count) for ids, limit in zip(batch, limits) for count in range(copies)]
    if function is not None:
        _try(function, model.config.vocabulary_size)
    if searching:
        completions = []
        for one in requests:
            completions += _searched(model, one, beams, n, searched_by if penalty_alpha is not None else None, as_text)
    else:
        options = {} if draft is None else {"drafts": Drafts(None if draft == "lookup" else draft, num_draft_tokens)}
        engine = Engine.for_requests(model, requests, slots, **options)
        decoders = [Pieces(model.tokenizer, one, stop) for one in requests] if as_text else []
        if stream:
            return streamed(engine, requests[0], decoders[0] if as_text else None, details)
        _run(engine, requests, decoders if stop else [])
        completions = [_completion(one, decoders[i].finish() if as_text else None) for i, one in enumerate(requests)]
    answers = []
    for i, ids in enumerate(batch):
        before = "" if strip_prompt or has_encoder else prompts if single else prompts[i]
        before = before if as_text else [] if strip_prompt or has_encoder else list(ids)
        several = completions[i * n : (i + 1) * n]
        if not details:
            several = [before + (c.text if as_text else c.token_ids) for c in several]
        answers.append(several[0] if n == 1 else several)
    return answers[0] if single else answers


def _check(model, sampler, function, n, log_probs, beams, penalty_alpha, stream, draft, single, size) -> None:
    if sampler.top_k > model.config.vocabulary_size:
        raise ValueError(
            f"`top_k` is larger than the vocabulary of {model.config.vocabulary_size}. Received: top_k={sampler.top_k}"
        )
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
        raise ValueError(f"`n` must be a whole number from 1 to 1024. Received: n={n!r}")
    if log_probs is not None and (
        isinstance(log_probs, bool) or not isinstance(log_probs, int) or not 0 <= log_probs <= MOST_LOG_PROBS
    ):
        raise ValueError(
            f"`log_probs` is how many alternatives to list, from 0 to {MOST_LOG_PROBS}, or None. "
            f"Received: log_probs={log_probs!r}"
        )
    searching = beams.num_beams > 1 or penalty_alpha is not None
    if searching and (sampler.temperature > 0 or stream or function is not None or draft is not None):
        raise ValueError(
            "Beam search and contrastive search are neither sampled nor streamed, and not drafted: "
            "use sampler='greedy' alone."
        )
    if beams.num_beams > 1 and n > beams.num_beams:
        raise ValueError(f"A search with {beams.num_beams} beams has as many answers. Received: n={n}")
    if stream and (not single or n > 1):
        raise ValueError(f"`stream=True` takes one prompt, for one answer. Received: {size} prompts, n={n}")
    if draft is not None and draft != "lookup" and not hasattr(draft, "transformer"):
        raise ValueError(f"`draft` must be a CausalLM or 'lookup'. Received: draft={draft!r}")


def _words(model, words) -> list:
    """Token ids of words, each as it is and after a space; ids as they are."""
    words = [words] if isinstance(words, str) else words
    encode = tokenizer_of(model).encode if any(isinstance(word, str) for word in words) else None
    spelled = [[encode(word), encode(" " + word)] if isinstance(word, str) else [word] for word in words]
    return [ids for spellings in spelled for ids in spellings]


def _limits(max_new_tokens, size, single) -> list[int]:
    limits = max_new_tokens if isinstance(max_new_tokens, list | tuple) else [max_new_tokens] * size
    for limit in limits:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"`max_new_tokens` must be a whole number above 0. Received: {max_new_tokens!r}")
    if len(limits) != size:
        raise ValueError(f"There must be one of `max_new_tokens` a prompt. Received: {len(limits)} for {size} prompts")
    return limits


def _try(function, vocabulary_size) -> None:
    """A function that cannot work is found out before any prompt is read."""
    logits = np.zeros(vocabulary_size, "float32")
    checked_logits(function(logits.copy(), []), logits.shape)


def _run(engine, requests, decoders) -> None:
    # The longest first: what is left at the end, when slots stand empty, is then short.
    for request in sorted(requests, key=lambda r: -r.max_new_tokens):
        engine.submit(request)
    while engine.waiting or engine.running:
        engine.step()
        for decoder in decoders:
            decoder.advance()
    for request in requests:
        if request.error is not None:
            raise request.error


def _searched(model, request, beams, n, contrastive, as_text) -> list[Completion]:
    if contrastive is not None:
        contrastive_search(model, request, **contrastive)
        answers = [(request.new_tokens, request.finished)] * n
    else:
        answers = [(a.tokens, a.ended_by) for a in beam_search(model, request, beams)[:n]]
    completions = []
    for tokens, reason in answers:
        whole = dataclasses.replace(request, new_tokens=tokens, finished=reason)
        completions.append(_completion(whole, Pieces(model.tokenizer, whole).finish() if as_text else None))
    return completions


def _completion(request, text) -> Completion:
    return Completion(
        text,
        request.new_tokens,
        request.finished,
        request.log_probs,
        request.alternatives,
        request.drafted,
        request.accepted,
    )


def streamed(engine, request, pieces, details=False) -> Iterator:
    """Submits a request, and yields its answer in pieces as they are made; see `CausalLM.generate`."""
    engine.submit(request)
    sent, most = 0, 1
    try:
        while not request.finished:
            began = time.perf_counter()
            engine.step(most)
            made = max(1, len(request.new_tokens) - sent)
            most = max(1, min(CHUNK, int(SECONDS_A_PIECE * made / (time.perf_counter() - began))))
            if request.error is not None:
                raise request.error
            texts = pieces.each() if pieces else [None] * (len(request.new_tokens) - sent)
            for text in texts:
                yield from _piece(request, sent, sent + 1, text, details)
                sent += 1
        rest = pieces.rest() if pieces else None
        if rest or details:
            yield from _piece(request, sent, sent, rest, details, request.finished)
    finally:
        engine.cancel(request)  # Also where the reader has gone.


def _piece(request, start, stop, text, details, reason="") -> Iterator:
    tokens = request.new_tokens[start:stop]
    if details:
        yield Completion(text, tokens, reason, request.log_probs[start:stop], request.alternatives[start:stop])
    elif text is None:
        yield from tokens
    elif text:
        yield text
