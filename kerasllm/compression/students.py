"""A student that begins as some of its teacher's blocks."""

from collections.abc import Sequence

import numpy as np

from kerasllm.compression.pruning import check_plain
from kerasllm.compression.reshaping import rebuilt, stacks_of


def student_from(teacher, num_layers: int | Sequence[int], num_encoder_layers: int | Sequence[int] | None = None):
    """A new model with fewer blocks, whose weights are the teacher's.

    Args:
        teacher: one of ours, with float weights and without adapters. It stays as it is.
        num_layers: how many blocks to keep, evenly spread from the first to the last; or which, such as [0, 2, 5].
        num_encoder_layers: the same of the encoder, if there is one; all of them when left out.

    Raises:
        ValueError: a number of blocks that the teacher does not have, or one that is no block of its.

    Example:
    ```python
    student = student_from(teacher, num_layers=3)
    ```

    Reference: Sanh et al. (2019), "DistilBERT", section 2; Shleifer and Rush (2020), "Pre-trained Summarization
    Distillation", for the choice of blocks.
    """
    check_plain(teacher)
    counts = stacks_of(teacher)
    if num_encoder_layers is not None and "encoder/" not in counts:
        raise ValueError(f"The teacher has no encoder. Received: num_encoder_layers={num_encoder_layers!r}")
    blocks = {}
    for name, count in counts.items():
        argument = "num_encoder_layers" if name == "encoder/" else "num_layers"
        given = num_encoder_layers if name == "encoder/" else num_layers
        blocks[name] = list(range(count)) if given is None else _which(given, count, argument)
    return rebuilt(teacher, blocks)


def evenly(few: int, many: int) -> list[int]:
    """So many of the numbers below `many`, evenly spread from the first to the last; the last, if it is one."""
    return [many - 1] if few == 1 else [int(i) for i in np.linspace(0, many - 1, few).round()]


def _which(given, count: int, argument: str) -> list[int]:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= count:
            raise ValueError(f"`{argument}` must be from 1 to the teacher's {count}. Received: {argument}={given}")
        return evenly(given, count)
    blocks = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not blocks or any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count for i in blocks):
        raise ValueError(
            f"`{argument}` must be a number of blocks, or a list of blocks from 0 to {count - 1}. "
            f"Received: {argument}={given!r}"
        )
    return blocks
