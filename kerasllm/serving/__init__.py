"""A model in service: files for other programs, and a server."""

import functools

from kerasllm.lazy import submodule

__getattr__ = functools.partial(submodule, __name__)
