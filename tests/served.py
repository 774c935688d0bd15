"""Tiny models for the server, and a server of them in a process of its own, as `kerasllm serve` starts it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import keras
import psutil

from kerasllm import CausalLM, Tokenizer, TransformerConfig

KEY = "secret"
SIZES = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "initializer_range": 0.5}
END = 256  # after the bytes
FORBID_END = {str(END): -100.0}  # so that an answer is as long as it may be


def write_causal(directory: Path, length: int = 256) -> Path:
    """Saves a random GPT of bytes, whose answers are all kinds of bytes."""
    keras.utils.set_random_seed(0)
    tokenizer = Tokenizer.train("a", kind="byte", special_tokens=["<|endoftext|>"])
    config = TransformerConfig(tokenizer.vocabulary_size, length, **SIZES)
    CausalLM(config, tokenizer).save_to_preset(directory)
    return directory


class Server:
    """`kerasllm serve`, on a port of its own.

    Args:
        directories: of models.
        options: more of its command line.
    """

    def __init__(self, directories, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "kerasllm", "serve", *map(str, directories)]
        self.log = Path(directories[0]).with_name(f"{self.port}.log")  # A pipe that nobody reads would hold it up.
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--api-key", KEY, *options],
            stderr=self.log.open("w"),
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)

    def wait(self, seconds: float = 120.0) -> "Server":
        """Until all models are loaded."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/health").status_code == 200:
                    return self
            time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"The server did not get ready:\n{self.log.read_text()[-4000:]}")

    def stats(self, model: str) -> dict[str, float]:
        """The gauges of one model."""
        lines = [line.split(" ") for line in self.http.get("/metrics").text.splitlines() if line[0] != "#"]
        ours = f'{{model="{model}"}}'
        return {name.removeprefix("kerasllm_").removesuffix(ours): float(v) for name, v in lines if name.endswith(ours)}

    @property
    def engines(self) -> list[psutil.Process]:
        """The processes of the models."""
        return psutil.Process(self.process.pid).children()

    def until(self, model: str, seconds: float = 20.0, **wanted: int) -> None:
        """Waits until so many answers are `running`, `waiting` or `pending`."""
        end = time.monotonic() + seconds
        while not wanted.items() <= (now := self.stats(model)).items():
            assert time.monotonic() < end, now
            time.sleep(0.02)

    def until_idle(self, model: str) -> None:
        """Waits until no answer runs or waits."""
        self.until(model, running=0, waiting=0, pending=0)

    def stop(self) -> tuple[int, str]:
        """Tells it to stop, and returns its exit code and its log."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(120), self.log.read_text()
        finally:
            self.process.kill()
