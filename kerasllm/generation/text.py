"""Text in, text out: what `generate` of every model does."""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from kerasllm.generation.beam import beam_search
from kerasllm.generation.constraints import constraints_of
from kerasllm.generation.contrastive import contrastive_search
from kerasllm.generation.defaults import length_limits
from kerasllm.generation.drafts import Drafts
from kerasllm.generation.engine import Engine, checked_logits
from kerasllm.generation.options import options_of
from kerasllm.generation.pieces import Pieces
from kerasllm.generation.programs import CHUNK
from kerasllm.generation.prompts import (
    check_eager,
    fit_context,
    fit_prompt,
    fit_source,
    outside_of_graphs,
    stop_strings,
    stop_token_ids_of,
    token_prompts,
)
from kerasllm.generation.requests import Request
from kerasllm.generation.structured import Grammar
from kerasllm.models.inputs import tokenizer_of

SECONDS_A_PIECE = 0.03  # About 30 pieces a second: more cannot be read.


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


@outside_of_graphs
def generate(model, prompts, max_new_tokens=None, **given):
    """See `CausalLM.generate`."""
    check_eager()
    model.sync_weights()
    options = options_of(model, {"max_new_tokens": max_new_tokens, **given})
    batch, as_text, single = token_prompts(model, prompts)
    if options.stream and (not single or options.n > 1):
        raise ValueError(
            f"`stream=True` takes one prompt, for one answer. Received: {len(batch)} prompts, n={options.n}"
        )
    stop, stop_token_ids = stop_strings(model, options.stop), stop_token_ids_of(model, options.stop_token_ids)
    has_encoder, grammar = model.config.num_encoder_layers > 0, _grammar(model, options)
    bad_words = _words(model, options.bad_words)

    def request(ids, asked, count):
        prompt = fit_prompt(model, [model.start_token_id] if has_encoder else ids)
        limit, least = length_limits(model, len(prompt), asked, options.min_new_tokens, slide=options.truncation)
        constraints = constraints_of(
            model.config.vocabulary_size,
            stop_token_ids,
            options.no_repeat_ngram_size,
            bad_words,
            least,
            options.logit_bias,
            options.suppress_tokens,
            options.begin_suppress_tokens,
            options.forced_bos_token_id,
            options.forced_eos_token_id,
            limit,
        )
        return Request(
            fit_context(model, prompt, limit, options.truncation),
            limit,
            dataclasses.replace(options.sampler, seed=options.sampler.seed + count),
            stop_token_ids,
            slide=options.truncation,
            source=fit_source(model, ids, options.truncation) if has_encoder else None,
            constraints=constraints if grammar is None else [*constraints, grammar.constraint(stop_token_ids)],
            logits_function=options.function,
            top_log_probs=options.log_probs,
        )

    limits = _limits(options.max_new_tokens, len(batch))
    searching = options.num_beams > 1 or options.penalty_alpha is not None
    copies = range(1 if searching else options.n)
    requests = [request(ids, limit, count) for ids, limit in zip(batch, limits) for count in copies]
    if options.function is not None:
        _try(options.function, model.config.vocabulary_size)
    if searching:
        completions = [answer for one in requests for answer in _searched(model, one, options, stop, as_text)]
    else:
        drafts = None
        if options.draft is not None:
            drafts = Drafts(None if options.draft == "lookup" else options.draft, options.num_draft_tokens)
        engine = Engine.for_requests(model, requests, options.slots, drafts=drafts)
        decoders = [Pieces(model.tokenizer, one, stop) for one in requests] if as_text or stop else []
        if options.stream:
            return streamed(engine, requests[0], decoders[0] if decoders else None, options.details, as_text)
        _run(engine, requests, decoders if stop else [])
        completions = [_completion(one, decoders[i].finish() if as_text else None) for i, one in enumerate(requests)]
    answers = []
    for i, ids in enumerate(batch):
        before = "" if options.strip_prompt or has_encoder else prompts if single else prompts[i]
        before = before if as_text else [] if options.strip_prompt or has_encoder else list(ids)
        several = completions[i * options.n : (i + 1) * options.n]
        if not options.details:
            several = [before + (c.text if as_text else c.token_ids) for c in several]
        answers.append(several[0] if options.n == 1 else several)
    return answers[0] if single else answers


def _grammar(model, options) -> Grammar | None:
    form = {"regex": options.regex, "json_schema": options.json_schema, "choice": options.choice}
    return Grammar(tokenizer_of(model), **form) if any(value is not None for value in form.values()) else None


def _words(model, words) -> list:
    """Token ids of words, each as it is and after a space; ids as they are."""
    words = [words] if isinstance(words, str) else words
    encode = tokenizer_of(model).encode if any(isinstance(word, str) for word in words) else None
    spelled = [[encode(word), encode(" " + word)] if isinstance(word, str) else [word] for word in words]
    return [ids for spellings in spelled for ids in spellings]


def _limits(max_new_tokens, size) -> list[int | None]:
    limits = max_new_tokens if isinstance(max_new_tokens, list | tuple) else [max_new_tokens] * size
    for limit in limits:
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
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


def _searched(model, request, options, stop, as_text) -> list[Completion]:
    """The answers of a search, as many as are asked for."""
    if options.penalty_alpha is not None:
        pieces = Pieces(model.tokenizer, request, stop) if stop else None
        contrastive_search(model, request, options.candidates, options.penalty_alpha, pieces)
        answers = [request]
    else:
        answers = [
            dataclasses.replace(
                request,
                new_tokens=answer.tokens,
                finished=answer.ended_by,
                log_probs=[log_prob for log_prob, _ in answer.noted],
                alternatives=[alternatives for _, alternatives in answer.noted],
            )
            for answer in beam_search(model, request, options.beams, stop)[: options.n]
        ]
    texts = [Pieces(model.tokenizer, one, stop).finish() if as_text else None for one in answers]
    return [_completion(one, text) for one, text in zip(answers, texts)]


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


def streamed(engine, request, pieces, details=False, as_text=True) -> Iterator:
    """Submits a request, and yields its answer in pieces as they are made; see `CausalLM.generate`.

    Args:
        engine: that runs it.
        request: what is submitted.
        pieces: of the request; `None` for one whose text is of no interest.
        details: whether to yield `Completion` objects.
        as_text: whether to yield text, or token ids, which `pieces` then only end at a stop string.
    """
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
                yield from _piece(request, sent, sent + 1, text if as_text else None, details)
                sent += 1
        rest = pieces.rest() if pieces and as_text else None
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
