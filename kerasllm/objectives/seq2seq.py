"""Pairs of a source and a target, for a model that reads the one and writes the other."""

from collections.abc import Sequence

import numpy as np

from kerasllm.objectives.padding import padded


def seq2seq_batch(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    encoder_length: int,
    decoder_length: int,
    start_token_id: int,
    end_token_id: int,
    pad_token_id: int,
    truncation: bool = False,
) -> tuple:
    """Arrays of pairs, with teacher forcing: the decoder reads the start token and the target, one to the right.

    Source: Sutskever et al. (2014), "Sequence to Sequence Learning with Neural Networks".

    Args:
        sources: token ids of each source, read as they are: an end token has to be in them already.
        targets: token ids of each target, without start and end tokens; one may be empty.
        encoder_length, decoder_length: of the arrays. A target takes one more than its tokens, for the end.
        start_token_id, end_token_id: before and after each target.
        pad_token_id: fills up both.
        truncation: cut what is too long. A target that is cut has no end token, since it does not end there.

    Returns:
        x: `"encoder_token_ids"` int32 and `"encoder_padding_mask"` bool (b, encoder_length), `"decoder_token_ids"`
            int32 and `"decoder_padding_mask"` bool (b, decoder_length).
        y: int32 (b, decoder_length).
        sample_weight: float32 (b, decoder_length), 0 for padding.

    Raises:
        ValueError: different numbers of sources and targets, an empty source, or one that is too long: the message
            names the limit.

    Example:

    ```python
    x, y, weights = seq2seq_batch([[5, 6]], [[7]], 4, 3, start_token_id=0, end_token_id=1, pad_token_id=0)
    ```
    """
    if len(sources) != len(targets):
        raise ValueError(f"Each source needs one target. Received: {len(sources)} sources and {len(targets)} targets")
    encoder_ids, encoder_mask = padded(sources, encoder_length, pad_token_id, "source", "encoder_length", truncation)
    ended = [[*target, end_token_id] for target in targets]
    y, mask = padded(ended, decoder_length, pad_token_id, "target with its end", "decoder_length", truncation)
    decoder_ids = np.where(mask, np.pad(y[:, :-1], ((0, 0), (1, 0)), constant_values=start_token_id), pad_token_id)
    x = {
        "encoder_token_ids": encoder_ids,
        "encoder_padding_mask": encoder_mask,
        "decoder_token_ids": decoder_ids.astype(np.int32),
        "decoder_padding_mask": mask,
    }
    return x, y, mask.astype(np.float32)
