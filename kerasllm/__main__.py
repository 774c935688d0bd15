"""`python -m kerasllm`."""

from kerasllm.cli import main

main()
