"""Votes between two models: kept as preference data, and counted."""

import json
import math
import random
from pathlib import Path

CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "A tie", "neither": "Both are bad"}
MAX_VOTES = 2_000
Z = 1.96  # of a 95 % interval


def record(
    prompt: str, answers: tuple[str, str], models: tuple[str, str], sampler: dict, seed: int, vote: str, swapped: bool
) -> dict:
    """One vote as a line of preference data.

    Args:
        answers, models: of A and B.
        vote: a key of `CHOICES`.
        swapped: whether B stood on the left.

    Returns:
        "chosen" and "rejected" are `None` for a tie and for both bad.
    """
    if vote not in CHOICES:
        raise ValueError(f"`vote` must be one of {', '.join(CHOICES)}. Received: {vote!r}")
    winner = {"left": int(swapped), "right": int(not swapped)}.get(vote)
    return {
        "prompt": prompt,
        "chosen": None if winner is None else answers[winner],
        "rejected": None if winner is None else answers[1 - winner],
        "vote": vote if winner is None else "AB"[winner],
        "answers": list(answers),
        "models": list(models),
        "samplers": sampler,
        "seed": seed,
    }


def add(path: Path, vote: dict) -> None:
    """Adds a vote to a file.

    Raises:
        ValueError: the file is full.
    """
    if len(read(path)) >= MAX_VOTES:
        raise ValueError(f"There are {MAX_VOTES:,} votes, which is all there is room for. Download them.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(vote, ensure_ascii=False) + "\n")


def read(path: Path) -> list[dict]:
    """All votes of a file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def standing(votes: list[dict], models: tuple[str, str]) -> dict:
    """How A stands against B: "wins", "losses", "ties", "neither", and A's "rate" with a 95 % interval.

    Ties and both-bad votes do not count in the rate. Votes on the same two models the other way round count.

    Reference: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    counts = {"A": 0, "B": 0, "tie": 0, "neither": 0}
    for vote in votes:
        if vote["models"] == list(models):
            counts[vote["vote"]] += 1
        elif vote["models"] == list(models)[::-1]:
            counts[{"A": "B", "B": "A"}.get(vote["vote"], vote["vote"])] += 1
    decided = counts["A"] + counts["B"]
    low, high = wilson(counts["A"], decided)
    return {
        "wins": counts["A"],
        "losses": counts["B"],
        "ties": counts["tie"],
        "neither": counts["neither"],
        "rate": counts["A"] / decided if decided else None,
        "low": low,
        "high": high,
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, Z * Z / trials
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def swap() -> bool:
    """Whether B stands on the left this time."""
    return random.SystemRandom().random() < 0.5
