"""Looking inside: what a model attends to, what it thinks layer by layer, and what it does without a part of itself."""

import functools

from kerasllm.inspection.ablation import ablate, ablation_effects
from kerasllm.inspection.attribution import Attribution, integrated_gradients
from kerasllm.inspection.embeddings import Projected, embedding_projection
from kerasllm.inspection.heads import induction_scores, previous_token_scores
from kerasllm.inspection.lens import Lens, logit_lens
from kerasllm.inspection.losses import text_loss
from kerasllm.inspection.rollout import attention_rollout
from kerasllm.lazy import submodule

__all__ = [
    "Attribution",
    "Lens",
    "Projected",
    "ablate",
    "ablation_effects",
    "attention_rollout",
    "embedding_projection",
    "induction_scores",
    "integrated_gradients",
    "logit_lens",
    "previous_token_scores",
    "text_loss",
]

__getattr__ = functools.partial(submodule, __name__)
