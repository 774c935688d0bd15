"""Texts that a model wrote, to train a student on: the teacher's, or the student's own."""

import numpy as np

from kerasllm.data.arrays import ArrayDataset
from kerasllm.models.inputs import is_text, pad_token_id, tokenizer_of


def written_rows(model, prompts, max_new_tokens: int, **options):
    """(x, y, sample_weight) for `fit`: what a model writes after each prompt, where only what it wrote counts.

    With a teacher's, a student learns from whole sequences; all rows have the same shape, whatever was written.

    Args:
        model: a `CausalLM` or a `Seq2SeqLM`, for which prompts are sources.
        prompts: a list of strings, or of lists of token ids.
        max_new_tokens: to write after each, at the most.
        options: of `generate`, such as `num_beams`; greedy when left out.

    Raises:
        ValueError: no prompts, or one that leaves no room for what is written.

    Example:
    ```python
    student.fit(*written_rows(teacher, prompts, max_new_tokens=64))
    ```

    Reference: Kim and Rush (2016), "Sequence-Level Knowledge Distillation".
    """
    return _rows(model, *_prompt_ids(model, prompts, max_new_tokens), max_new_tokens, options)


class OnPolicy(ArrayDataset):
    """What a student writes after prompts, anew at the beginning of each epoch: data for a `Distiller` with `hard=0`.

    So the teacher judges the very texts that the student will be in the middle of when it is used.

    Args:
        student: that is trained.
        prompts, max_new_tokens: as in `written_rows`.
        batch_size: prompts in a batch.
        seed: of what is written; each epoch has its own.
        options: of `generate`; sampling at temperature 1 when left out.

    Example:
    ```python
    distiller = Distiller(student, teacher, divergence="jensen_shannon", hard=0.0)
    distiller.compile(keras.optimizers.AdamW(1e-4))
    distiller.fit(OnPolicy(student, prompts, max_new_tokens=64), epochs=10)
    ```

    Reference: Agarwal et al. (2023), "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes".
    """

    digest = None

    def __init__(self, student, prompts, max_new_tokens: int, batch_size: int = 8, seed: int = 0, **options):
        self._student, self._max_new_tokens = student, max_new_tokens
        self._prompts, self._length = _prompt_ids(student, prompts, max_new_tokens)
        self._options = {"sampler": "temperature", "temperature": 1.0, **options}
        empty = _arrays(student, self._prompts, [[] for _ in self._prompts], self._length, max_new_tokens)
        super().__init__(*empty, batch_size=batch_size, shuffle=True, seed=seed)

    def on_epoch_begin(self) -> None:
        super().on_epoch_begin()
        options = {**self._options, "seed": self.seed + self.epoch}
        self.parts = _rows(self._student, self._prompts, self._length, self._max_new_tokens, options)


def _prompt_ids(model, prompts, max_new_tokens: int) -> tuple[list[list[int]], int]:
    """The token ids of prompts, and how many the longest has."""
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"`prompts` must be a list of at least one. Received: prompts={prompts!r}")
    is_source = model.config.num_encoder_layers > 0
    if is_text(prompts):
        tokenizer = tokenizer_of(model)
        prompts = [model.encode_source(text) for text in prompts] if is_source else tokenizer.encode_texts(prompts)
    ids = [[int(i) for i in prompt] for prompt in prompts]
    length, limit = max(map(len, ids)), model.config.max_sequence_length
    room = limit - (0 if is_source else length) - 1
    if not 1 <= max_new_tokens <= room or length > limit:
        raise ValueError(
            f"The model reads {limit} tokens, which leaves room for {max(room, 0)} after the longest prompt. "
            f"Received: max_new_tokens={max_new_tokens!r}, a prompt of {length} tokens"
        )
    return ids, length


def _rows(model, prompts, length: int, max_new_tokens: int, options):
    written = model.generate(prompts, max_new_tokens, strip_prompt=True, **options)
    return _arrays(model, prompts, written, length, max_new_tokens)


def _arrays(model, prompts, written, length: int, max_new_tokens: int):
    pad, is_source = pad_token_id(model), model.config.num_encoder_layers > 0
    starts = [[model.start_token_id] for _ in prompts] if is_source else prompts
    size = max_new_tokens + (1 if is_source else length)
    ids = np.full((len(prompts), size), pad, "int32")
    mask, counts = np.zeros(ids.shape, "bool"), np.zeros(ids.shape, "float32")
    for row, (start, new) in enumerate(zip(starts, written)):
        both = [*start, *new]
        ids[row, : len(both)], mask[row, : len(both)] = both, True
        counts[row, len(start) : len(both)] = 1.0
    x = {"token_ids": ids[:, :-1], "padding_mask": mask[:, :-1]}
    if is_source:
        sources = np.full((len(prompts), length), pad, "int32")
        real = np.zeros(sources.shape, "bool")
        for row, prompt in enumerate(prompts):
            sources[row, : len(prompt)], real[row, : len(prompt)] = prompt, True
        x = {f"decoder_{key}": value for key, value in x.items()}
        x |= {"encoder_token_ids": sources, "encoder_padding_mask": real}
    return x, ids[:, 1:], counts[:, 1:]
