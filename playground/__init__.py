"""The playground: a page in which a language model is trained, looked into, changed, compared and taken away.

`kerasllm playground` or `python -m playground` opens it. Nothing in `kerasllm` needs it.
"""
