"""Networks and tasks."""

import functools

from kerasllm.lazy import submodule

__getattr__ = functools.partial(submodule, __name__)
