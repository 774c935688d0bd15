"""Who decodes: each contestant as two functions, answer and first token, of an int array of prompts.

All have random weights in float32, decode greedily and never stop early. Libraries are imported where they are
used, so that a worker loads only its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peers
from decode_shapes import PROMPT_LENGTH, RAGGED_SLOTS, Workload, static_lengths

Tokens = list[list[int]]


@dataclass(frozen=True)
class Contestant:
    """What is measured.

    Attributes:
        answer: (prompts, new_tokens) to the new tokens of each prompt.
        first_token: (one prompt, an array of shape (1, length), and new_tokens) to the first of them.
        ragged: (prompts, lengths) to new tokens, each prompt its own number; only kerasllm has it.
        static: the same answers, (prompts, lengths, rows), from static batches of `rows`, each padded to its longest.
    """

    answer: Callable[[Any, int], Tokens]
    first_token: Callable[[Any, int], int]
    ragged: Callable[[Any, list[int]], Tokens] | None = None
    static: Callable[[Any, list[int], int], Tokens] | None = None


def backend_of(name: str) -> str:
    """The Keras backend that a contestant needs; PyTorch, which is not loaded, for those that are not Keras."""
    library, _, backend = name.partition("-")
    return backend if library in ("kerasllm", "kerashub") else "torch"


def make(name: str, workload: Workload, threads: int) -> Contestant:
    """Build a contestant's model in this process."""
    if name.startswith("kerasllm-"):
        return make_kerasllm(workload)
    if name.startswith("kerashub-"):
        return make_keras_hub(workload)
    if name == "transformers":
        return make_transformers(workload)
    from decode_llama import make_llama

    return make_llama(workload, threads)


def make_kerasllm(workload: Workload) -> Contestant:
    """kerasllm on the backend of KERAS_BACKEND, by its public `generate` alone."""
    import kerasllm

    m = workload.model
    if workload.architecture == "gpt":
        model = peers.make_kerasllm_gpt(m)
    else:
        config = kerasllm.TransformerConfig.from_name(
            "t5_small",
            num_layers=m.num_layers,
            num_encoder_layers=m.num_layers,
            num_heads=m.num_heads,
            head_dim=m.hidden_dim // m.num_heads,
            hidden_dim=m.hidden_dim,
            intermediate_dim=4 * m.hidden_dim,
            vocabulary_size=m.vocabulary_size,
            max_sequence_length=m.sequence_length,
        )
        model = kerasllm.Seq2SeqLM(config)

    def generate(prompts: Any, new_tokens: int | list[int], **options: Any) -> Any:
        return model.generate(
            prompts.tolist(), max_new_tokens=new_tokens, stop_token_ids=[], strip_prompt=True, **options
        )

    def first_token(prompts: Any, new_tokens: int) -> int:
        pieces = model.generate(prompts[0].tolist(), max_new_tokens=new_tokens, stop_token_ids=[], stream=True)
        first = next(iter(pieces))
        pieces.close()
        return first

    def static(prompts: Any, lengths: list[int], rows: int) -> Tokens:
        answers = []
        for i, longest in enumerate(static_lengths(lengths, rows)):
            group = slice(i * rows, (i + 1) * rows)
            whole = generate(prompts[group], longest, slots=rows)
            answers += [tokens[:length] for tokens, length in zip(whole, lengths[group], strict=True)]
        return answers

    return Contestant(
        generate,
        first_token,
        ragged=lambda prompts, lengths: generate(prompts, lengths, slots=RAGGED_SLOTS),
        static=static,
    )


def make_keras_hub(workload: Workload) -> Contestant:
    """KerasHub's GPT-2 on the backend of KERAS_BACKEND; it takes arrays padded to the final length."""
    import numpy as np

    model = peers.make_keras_hub_gpt(workload.model)
    model.compile(sampler="greedy")

    def answer(prompts: Any, new_tokens: int) -> Tokens:
        room = ((0, 0), (0, new_tokens))
        inputs = {"token_ids": np.pad(prompts, room), "padding_mask": np.pad(np.ones_like(prompts), room)}
        made = model.generate(inputs, stop_token_ids=None)
        return made["token_ids"][:, PROMPT_LENGTH:].tolist()

    return Contestant(answer, lambda prompts, new_tokens: answer(prompts, 1)[0][0])


def make_transformers(workload: Workload) -> Contestant:
    """transformers' GPT-2 or T5, eager, by its ordinary `generate` with a cache."""
    import torch

    m = workload.model
    if workload.architecture == "gpt":
        model = peers.make_transformers_gpt(m)
        begins_at = PROMPT_LENGTH
    else:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            num_layers=m.num_layers,
            num_heads=m.num_heads,
            d_kv=m.hidden_dim // m.num_heads,
            d_model=m.hidden_dim,
            d_ff=4 * m.hidden_dim,
            vocab_size=m.vocabulary_size,
            decoder_start_token_id=0,
        )
        model = T5ForConditionalGeneration(config)
        begins_at = 1
    model.eval()
    model.generation_config.eos_token_id = None  # never stop early
    model.generation_config.pad_token_id = 0

    def answer(prompts: Any, new_tokens: int) -> Tokens:
        token_ids = torch.from_numpy(prompts).long()
        made = model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
        )
        return made[:, begins_at:].tolist()

    return Contestant(answer, lambda prompts, new_tokens: answer(prompts, 1)[0][0])
