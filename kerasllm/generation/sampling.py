"""From logits to a token: plain functions on (rows, vocabulary), each row with its own settings.

Randomness is counted, not carried: the number that decides token `n` of a request is a function of the
request's seed and `n` alone, so a request gets the same answer alone or in any batch, on any backend.

Nothing here sorts under XLA, which takes 20 ms for 50,257 logits on a CPU: what a filter keeps is found by
bisection, in half a millisecond. And what no row of the batch asks for is not computed.
"""

import dataclasses
import math
import numbers
import operator

import keras
import numpy as np
from keras import ops

SAMPLERS = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_k": {"top_k": 40},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical": {"typical_p": 0.95},
    "top_a": {"top_a": 0.2},
    "mirostat": {"mirostat": 5.0},
}
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
SETTINGS = {  # what the batch knows of each row's sampler
    "temperature": "float32",
    "top_k": "int32",
    "top_p": "float32",
    "min_p": "float32",
    "top_a": "float32",
    "typical_p": "float32",
    "mirostat": "float32",
    "mirostat_eta": "float32",
    "repetition_penalty": "float32",
    "frequency_penalty": "float32",
    "presence_penalty": "float32",
}
MAX_TEMPERATURE = 100.0
COLD = 1e-6  # temperatures up to this are greedy: dividing by less would overflow
NEVER = -1e30  # a logit that no sampler chooses; finite, so that no NaN comes of it
REACH = 100.0  # e**-100 is no probability in float32
HALVINGS = 30  # of REACH: to 1e-7
LANES = 128  # XLA vectorises sums across rows of this many, not along one long row
LN_2 = math.log(2.0)
BELOW_ONE = 1 - 2.0**-23


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a request's tokens are chosen.

    Penalties come first, then the temperature, then the filters in the order they stand in here, each on what the
    one before it left. Tokens that tie with the last one kept are kept too.

    Args:
        temperature: logits are divided by it; 0 is greedy.
        top_k: only this many most likely tokens; 0 for all.
        top_p: only the fewest tokens whose probability reaches this (Holtzman et al., 2019); 1 for all.
        seed: of the counted randomness.
        min_p: only tokens at least this fraction as likely as the likeliest (Nguyen et al., 2024); 0 for all.
        top_a: only tokens at least as likely as this times the square of the likeliest's probability; 0 for all.
        typical_p: only the fewest tokens, those first whose surprise is nearest to what is expected, whose
            probability reaches this (Meister et al., 2022); 1 for all.
        mirostat: steers the surprise of the text to this many bits a token (Basu et al., 2020, version 2); 0 does
            not.
        mirostat_eta: how fast mirostat steers, in (0, 1].
        repetition_penalty: the logit of a token that the prompt or the answer has is divided by this if it is
            positive, else multiplied (Keskar et al., 2019); 1 changes nothing.
        frequency_penalty: taken from a token's logit once for each time that the answer has it, as OpenAI's.
        presence_penalty: taken from a token's logit once if the answer has it, as OpenAI's.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    top_a: float = 0.0
    typical_p: float = 1.0
    mirostat: float = 0.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise ValueError(f"`{field.name}` must be a number. Received: {field.name}={value!r}")
        for name in ("temperature", "mirostat"):
            self._check(name, 0 <= getattr(self, name) <= MAX_TEMPERATURE, f"be in [0, {MAX_TEMPERATURE:g}]")
        for name in ("top_p", "typical_p", "mirostat_eta"):
            self._check(name, 0 < getattr(self, name) <= 1, "be in (0, 1]")
        for name in ("min_p", "top_a"):
            self._check(name, 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        for name in ("frequency_penalty", "presence_penalty"):
            self._check(name, abs(getattr(self, name)) <= 100, "be in [-100, 100]; 0 is none")
        self._check("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "be in [0.01, 100]; 1 is none")
        self._check(
            "top_k", 0 <= self.top_k < 2**31 and int(self.top_k) == self.top_k, "be a whole number, or 0 for all"
        )
        self._check("seed", 0 <= self.seed < 2**63 and int(self.seed) == self.seed, "be a whole number in [0, 2**63)")

    def _check(self, name, holds, promise):
        if not holds:
            raise ValueError(f"`{name}` must {promise}. Received: {name}={getattr(self, name)}")

    @classmethod
    def from_arguments(
        cls, sampler="greedy", temperature=None, top_k=None, top_p=None, seed=None, **settings
    ) -> "Sampler":
        """The sampler that `generate(sampler="top_p", ...)` means.

        Args:
            sampler: a name of `SAMPLERS`, whose usual settings hold where none are given, or a `Sampler`.
            temperature, top_k, top_p, seed, **settings: fields of `Sampler`; `None` is as if not given. A seed takes
                the place of that of a `Sampler` object; the others must be part of it.

        Raises:
            ValueError: an unknown name, or a setting out of range or of no meaning to the sampler.
        """
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        given = {name: value for name, value in settings.items() if value is not None}
        if isinstance(sampler, cls):
            if given:
                raise ValueError(
                    f"Settings are part of a Sampler object, not beside it. Received: {given}. "
                    "Use dataclasses.replace(sampler, ...) or a sampler's name."
                )
            return sampler if seed is None else dataclasses.replace(sampler, seed=seed)
        if sampler not in tuple(SAMPLERS):
            raise ValueError(f"`sampler` must be one of {tuple(SAMPLERS)} or a Sampler. Received: {sampler!r}")
        if sampler == "greedy":
            meaningless = [name for name, value in given.items() if name not in PENALTIES and value != 0]
            if meaningless:
                raise ValueError(
                    f"{meaningless[0]!r} means nothing to sampler='greedy'. "
                    "Use sampler='temperature', 'top_k' or 'top_p'."
                )
            given = {name: value for name, value in given.items() if name in PENALTIES}
        return cls(**{**SAMPLERS[sampler], **given}, seed=0 if seed is None else seed)

    def uniforms(self, start: int, count: int) -> np.ndarray:
        """The numbers in [0, 1) that decide the request's tokens from `start` on, float32 (count,)."""
        # A count of Philox gives four numbers, of which the first is used.
        raw = np.random.Philox(key=self.seed, counter=start).random_raw(4 * count)[::4]
        return ((raw >> 40) / 2.0**24).astype("float32")

    def uniform(self, count: int) -> float:
        """The number in [0, 1) that decides the request's token `count`."""
        return float(self.uniforms(count, 1)[0])


def settings_of(samplers: list[Sampler | None], rows: int) -> dict[str, np.ndarray]:
    """The settings of a batch as `choose` wants them: an array (rows,) each; rows without a sampler are greedy."""
    chosen = [sampler or Sampler(temperature=0.0) for sampler in samplers]
    chosen += [Sampler(temperature=0.0)] * (rows - len(chosen))
    return {name: np.array([getattr(s, name) for s in chosen], dtype) for name, dtype in SETTINGS.items()}


def choose(logits, settings, uniforms, mu, counts=None, seen=None, bias=None):
    """Chooses a token a row.

    Args:
        logits: (rows, vocabulary) float32.
        settings: of each row, as `settings_of` makes them.
        uniforms: (rows,) float32 in [0, 1), one number of each row's sampler.
        mu: (rows,) float32, the surprise in bits that mirostat allows; at first twice its setting.
        counts: (rows, vocabulary) int32, how often each token is in the answer; without it nothing is penalised.
        seen: (rows, vocabulary) bool, whether each token is in the prompt.
        bias: (rows, vocabulary) float32, added to the logits first.

    Returns:
        tokens, (rows,) int32, and the new `mu`.
    """
    if bias is not None:
        logits = logits + bias
    if counts is not None:
        logits = penalize(logits, settings, counts, seen)
    best = greedy(logits)
    warm = settings["temperature"] > COLD

    def sampled():
        kept = keep(logits, settings)
        tokens, new_mu = _mirostat(kept, settings, uniforms, mu)
        return ops.where(warm, tokens, best), ops.where(warm, new_mu, mu)

    return _if_any(warm, sampled, (best, mu))


def greedy(logits):
    """The most likely token of each row, the first among equals, (rows,) int32."""
    if keras.backend.backend() == "torch":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    # XLA's argmax is not vectorised: 8 rows of 50,257 take 1.8 ms, this 0.1.
    return _first(logits >= ops.max(logits, axis=-1, keepdims=True))


def penalize(logits, settings, counts, seen):
    """Logits less what the tokens of the prompt (`seen`) and of the answer (`counts`) are penalised."""
    repetition, frequency, presence = (settings[name][:, None] for name in PENALTIES)
    used = (repetition != 1) | (frequency != 0) | (presence != 0)

    def penalized():
        answered = counts > 0
        repeated = ops.where(logits > 0, logits / repetition, logits * repetition)
        result = ops.where(ops.logical_or(seen, answered), repeated, logits)
        return result - frequency * ops.cast(counts, "float32") - presence * ops.cast(answered, "float32")

    return _if_any(used, penalized, logits)


def keep(logits, settings):
    """Logits over temperature, those that the filters take out lowered to `NEVER`; each row's largest is first 0.

    Mirostat is not among them, as it looks back on what was chosen. Rows that are greedy come out somehow.
    """
    warm = settings["temperature"] > COLD
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    logits = logits / ops.where(warm, settings["temperature"], 1.0)[:, None]
    for name, keeps, neutral, used in (
        ("top_k", top_k, 0, operator.gt),
        ("top_p", top_p, 1.0, operator.lt),
        ("min_p", min_p, 0.0, operator.gt),
        ("top_a", top_a, 0.0, operator.gt),
        ("typical_p", typical, 1.0, operator.lt),
    ):
        limit = settings[name]
        logits = _filtered(logits, used(limit, neutral) & warm, keeps, limit)
    return logits


def top_k(logits, k):
    """Mask of the `k` most likely tokens of each row."""
    return _heaviest(logits, ops.ones_like(logits), ops.cast(k, "float32"))


def top_p(logits, p):
    """Mask of the fewest, most likely tokens of each row whose probability reaches `p`."""
    weights = _weights(logits)
    return _heaviest(logits, weights, p * ops.sum(weights, axis=-1))


def min_p(logits, p):
    """Mask of the tokens at least `p` times as likely as each row's likeliest."""
    return logits >= ops.max(logits, axis=-1, keepdims=True) + ops.log(p)[:, None]


def top_a(logits, a):
    """Mask of the tokens at least as likely as `a` times the square of the likeliest's probability."""
    largest = ops.max(logits, axis=-1)
    likeliest = largest - ops.logsumexp(logits, axis=-1)
    return logits >= (largest + ops.log(a) + likeliest)[:, None]


def typical(logits, p):
    """Mask of the fewest tokens, by how near their surprise is to the entropy, whose probability reaches `p`."""
    surprise = ops.logsumexp(logits, axis=-1, keepdims=True) - ops.maximum(logits, NEVER)  # 0 · ∞ is no number
    probabilities = ops.exp(-surprise)
    entropy = ops.sum(probabilities * surprise, axis=-1, keepdims=True)
    return _heaviest(-ops.abs(surprise - entropy), probabilities, p)


def unsurprising(logits, mu):
    """Mask of the tokens whose surprise is at most `mu` bits, and of the likeliest in any case."""
    limit = ops.logsumexp(logits, axis=-1) - mu * LN_2
    return logits >= ops.minimum(limit, ops.max(logits, axis=-1))[:, None]


def draw(logits, uniforms):
    """Draws a token a row by inverting the cumulative distribution, in the order of the vocabulary.

    A token that was taken out is never drawn, whatever the rounding of the sums.
    """
    weights = _weights(logits)
    if keras.backend.backend() == "torch":  # of one block, and without the cost of ten more calls
        return _invert_torch(weights, uniforms)
    # First the block, then the place in it: XLA is slow at long cumulative sums (8 rows of 50,257: 1.3 ms, this 0.2).
    blocks = _in_blocks(weights, 0.0)
    rows, count, width = ops.shape(blocks)
    masses = ops.sum(blocks, axis=-1)
    block, rest = _invert(masses, uniforms * ops.sum(masses, axis=-1))
    within = ops.take(ops.reshape(blocks, (-1, width)), ops.arange(rows, dtype="int32") * count + block, axis=0)
    return ops.minimum(block * width + _invert(within, rest)[0], logits.shape[-1] - 1)


def _mirostat(logits, settings, uniforms, mu):
    """Draws; where mirostat is on, no token of more surprise than `mu`, which is then corrected."""
    target = settings["mirostat"]
    steered = target > 0
    tokens = draw(_filtered(logits, steered, unsurprising, mu), uniforms)

    def corrected():
        chosen = ops.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
        surprise = (ops.logsumexp(logits, axis=-1) - chosen) / LN_2
        return ops.where(steered, mu - settings["mirostat_eta"] * (surprise - target), mu)

    return tokens, _if_any(steered, corrected, mu)


def _if_any(used, function, otherwise):
    """`function()` if a row uses it, computed only then."""
    if keras.backend.backend() == "torch":
        return function() if used.any() else otherwise  # 7 µs, ops.cond 100
    return ops.cond(ops.any(used), function, lambda: otherwise)


def _filtered(logits, used, keeps, limit):
    """Logits with those that `keeps(logits, limit)` does not keep lowered, in the rows where it is `used`."""

    def filtered():
        return ops.where(ops.logical_or(keeps(logits, limit), ops.logical_not(used)[:, None]), logits, NEVER)

    return _if_any(used, filtered, logits)


def _heaviest(score, weight, target):
    """Mask of the fewest tokens, by score from the highest down, whose weights reach the row's `target`.

    Bisection, to 1e-7, for the largest threshold that enough weight is above; scores more than `REACH` below the
    row's highest count as never. If all of them do not reach the target, all are kept.
    """
    if keras.backend.backend() == "torch":
        return _heaviest_sorted(score, weight, target)
    score = score - ops.max(score, axis=-1, keepdims=True)
    scores, weights = _in_blocks(score, NEVER), _in_blocks(weight, 0.0)
    high = ops.zeros_like(target)

    def halve(_, limits):
        low, high = limits
        middle = (low + high) / 2
        above = ops.where(scores >= middle[:, None, None], weights, 0.0)
        enough = ops.sum(ops.sum(above, axis=1), axis=-1) >= target
        return ops.where(enough, middle, low), ops.where(enough, high, middle)

    low, _ = ops.fori_loop(0, HALVINGS, halve, (high - REACH, high))
    return score >= low[:, None]


def _heaviest_sorted(score, weight, target):
    """`_heaviest` by sorting: on PyTorch thirty halvings are a hundred calls. On a CPU NumPy sorts, 7 times as fast."""
    import torch

    size = score.shape[-1]
    if score.device.type == "cpu":
        limits = []
        for scores, weights, enough in zip(*(x.detach().numpy() for x in (score, weight, target))):
            order = np.argsort(-scores)
            last = np.searchsorted(np.cumsum(weights[order]), enough)
            limits.append(scores[order[min(last, size - 1)]])
        return score >= torch.tensor(limits)[:, None]
    ranked, order = torch.sort(score, dim=-1, descending=True)
    mass = torch.cumsum(torch.gather(weight, -1, order), dim=-1)
    last = (mass < target[:, None]).sum(-1, keepdim=True).clamp(max=size - 1)
    return score >= torch.gather(ranked, -1, last)


def _invert(weights, target):
    """The place in each row where the running sum of weights passes `target`, and what of it is left there.

    Sums that round otherwise than the target was made with end at the last place that still adds weight.
    """
    places = ops.arange(weights.shape[-1], dtype="int32")[None, :]
    running = ops.where(weights > 0, ops.cumsum(weights, axis=-1), 0.0)
    target = ops.minimum(ops.maximum(target, 0.0), ops.max(running, axis=-1) * BELOW_ONE)
    place = _first(running > target[:, None])
    before = ops.sum(ops.where(places < place[:, None], weights, 0.0), axis=-1)
    return place, target - before


def _invert_torch(weights, uniforms):
    running = weights.cumsum(-1) * (weights > 0)
    end = running.amax(-1)
    target = (uniforms * end).minimum(end * BELOW_ONE)
    return (running > target[:, None]).int().argmax(-1).int()


def _first(mask):
    """The first place of each row that is true, the last place if none is, (rows,) int32."""
    size = mask.shape[-1]
    return ops.min(ops.where(mask, ops.arange(size, dtype="int32")[None, :], size - 1), axis=-1)


def _weights(logits):
    """Probabilities of each row times what makes the largest 1."""
    return ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))


def _in_blocks(x, fill):
    """(rows, size) as (rows, blocks, LANES), filled up at the end."""
    x = ops.pad(x, ((0, 0), (0, -x.shape[-1] % LANES)), constant_values=fill)
    return ops.reshape(x, (-1, x.shape[-1] // LANES, LANES))
