"""The one engine that makes tokens: slots that share a batch, each with its own prompt, length and sampler.

Requests wait until a slot is free. Their prompts are read into it, all but the last token, and then all slots advance
together: a step feeds each slot's last token and makes its next. Many steps run in one compiled call, unless something
must be decided after each. A finished request leaves at once, and the next takes its slot.
"""

import collections
import itertools
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from kerasllm.generation.cache import bytes_a_slot
from kerasllm.generation.constraints import holds_for
from kerasllm.generation.drafts import Drafts
from kerasllm.generation.draws import Draws, is_greedy, repeated
from kerasllm.generation.prefix_cache import PrefixCache
from kerasllm.generation.programs import CHUNK, NOT_A_NUMBER, ends_of, programs_of
from kerasllm.generation.requests import NOT_NUMBERS, Request
from kerasllm.generation.scoring import log_softmax, noted
from kerasllm.generation.slots import SMALLEST_BUCKET, Slots, bucket
from kerasllm.generation.weights import Weights

CACHE_BYTES = 2**30  # of a derived number of slots
MOST_SLOTS = 16
TOKENS_WORTH_A_COPY = 4


class Engine:
    """Runs requests for one model.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`.
        slots: requests that run at once.
        length: tokens, prompt and answer, that a slot has room for; what the model reads, when left out.
        drafts: guesses tokens, which the model then checks several at once; see `Drafts`.
        prefix_cache: keeps what was read of prompts, for later ones that begin alike; see `PrefixCache`.
        room: tokens that a slot has memory for at first; see `Slots`. For engines that live long, which then also leave
            out free slots while few are taken.

    Example:
    ```python
    engine = Engine(model, slots=2)
    request = engine.submit(Request([5, 7], max_new_tokens=3, sampler=Sampler(temperature=0.0)))
    while not request.finished:
        engine.step()
    request.new_tokens
    ```

    Reference: Yu et al. (2022), "Orca: A Distributed Serving System for Transformer-Based Generative Models".
    """

    def __init__(
        self,
        model,
        slots: int = 8,
        length: int | None = None,
        drafts: Drafts | None = None,
        prefix_cache: PrefixCache | None = None,
        room: int | None = None,
    ):
        self.model, self.elastic = model, room is not None
        self._sizes = slots, length, room
        self._begin()
        self.prefix_cache, self.drafts = prefix_cache, drafts
        self.waiting: collections.deque[Request] = collections.deque()
        self.running: dict[int, Request] = {}
        self._last = np.zeros(slots, "int32")  # the token that each slot is fed next
        self.draws = Draws(slots, model.config.vocabulary_size)
        if drafts is not None:
            drafts.start(self)

    def _begin(self) -> None:
        """Empty slots for the model as it is now."""
        slots, length, room = self._sizes
        self.programs = programs_of(self.model)
        self.limit = self.programs.limit
        length = bucket(min(length or self.limit, self.limit), self.limit, SMALLEST_BUCKET)
        self.slots = Slots(self.programs, slots, length, source_length=length, room=room)
        self._weights, self._state = Weights(self.model), self.model.adapter_state

    @classmethod
    def for_requests(cls, model, requests: Sequence[Request], slots: int | None = None, **options) -> "Engine":
        """An engine with as many slots as these requests want and memory allows, and as much room as they need."""
        config = model.config
        needed = min(config.max_sequence_length, max(len(r.prompt) + r.max_new_tokens for r in requests))
        needed = max(needed, *(len(r.source or ()) for r in requests), 1)
        if slots is None:
            slots = bucket(len(requests), MOST_SLOTS)
            while slots > 1 and slots * bytes_a_slot(model, needed) > CACHE_BYTES:
                slots //= 2
        return cls(model, slots, needed, **options)

    # Requests ------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Request:
        """Puts a request at the end of the queue.

        Raises:
            ValueError: it needs more room than a slot has.
        """
        needed = max(len(request.prompt) + (not request.slide) * request.max_new_tokens, len(request.source or ()))
        if needed > self.slots.length:
            raise ValueError(
                f"The request needs room for {needed} tokens, and a slot has {self.slots.length}. Shorten the prompt "
                "or ask for fewer tokens."
            )
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request now; its slot is free for the next."""
        if not request.finished:
            request.finished = "cancelled"
        if request in self.waiting:
            self.waiting.remove(request)
        self._release()

    def step(self, most: int = CHUNK) -> list[Request]:
        """Lets waiting requests in, and advances all that run, by up to `most` tokens.

        Returns:
            the requests that advanced or ended.
        """
        self._release()  # A stop string may have ended a request since.
        self._follow_model()
        self._admit()
        running = dict(self.running)
        if not running:
            return []
        self._slide()
        if any(r.logits_function or r.top_log_probs is not None for r in running.values()):
            self._one_step(running)
        elif self.drafts is not None:
            self._checked_step(running)
        else:
            self._many_steps(running, most)
        self._release()
        return list(running.values())

    def _follow_model(self) -> None:
        """Where the model is not what it was, what is held of running requests is read again."""
        self.model.sync_weights()
        same_programs = self.model._programs is self.programs
        if same_programs and not self._weights.changed() and self._state == self.model.adapter_state:
            return
        held = {slot: self.text(slot)[:-1] for slot in self.running}
        if not same_programs:
            self._begin()
        self._state = self.model.adapter_state
        self.slots.positions[:] = 0
        self.slots.read_sources({slot: request.source for slot, request in self.running.items()})
        for slot, tokens in list(held.items()):
            if len(tokens) >= self.slots.length:  # Prompts of an adapter have left less room.
                self.running.pop(slot).finished = "length"
                del held[slot]
        self.slots.read(held)
        if self.drafts is not None:
            self.drafts.start(self)

    def _admit(self) -> None:
        free = [slot for slot in range(self.slots.size) if slot not in self.running]
        admitted = {}
        while free and self.waiting:
            admitted[free.pop(0)] = self.waiting.popleft()
        if not admitted:
            return
        if not self.running:
            self.slots.empty()
        if self.prefix_cache is not None:
            self.prefix_cache.follow(self.model)
        first, same = {}, {}  # Equal prompts are read once.
        for slot, request in admitted.items():
            key = (tuple(request.prompt), tuple(request.source or ()))
            original = first.setdefault(key, slot)
            if original != slot:
                same[slot] = original
            self.slots.positions[slot] = 0
            self._last[slot] = request.prompt[-1]
        own = {slot: request for slot, request in admitted.items() if slot not in same}
        self.slots.read_sources({slot: request.source for slot, request in own.items()})
        prompts = {slot: request.prompt[:-1] for slot, request in own.items()}
        if self.prefix_cache is not None:
            prompts = {slot: ids[self.prefix_cache.restore(self.slots, slot, ids) :] for slot, ids in prompts.items()}
        self.slots.read(prompts)
        self.slots.copy(same)
        self.draws.admit(admitted)
        for slot in admitted:
            if self.drafts is not None:
                self.drafts.forget(slot)
        self.running |= admitted

    def _release(self) -> None:
        for slot, request in list(self.running.items()):
            if request.finished:
                del self.running[slot]
                if self.prefix_cache is not None and not self.slots.source and request.error is None:
                    self.prefix_cache.keep(self.slots, slot, request.context)

    def _slide(self) -> None:
        """Where the context is full, only its last half is read again."""
        full = {s: r for s, r in self.running.items() if self.slots.positions[s] >= self.limit}
        for slot, request in full.items():
            self.slots.positions[slot] = 0
            self.slots.read({slot: request.context[-(self.limit // 2 or 1) : -1]})
            if self.drafts is not None:
                self.drafts.forget(slot)

    def _take(self, slot: int, request: Request, tokens: Iterable[int]) -> None:
        """The tokens that came after what the slot held and was fed last."""
        for token in tokens:
            if request.finished:
                break
            if token == NOT_A_NUMBER:
                request.fail(ValueError(NOT_NUMBERS))
                break
            self.slots.positions[slot] += 1
            self._last[slot] = token
            request.accept(int(token))
            if not request.finished and not request.slide and self.slots.positions[slot] >= self.limit:
                request.finished = "length"
        request.settle()

    def _make_room(self, running, tokens: int) -> None:
        self.slots.make_room(1 + tokens + max(int(self.slots.positions[slot]) for slot in running))

    def text(self, slot: int) -> list[int]:
        """What the slot holds, and the token that it is fed next."""
        return self.running[slot].context[-1 - int(self.slots.positions[slot]) :]

    # Steps ---------------------------------------------------------------------------------------------------

    def _many_steps(self, running, most) -> None:
        slots = self.slots
        room = [self.limit - slots.positions[slot] for slot in running]
        remaining = [request.remaining for request in running.values()]
        held = min(holds_for(request.constraints, len(request.new_tokens)) for request in running.values())
        least = len(running) - self._idle(len(running))
        most = min(most, held, min(room), sorted(remaining)[-least])
        self._make_room(running, most)
        rows = self._rows(running, most)
        place = {int(slot): row for row, slot in enumerate(rows)}
        ends = ends_of(
            len(rows),
            {place[slot]: request.stop_token_ids for slot, request in running.items()},
            [place[slot] for slot in running],
            least=least,
            limit=most,
        )
        part = slots.part(rows, self._places(rows, running, most))
        arguments = slots.cache, part, self._last[rows], slots.positions[rows], slots.source, ends
        if all(is_greedy(request) for request in running.values()):
            made, count, slots.cache = self.programs.make_greedy(*arguments)
        else:
            draw = self.draws.of(running, CHUNK, rows)
            made, count, mu, slots.cache = self.programs.make_sampled(*arguments, draw)
            self.draws.keep(mu, rows)
        made = ops.convert_to_numpy(made)[:, : int(count)]
        for slot, request in running.items():
            self._take(slot, request, made[place[slot]])

    def _idle(self, running: int) -> int:
        """How many requests may have ended before a call returns."""
        if self.elastic:  # Others come all the time: what has ended is answered soon, and its slot free for them.
            return running // 4
        return 0 if self.waiting else running - 1  # The first to end gives its slot to the next.

    def _places(self, rows, running, tokens: int) -> int:
        """How much of each slot attention reads: all there is, or where all slots compute in an engine that lives long,
        as many quarters of it as the longest text needs."""
        slots = self.slots
        # XLA would copy the share, there and back, at each call, and compile for each of them.
        if not self.elastic or len(rows) < slots.size or keras.backend.backend() != "torch":
            return slots.held
        quarter = -(-slots.held // 4)
        needed = 1 + tokens + max(int(slots.positions[slot]) for slot in running)
        return min(slots.held, -(-needed // quarter) * quarter)

    def _rows(self, running, tokens: int) -> np.ndarray:
        """The slots that compute: all; but in an engine that lives long, when few of many run, these alone, and so many
        free ones that there are few shapes. Several are copied by XLA, there and back, which must be worth it."""
        size = self.slots.size
        count = 1 if len(running) == 1 else size // 4
        copied = count > 1 and keras.backend.backend() != "torch"
        if not self.elastic or len(running) > count or (copied and tokens < TOKENS_WORTH_A_COPY):
            return np.arange(size, dtype="int32")
        free = (slot for slot in range(size) if slot not in running)
        return np.asarray(sorted([*running, *itertools.islice(free, count - len(running))]), "int32")

    def _one_step(self, running) -> None:
        slots, programs = self.slots, self.programs
        self._make_room(running, 1)
        logits, _, slots.cache = programs.logits(slots.cache, self._last[:, None], slots.positions, slots.source)
        logits = logits[:, 0]
        draw = self.draws.of(running, 1)
        if any(r.logits_function or r.top_log_probs is not None for r in running.values()):
            raw = ops.convert_to_numpy(logits)
            logits = raw.copy()
            for slot, request in running.items():
                if np.isnan(raw[slot]).any():
                    request.fail(ValueError(NOT_NUMBERS))
                elif request.logits_function is not None:
                    logits[slot] = _applied(request, raw[slot])
        draw["uniforms"] = draw["uniforms"][:, 0]
        tokens, mu = programs.choose(logits, draw)
        self.draws.keep(mu)
        tokens = ops.convert_to_numpy(tokens)
        for slot, request in running.items():
            if request.finished:
                continue
            if request.top_log_probs is not None and int(tokens[slot]) not in request.stop_token_ids:
                log_prob, alternatives = noted(log_softmax(raw[slot]), int(tokens[slot]), request.top_log_probs)
                request.log_probs.append(log_prob)
                request.alternatives.append(alternatives)
            self._take(slot, request, tokens[slot : slot + 1])

    def _checked_step(self, running) -> None:
        """Feeds each slot its last token and a few guessed ones; those are taken that the model would have made."""
        slots, width = self.slots, self.drafts.size + 1
        self._make_room(running, width)
        guesses = self.drafts.guess(running)
        token_ids = np.zeros((slots.size, width), "int32")
        for slot, guess in guesses.items():
            token_ids[slot, 0] = self._last[slot]
            token_ids[slot, 1 : 1 + len(guess)] = guess
        arguments = slots.cache, token_ids, slots.positions, slots.source
        if all(is_greedy(request) for request in running.values()):
            made, slots.cache = self.programs.verify(*arguments)
        else:
            logits, _, slots.cache = self.programs.logits(*arguments)
            draw = repeated(self.draws.of(running, width), width)
            made, mu = self.programs.choose(ops.reshape(logits, (-1, logits.shape[-1])), draw)
            self.draws.keep(mu[::width])
        made = ops.convert_to_numpy(made).reshape(slots.size, width)
        for slot, request in running.items():
            guess = guesses[slot]
            right = 0
            while right < len(guess) and guess[right] == made[slot, right]:
                right += 1
            before = len(request.new_tokens)
            self._take(slot, request, made[slot, : right + 1])
            request.drafted += len(guess)
            request.accepted += min(right, len(request.new_tokens) - before)


def _applied(request: Request, logits: np.ndarray) -> np.ndarray:
    """The logits as the request's own function changes them; what it does wrong ends that request alone."""
    try:
        return checked_logits(request.logits_function(logits.copy(), request.context), logits.shape)
    except Exception as error:
        request.fail(error)
        return logits


def checked_logits(changed, shape: tuple) -> np.ndarray:
    """What a function of the user's made of logits.

    Raises:
        ValueError: another shape, a NaN, or no token left.
    """
    changed = np.asarray(changed, "float32")
    if changed.shape != shape:
        raise ValueError(f"The logits function must return logits of shape {shape}. Received: shape={changed.shape}")
    if np.isnan(changed).any() or not (changed > -1e29).any():
        raise ValueError(
            "The logits function must return numbers, and leave at least one token possible. Received: "
            + ("NaN" if np.isnan(changed).any() else "no logit above -1e29")
        )
    return np.maximum(changed, -1e30)  # -inf would make NaN of what is multiplied by 0.
