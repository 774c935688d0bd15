"""The engine behind the server: requests as they come over the pipe, answers in pieces."""

import collections
import functools
import json
import random
import re
import sys
import time
from collections.abc import Callable

from kerasllm.chat.tokens import encode_prompt, stop_token_ids, template_of
from kerasllm.generation.cache import bytes_a_slot
from kerasllm.generation.constraints import constraints_of
from kerasllm.generation.defaults import constraint_settings
from kerasllm.generation.engine import TOKENS_WORTH_A_COPY, Engine
from kerasllm.generation.pieces import Pieces
from kerasllm.generation.prefix_cache import PrefixCache
from kerasllm.generation.programs import CHUNK
from kerasllm.generation.prompts import stop_token_ids_of
from kerasllm.generation.requests import Request
from kerasllm.generation.sampling import Sampler
from kerasllm.generation.scoring import prompt_log_probs
from kerasllm.generation.structured import Grammar, token_bytes
from kerasllm.serving.errors import Refused
from kerasllm.serving.offsets import Offsets, starts_of

SECONDS_A_PIECE = 0.03  # of a stream
SECONDS_A_CALL = 0.2  # when nobody reads along: what a newcomer may have to wait for
CACHE_BYTES = 2**32  # of slots whose number is derived
ROOM = 256  # tokens that a slot has memory for at first


class Choice:
    """One of a request's answers, as it is made.

    Args:
        index: among the request's answers.
        request: of the engine.
        pieces: of the answer's text.
        before: characters of the prompt, where the answer begins with it.
    """

    def __init__(self, index: int, request: Request, pieces: Pieces, before: int = 0):
        self.index, self.request, self.pieces = index, request, pieces
        self.sent, self.told = 0, False
        self._before, self._offsets = before, Offsets()

    def advance(self, describe: Callable) -> dict | None:
        """What is new since the last call; `None` if nothing is."""
        tokens = None if self.request.top_log_probs is None else []
        text = self.pieces.advance() if tokens is None else "".join(self._described(describe, tokens))
        stop = min(self.pieces.read, len(self.request.new_tokens))
        finished = self.request.finished  # A stop string may just have ended it.
        if self.told or not (text or stop > self.sent or finished):
            return None
        if finished:
            text += self.pieces.rest()
        event = {"index": self.index, "text": text, "count": stop - self.sent, "finish": finished}
        if tokens is not None:
            event["tokens"] = tokens
        self.sent, self.told = stop, bool(finished)
        return event

    def _described(self, describe: Callable, tokens: list[dict]):
        """Yields the pieces of the new tokens, and appends what is said of each."""
        request, number, before = self.request, self.pieces.read, self.pieces.text
        for piece in self.pieces.each():
            token = describe(request.new_tokens[number], request.log_probs[number], request.alternatives[number])
            tokens.append({**token, "offset": self._before + self._offsets.of(before, token["bytes"])})
            number, before = number + 1, self.pieces.text
            yield piece


class Job:
    """A request of the server: prompts, and some answers to each of them."""

    def __init__(self, message: dict, prompts: list[list[int]], choices: list[Choice]):
        self.id, self.adapter, self.streams = message["id"], message["adapter"], message["stream"]
        self.log_probs, self.echo, self.max_tokens = message["log_probs"], message["echo"], message["max_tokens"]
        self.prompts, self.choices = prompts, choices
        self.texts = message.get("prompts", ())  # as they were sent

    @property
    def finished(self) -> bool:
        return all(choice.told for choice in self.choices)

    @property
    def usage(self) -> dict:
        return {
            "prompt_tokens": sum(map(len, self.prompts)),
            "completion_tokens": sum(len(choice.request.new_tokens) for choice in self.choices),
        }


