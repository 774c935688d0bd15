"""Conversations: messages, the template that makes text of them, their tokens, and talking with a model."""

import functools

from kerasllm.lazy import submodule

__getattr__ = functools.partial(submodule, __name__)
