"""What `kerasllm serve` does."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path


def serve(
    directories: Sequence[Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    adapters: Sequence[str] = (),
    slots: int | None = None,
    length: int | None = None,
    cache_dtype: str | None = None,
    max_waiting: int = 256,
    seconds: float = 600.0,
    hang_seconds: float = 300.0,
    certificate: Path | None = None,
    certificate_key: Path | None = None,
    cors_origins: Sequence[str] = (),
    log_text: bool = False,
) -> None:
    """Serves models until SIGTERM or Ctrl-C; then what was accepted is finished.

    Args:
        directories: of saved models, which go by their last part.
        host, port: to listen at.
        api_key: asked of every request but `/health`; `KERASLLM_API_KEY` when left out.
        adapters: `NAME=DIR`, of the first model.
        slots: answers that a model makes at once.
        length: tokens of a prompt and its answer.
        cache_dtype: what keys and values are kept in; as the model computes, when left out.
        max_waiting: answers that may wait for a slot.
        seconds: that a request may take.
        hang_seconds: a model that is asked something and is silent for so long is started again.
        certificate, certificate_key: files, for TLS.
        cors_origins: whose pages may call the server.
        log_text: log what people send.

    Raises:
        ImportError: the extra "serve" is not installed.
        ValueError: no model directory, or a server for others without a key.
    """
    try:
        import uvicorn

        from kerasllm.serving.app import Settings, make_app
        from kerasllm.serving.gate import log_to_stderr
        from kerasllm.serving.supervisor import ModelProcess, Models
    except ImportError as error:
        raise ImportError(f"The server needs {error.name}. Install it with: pip install 'kerasllm[serve]'") from None
    for directory in directories:
        if not (Path(directory) / "config.json").is_file():
            raise FileNotFoundError(f"{str(directory)!r} is no model directory: it has no config.json.")
    api_key = api_key or os.environ.get("KERASLLM_API_KEY") or None
    if api_key is None and not _is_loopback(host):
        raise ValueError(
            f"A server that others can reach needs a key: give --api-key, or set KERASLLM_API_KEY. Received: {host=}"
        )
    if (certificate is None) != (certificate_key is None):
        raise ValueError("TLS needs both a certificate and its key.")
    options = {"slots": slots, "length": length, "cache_dtype": cache_dtype}
    processes = [ModelProcess(directory, max_waiting, hang_seconds, **options) for directory in directories]
    processes[0].adapters |= dict(_named(adapter) for adapter in adapters)
    app = make_app(Models(processes), Settings(api_key, seconds, cors_origins=tuple(cors_origins), log_text=log_text))
    log_to_stderr()
    url = f"{'https' if certificate else 'http'}://{host}:{port}"
    logging.getLogger("kerasllm.serving").info("starting", extra={"url": url, "models": [p.name for p in processes]})
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=certificate_key,
    )
    asyncio.run(_serve_until_told(uvicorn.Server(config)))


async def _serve_until_told(server) -> None:
    """uvicorn would end by the signal that it was stopped with; a server that was told to stop has done well."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    server.capture_signals = contextlib.nullcontext
    await server.serve()


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _named(adapter: str) -> tuple[str, str]:
    name, separator, directory = adapter.partition("=")
    if not (name and separator and directory):
        raise ValueError(f"An adapter is given as NAME=DIR. Received: {adapter!r}")
    return name, directory