class Writer:
    """Serves a model that makes tokens.

    Requests run in the order they came. One for another adapter waits until what runs has ended, and so does
    everything behind it.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`, with a tokenizer.
        slots: answers that run at once; 16, or what 4 GiB have room for, when left out.
        length: tokens of a prompt and its answer; the model's context when left out.
        adapters: directories of adapters, by name.
    """

    def __init__(self, model, slots: int | None = None, length: int | None = None, adapters: dict | None = None):
        self.model, self.tokenizer = model, model.tokenizer
        self.has_encoder = model.config.num_encoder_layers > 0
        self.length, self.size = length, slots or slots_within(model, length, CACHE_BYTES)
        self.cache = PrefixCache()
        self.waiting: collections.deque[Job | Callable] = collections.deque()
        self.running: dict[int, Job] = {}
        self.active, self.most = "", 1
        for name, directory in (adapters or {}).items():
            model.load_adapter(directory, name)
        self._renew()
        self._warm_up()

    @property
    def info(self) -> dict:
        return {"limit": self.limit, "slots": self.size, "adapters": sorted(self.model.adapters)}

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def stats(self) -> dict:
        slots = self.engine.slots
        held = sum(int(slots.positions[slot]) for slot in self.engine.running)
        behind = sum(len(job.choices) for job in self.waiting if isinstance(job, Job))
        return {
            "running": len(self.engine.running),
            "waiting": len(self.engine.waiting) + behind,
            "cache_use": held / (slots.size * slots.length),
            "prefix_hits": self.cache.hits,
            "prefix_misses": self.cache.misses,
        }

    # Requests ------------------------------------------------------------------------------------------------

    def prepare(self, message: dict) -> Job:
        """What a message asks for. Runs beside the engine: it only reads the tokenizer.

        Raises:
            ValueError: the request does not fit the model, or a setting is wrong.
        """
        prompts = self._prompts(message)
        stops = self._chat_stops if "messages" in message else stop_token_ids_of(self.model, None)
        size = self.model.config.vocabulary_size
        bias = {int(token): value for token, value in (message["logit_bias"] or {}).items()}
        grammar = self._grammar(message["form"])
        seed = random.getrandbits(31) if message["seed"] is None else message["seed"]
        choices = []
        for place, ids in enumerate(prompts):
            limit = self._room(len(ids), message["max_tokens"])
            before = len(self._said(message["prompts"][place])) if message["echo"] else 0
            for count in range(message["n"]):
                constraints = constraints_of(size, stops, logit_bias=bias, **constraint_settings(self.model))
                request = Request(
                    [self.model.start_token_id] if self.has_encoder else list(ids),
                    max(1, limit),
                    Sampler(seed=seed + count, **message["sampler"]),
                    stops,
                    source=list(ids) if self.has_encoder else None,
                    constraints=constraints if grammar is None else [*constraints, grammar.constraint(stops)],
                    top_log_probs=message["log_probs"],
                )
                pieces = Pieces(self.tokenizer, request, message["stop"])
                choices.append(Choice(len(choices), request, pieces, before))
        return Job(message, prompts, choices)

    def submit(self, job: Job) -> None:
        """Puts a request at the end of the queue."""
        self.waiting.append(job)

    def cancel(self, job_id: int) -> None:
        """Ends a request; nothing more is said about it."""
        if job := self.running.pop(job_id, None):
            for choice in job.choices:
                self.engine.cancel(choice.request)
        self.waiting = collections.deque(job for job in self.waiting if getattr(job, "id", None) != job_id)

    def step(self) -> list[dict]:
        """Starts what can start, lets the engine advance, and returns what is new."""
        events = self._start()
        began = time.perf_counter()
        advanced = self.engine.step(self.most)
        before = {id(choice.request): choice.sent for job in self.running.values() for choice in job.choices}
        made = max((len(r.new_tokens) - before.get(id(r), 0) for r in advanced), default=1)
        patience = SECONDS_A_PIECE if any(job.streams for job in self.running.values()) else SECONDS_A_CALL
        self.most = max(1, min(CHUNK, int(patience * max(1, made) / (time.perf_counter() - began))))
        for job in list(self.running.values()):
            error = next((choice.request.error for choice in job.choices if choice.request.error), None)
            if error is not None:
                self._known_grammar.cache_clear()  # A grammar that was given up may be spent.
                self.cancel(job.id)
                events.append(failure(job.id, error))
                continue
            made = [choice.advance(self._describe) for choice in job.choices]
            events += [{"id": job.id, **event} for event in made if event is not None]
            if job.finished:
                del self.running[job.id]
                events.append({"id": job.id, "done": job.usage})
        return events

    def _start(self) -> list[dict]:
        events = []
        while self.waiting:
            job = self.waiting[0]
            if self.running and (callable(job) or job.adapter != self.active):
                break
            self.waiting.popleft()
            if callable(job):
                job()
                continue
            try:
                self._use(job.adapter)
                echo = self._echo(job) if job.echo else []
            except Exception as error:  # One request's fault is not the others'.
                events.append(failure(job.id, error))
                continue
            events += echo
            if job.max_tokens == 0:
                events += [{"id": job.id, **choice.advance(self._describe)} for choice in _ended(job.choices)]
                events.append({"id": job.id, "done": job.usage})
                continue
            for choice in job.choices:
                self.engine.submit(choice.request)
            self.running[job.id] = job
        return events

    def _echo(self, job: Job) -> list[dict]:
        """The prompts themselves, with their log-probabilities where these are asked for."""
        events, copies = [], len(job.choices) // len(job.prompts)
        for place, ids in enumerate(job.prompts):
            event = {"id": job.id, "text": self._said(job.texts[place]), "count": 0, "finish": ""}
            if job.log_probs is not None:
                scored = prompt_log_probs(self.engine.programs, ids, job.log_probs, self.engine.slots.length)
                described = [self._describe(*token) for token in zip(ids[1:], *scored)]
                event["tokens"] = [self._describe(ids[0], None, {}), *described]
                starts = self._starts(job.texts[place], event["tokens"])
                event["tokens"] = [{**token, "offset": at} for token, at in zip(event["tokens"], starts)]
            events += [{**event, "index": place * copies + count} for count in range(copies)]
        return events

    def _said(self, prompt: str | list[int]) -> str:
        """A prompt as text: as it was sent, whatever the tokenizer makes of it."""
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def _starts(self, prompt: str | list[int], tokens: list[dict]) -> list[int]:
        """Where the tokens of a prompt begin in it."""
        if isinstance(prompt, str):
            return starts_of(self.tokenizer.encode_with_offsets(prompt)[1], tokens) or [0]  # of the end token, if empty
        request = Request([], len(prompt), Sampler(), new_tokens=prompt)
        pieces, offsets, before, starts = Pieces(self.tokenizer, request), Offsets(), "", []
        for token, _ in zip(tokens, pieces.each()):
            starts.append(offsets.of(before, token["bytes"]))
            before = pieces.text
        return starts or [0]

    def _prompts(self, message) -> list[list[int]]:
        if "messages" in message:
            if self.has_encoder:
                raise Refused("This model has an encoder, and no conversations. Use /v1/completions.", "model")
            has_calls = any("tool_calls" in said for said in message["messages"])
            if has_calls and "tool_calls" not in template_of(self.tokenizer):
                raise Refused("The model's chat template does not write `tool_calls`: leave them out.", "messages")
            return [encode_prompt(self.tokenizer, message["messages"])]
        encode = self.model.encode_source if self.has_encoder else self.tokenizer.encode
        prompts = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in message["prompts"]]
        end = self.tokenizer.end_token_id
        for ids in prompts:
            if not ids and end is None:
                raise Refused("The prompt is empty. Give at least one token to begin with.", "prompt")
            self.model.check_token_ids(ids or [end])
        return [ids or [end] for ids in prompts]  # The token between documents: the model begins a new one.

    def _room(self, size: int, max_tokens: int | None) -> int:
        room = self.limit - (1 if self.has_encoder else size)
        if size > self.limit or room < (1 if max_tokens is None else max_tokens):
            asked = "" if max_tokens is None else f" and max_tokens={max_tokens}"
            raise Refused(
                f"This model's context is {self.limit} tokens, of prompt and answer together. Received: a prompt of "
                f"{size} tokens{asked}. Shorten the prompt or ask for fewer tokens.",
                "prompt",
                "context_length_exceeded",
            )
        return room if max_tokens is None else max_tokens

    @functools.cached_property
    def _chat_stops(self) -> frozenset[int]:
        return stop_token_ids_of(self.model, None) | frozenset(stop_token_ids(self.tokenizer))

    def _grammar(self, form: dict | None) -> Grammar | None:
        if form is None:
            return None
        try:
            return self._known_grammar(json.dumps(form))
        except (ValueError, ImportError) as error:
            raise Refused(str(error), "response_format") from None

    @functools.lru_cache(maxsize=32)  # noqa: B019 - there is one writer in a process
    def _known_grammar(self, form: str) -> Grammar:
        return Grammar(self.tokenizer, **json.loads(form))

    # Tokens --------------------------------------------------------------------------------------------------

    def _describe(self, token: int, log_prob: float | None, alternatives: dict[int, float]) -> dict:
        """A token as text and bytes, with its log-probability and what else was likely in its place."""
        top = [{**self._spelled(other), "log_prob": value} for other, value in alternatives.items()]
        return {**self._spelled(token), "log_prob": log_prob, "top": top}

    def _spelled(self, token: int) -> dict:
        text = self.tokenizer.decode([token])
        spelled = self._bytes[token] if token < len(self._bytes) else None
        return {"id": token, "text": text, "bytes": list(text.encode() if spelled is None else spelled)}

    @functools.cached_property
    def _bytes(self) -> list[bytes | None]:
        try:
            return token_bytes(self.tokenizer)
        except ValueError:  # Their bytes depend on their neighbours.
            return []

    # Adapters ------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, directory: str) -> dict:
        """Adds an adapter, in place of one that the server did not wait for. Only while nothing runs."""
        if name in self.model.adapters:
            self.model.delete_adapter(name)
        self.model.load_adapter(directory, name)
        self._renew()
        return self.info

    def unload_adapter(self, name: str) -> dict:
        """Takes an adapter away. Only while nothing runs."""
        self.model.delete_adapter(name)
        self._renew()
        return self.info

    def _use(self, adapter: str) -> None:
        if adapter == self.active:
            return
        if adapter and adapter not in self.model.adapters:
            raise Refused(f"The model {adapter!r} does not exist.", "model", "model_not_found", 404)
        self.model.set_adapter([adapter] if adapter else [])
        self.active = self.cache.name = adapter

    def _renew(self) -> None:
        """An engine for the weights as they are now."""
        self.engine = None  # Its cache goes first.
        self.model.set_adapter([])
        self.active = self.cache.name = ""
        self.cache.clear()
        self.engine = Engine(self.model, self.size, self.length, prefix_cache=self.cache, room=ROOM)
        self.limit = min(self.engine.limit, self.length or self.engine.limit)

    def _warm_up(self) -> None:
        """Compiles what nearly every request needs: few of the slots, more of them and all, greedy and sampled."""
        source = [0] if self.has_encoder else None
        for temperature in (0.0, 1.0):
            for count in sorted({1, min(2, self.size), self.size // 4 + 1}):
                sampler, prompt = Sampler(temperature=temperature), [0] * min(2, self.limit - 1)
                tokens = min(TOKENS_WORTH_A_COPY, self.limit - len(prompt))
                requests = [Request(prompt, tokens, sampler, source=source) for _ in range(count)]
                for request in requests:
                    self.engine.submit(request)
                while not all(request.finished for request in requests):
                    self.engine.step()


def slots_within(model, length: int | None, num_bytes: int, most: int = 16) -> int:
    """How many slots a cache of this size has room for; a power of two, up to `most`."""
    length = min(length or model.config.max_sequence_length, model.config.max_sequence_length)
    while most > 1 and most * bytes_a_slot(model, length) > num_bytes:
        most //= 2
    return most


def failure(job_id: int, error: Exception) -> dict:
    """What is said about a request that went wrong."""
    if not isinstance(error, ValueError | KeyError | ImportError | OSError):
        sys.excepthook(type(error), error, error.__traceback__)
        return {"id": job_id, "error": {"status": 500, "message": "The model's process failed at this request."}}
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    named = re.match(r"`(\w+)`", message)  # as our messages begin that are about an argument
    known = {"param": getattr(error, "param", named and named[1]), "code": getattr(error, "code", None)}
    return {"id": job_id, "error": {"status": getattr(error, "status", 400), "message": message, **known}}


def _ended(choices):
    for choice in choices:
        choice.request.finished = "length"
        yield choice
