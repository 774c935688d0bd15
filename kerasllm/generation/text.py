"""Text in, text out: prompts to requests, tokens to pieces of text that never end in half a character."""

from collections.abc import Iterator

from kerasllm.generation.beam import Beams, beam_search
from kerasllm.generation.engine import Request
from kerasllm.generation.sampling import Sampler

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def generate(
    model,
    prompts,
    max_new_tokens=100,
    sampler="greedy",
    temperature=None,
    top_k=None,
    top_p=None,
    seed=0,
    stop=None,
    stop_token_ids=None,
    truncation=False,
    strip_prompt=False,
    stream=False,
    num_beams=1,
    length_penalty=1.0,
    early_stopping=False,
):
    """See `CausalLM.generate`."""
    beams = Beams(num_beams, length_penalty, early_stopping)
    settings = Sampler.from_arguments(sampler, temperature, top_k, top_p, seed)
    if settings.top_k > model.config.vocabulary_size:
        raise ValueError(
            f"`top_k` is larger than the vocabulary of {model.config.vocabulary_size}. Received: top_k={top_k}"
        )
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be a whole number above 0. Received: {max_new_tokens!r}")
    batch, as_text, single = _token_prompts(model, prompts)
    stop = _stop_strings(model, stop)
    stop_token_ids = _stop_token_ids(model, stop_token_ids)
    has_encoder = model.config.num_encoder_layers > 0
    strip_prompt = strip_prompt or has_encoder  # A source is not part of the answer.
    requests = [
        Request(
            _fit_context(model, [model.start_token_id] if has_encoder else ids, max_new_tokens, truncation),
            max_new_tokens,
            settings,
            stop_token_ids,
            slide=truncation,
            source=_fit_source(model, ids, truncation) if has_encoder else None,
        )
        for ids in batch
    ]
    if num_beams > 1 and (settings.temperature > 0 or stream):
        raise ValueError("Beam search is neither sampled nor streamed. Use sampler='greedy' without `stream`.")
    if stream:
        if not single:
            raise ValueError(f"`stream=True` takes one prompt. Received: {len(batch)} prompts")
        return _stream(model, requests[0], stop, as_text)
    decoders = [_Pieces(model.tokenizer, r, stop) for r in requests] if as_text else []
    if num_beams > 1:
        for request in requests:
            beam_search(model.engine, request, beams)
    else:
        for _ in model.engine.run(requests):
            if stop:
                for decoder in decoders:
                    decoder.advance()
    answers = []
    for i, (ids, request) in enumerate(zip(batch, requests)):
        if not as_text:
            answers.append(request.new_tokens if strip_prompt else list(ids) + request.new_tokens)
            continue
        text = decoders[i].finish()
        answers.append(text if strip_prompt else _prompt_text(prompts, single, i) + text)
    return answers[0] if single else answers


def _prompt_text(prompts, single, i):
    return prompts if single else prompts[i]


def _token_prompts(model, prompts):
    """(list of token id lists, whether they came as text, whether there was only one)."""
    if isinstance(prompts, str):
        texts, single = [prompts], True
    elif len(prompts) == 0:
        raise ValueError("There is no prompt. Received: an empty list")
    elif all(isinstance(p, str) for p in prompts):
        texts, single = list(prompts), False
    else:
        single = not hasattr(prompts[0], "__len__")
        batch = [prompts] if single else prompts
        for ids in batch:
            model.check_token_ids(ids)
        return [[int(t) for t in ids] for ids in batch], False, single
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, so prompts must be lists of token ids. Received: text")
    encode = model.encode_source if model.config.num_encoder_layers else model.tokenizer.encode
    return [encode(text) for text in texts], True, single


def _fit_context(model, ids, max_new_tokens, truncation):
    limit = model.config.max_sequence_length
    if not ids:
        end = model.tokenizer.end_token_id if model.tokenizer else None
        if end is None:
            raise ValueError("The prompt is empty. Give at least one token to begin with.")
        return [end]  # The token between documents: the model begins a new one.
    if truncation:
        return ids[-(limit - 1) :] if len(ids) >= limit else list(ids)
    if len(ids) >= limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, and the model's context is {limit}, with at least one to make. "
            "Shorten it, or pass truncation=True to keep its end."
        )
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"The prompt's {len(ids)} tokens and max_new_tokens={max_new_tokens} exceed the model's context of "
            f"{limit}. Ask for at most {limit - len(ids)}, or pass truncation=True to let the context slide."
        )
    return list(ids)


def _fit_source(model, ids, truncation):
    limit = model.config.max_sequence_length
    if not ids:
        raise ValueError("The source is empty. Give at least one token.")
    if len(ids) > limit and not truncation:
        raise ValueError(
            f"The source has {len(ids)} tokens, and the encoder reads {limit}. "
            "Shorten it, or pass truncation=True to keep its beginning."
        )
    return list(ids[:limit])


def _stop_strings(model, stop):
    if stop is None:
        return ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"`stop` must be a string or a list of strings, none empty. Received: {stop!r}")
    if model.tokenizer is None:
        raise ValueError("Stop strings need a tokenizer, and the model has none. Use `stop_token_ids`.")
    return stop


def _stop_token_ids(model, ids) -> frozenset[int]:
    if ids is None:
        end = model.tokenizer.end_token_id if model.tokenizer else None
        return frozenset() if end is None else frozenset([end])
    ids = list(ids) if hasattr(ids, "__iter__") else [ids]
    if ids:
        model.check_token_ids(ids)
    return frozenset(int(i) for i in ids)


def _stream(model, request, stop, as_text) -> Iterator:
    sent = 0
    pieces = _Pieces(model.tokenizer, request, stop) if as_text else None
    for _ in model.engine.run([request]):
        if as_text:
            piece = pieces.advance()
            if piece:
                yield piece
        else:
            yield from request.new_tokens[sent:]
            sent = len(request.new_tokens)
    if as_text:
        rest = pieces.finish()[pieces.sent :]
        if rest:
            yield rest


class _Pieces:
    """Decodes a request's tokens as they come, holding back what may still change or be a stop string."""

    def __init__(self, tokenizer, request, stop):
        self.tokenizer, self.request, self.stop = tokenizer, request, stop
        # Decoded with the prompt before them: some decoders drop a leading space of what they are given.
        self.context = request.prompt[-8:]
        self.before = len(tokenizer.decode(self.context))
        self.text = ""
        self.sent = 0
        self.ended = False

    def advance(self) -> str:
        """What became certain since the last call."""
        if self.ended:
            return ""
        self._decode()
        safe = len(self.text)
        if not self.ended:
            while safe > self.sent and self.text[safe - 1] == REPLACEMENT:
                safe -= 1
            certain = self.text[:safe]
            for string in self.stop:
                safe = min(safe, len(certain) - _overlap(certain, string))
        piece = self.text[self.sent : safe]
        self.sent = max(self.sent, safe)
        return piece

    def finish(self) -> str:
        """The whole answer; the half of a character that it may have ended in is left out."""
        if not self.ended:
            self._decode()
        return self.text if self.ended else self.text.rstrip(REPLACEMENT)

    def _decode(self):
        ids = self.context + self.request.new_tokens
        self.text = self.tokenizer.decode(ids)[self.before :]
        found = [self.text.find(s) for s in self.stop if s in self.text]
        if found:
            self.text = self.text[: min(found)]
            self.ended = True
            self.request.finished = "stop"


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of `text` that begins `string`."""
    for size in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:size]):
            return size
    return 0
