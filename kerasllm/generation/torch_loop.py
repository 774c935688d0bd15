"""PyTorch has no compiled loop: the loop is here, around one recorded step, and speaks NumPy where it decides."""

import keras
import numpy as np
import torch

from kerasllm.generation import cache as caches
from kerasllm.generation.compiled import to_tensor
from kerasllm.generation.sampling import choose


def make_greedy(step, cache, part, tokens, positions, source, ends):
    """`Programs._make_greedy`; `step` is `Programs._greedy_step`, compiled."""
    return _loop(step, cache, part, tokens, positions, source, ends, lambda count, made, first, *_: (made, first))


def make_sampled(step, cache, part, tokens, positions, source, ends, draw):
    """`Programs._make_sampled`; `step` is `Programs._step`, compiled."""
    draw = keras.tree.map_structure(to_tensor, draw)
    counts, uniforms = draw["counts"].clone(), draw["uniforms"]
    rows = torch.arange(counts.shape[0], device=counts.device)

    def next_tokens(count, logits, *_):
        chosen, draw["mu"] = choose(logits, **{**draw, "uniforms": uniforms[:, count], "counts": counts})
        counts[rows, chosen.long()] += 1
        return chosen, logits[:, 0]

    made, count, cache = _loop(step, cache, part, tokens, positions, source, ends, next_tokens)
    return made, count, draw["mu"], cache


@torch.inference_mode()
def chosen(logits, draw):
    """`choose`, run as it stands."""
    from kerasllm.generation.programs import as_noted

    logits = to_tensor(logits)
    tokens, mu = choose(logits, **keras.tree.map_structure(to_tensor, draw))
    return as_noted(tokens, logits[:, 0]), mu


@torch.inference_mode()
def _loop(step, cache, part, tokens, positions, source, ends, next_tokens):
    from kerasllm.generation.programs import CHUNK, NOT_A_NUMBER, source_of

    made = np.zeros((len(tokens), CHUNK), "int32")
    rows, columns = map(to_tensor, part)
    running, count, last = ends["running"].copy(), 0, len(columns) - 1
    stops, least, limit = ends["stops"], int(ends["least"]), int(ends["limit"])
    # The recorded step writes into the cache; what is fed to it goes in and out by the same two places.
    start, stop = part[0][0], part[0][0] + len(rows)
    neighbours = (part[0] == np.arange(start, stop)).all()  # These are read, and written, where they are.
    if neighbours:
        read = [tuple(x[start:stop, :, : len(columns)] for x in pair) for pair in cache]
    else:
        read = caches.read_part(cache, rows, columns)
    source = source_of(keras.tree.map_structure(to_tensor, source), rows)
    run, flat = step.bind(to_tensor(tokens), to_tensor(np.array(positions)), read, source)
    first = torch.zeros(len(tokens))
    while count < limit and running.sum() >= least:
        flat[0], first = next_tokens(count, *run(*flat))
        flat[1] = (flat[1] + 1).clamp_(max=last)
        made[:, count] = flat[0].cpu().numpy()
        running &= (made[:, count, None] != stops).all(axis=1)
        count += 1
    # What is not a number stays so: one look, at the last step, is enough.
    made[np.isnan(first.float().cpu().numpy()), :count] = NOT_A_NUMBER
    return made, count, cache if neighbours else caches.write_part(cache, read, rows)
