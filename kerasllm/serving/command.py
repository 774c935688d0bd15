"""What `kerasllm serve` does."""

import asyncio
import contextlib
import functools
import ipaddress
import json
import logging
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from kerasllm.serving.listening import listen


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
        host, port: to listen at; any free port when 0.
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
        ValueError: not a model's directory, a model that cannot be loaded, a wrong address or origin, or a server for
            others without a key.
        OSError: the port is taken, or a file is missing.
    """
    try:
        import uvicorn

        from kerasllm.serving.app import Settings, make_app
        from kerasllm.serving.connection import Connection
        from kerasllm.serving.gate import log_to_stderr
        from kerasllm.serving.supervisor import ModelProcess, Models
    except ImportError as error:
        raise ImportError(f"The server needs {error.name}. Install it with: pip install 'kerasllm[serve]'") from None
    for directory in directories:
        _check_directory(Path(directory), "config.json", "model")
    api_key = api_key or os.environ.get("KERASLLM_API_KEY") or None
    if api_key is None and not _is_loopback(host):
        raise ValueError(
            f"A server that others can reach needs a key: give --api-key, or set KERASLLM_API_KEY. Received: {host=}"
        )
    if (certificate is None) != (certificate_key is None):
        raise ValueError("TLS needs both a certificate and its key.")
    for origin in cors_origins:
        _check_origin(origin)
    options = {"slots": slots, "length": length, "cache_dtype": cache_dtype}
    processes = [ModelProcess(directory, max_waiting, hang_seconds, **options) for directory in directories]
    models = Models(processes)
    processes[0].adapters |= _named(adapters, models.names)
    patience = min(Settings.patience, seconds)
    settings = Settings(api_key, seconds, patience, cors_origins=tuple(cors_origins), log_text=log_text)
    config = uvicorn.Config(
        make_app(models, settings),
        http=functools.partial(Connection, patience=patience),
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=certificate_key,
    )
    try:
        config.load()  # which reads the certificate
    except OSError as error:
        files = f"{certificate}, {certificate_key}"
        raise ValueError(f"No TLS certificate and key in PEM could be read: {error}. Received: {files}") from None
    sockets = listen(host, port)
    log_to_stderr()
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if certificate else 'http'}://{shown}:{sockets[0].getsockname()[1]}"
    logging.getLogger("kerasllm.serving").info("starting", extra={"url": url, "models": [p.name for p in processes]})
    asyncio.run(_serve_until_told(uvicorn.Server(config), sockets, models))
    for process in processes:
        if process.failed and not process.was_ready:
            raise ValueError(f"The model {process.name!r} could not be loaded: {process.failed}")


async def _serve_until_told(server, sockets, models) -> None:
    """Serves until a signal, or until a model turns out not to load.

    uvicorn would end by the signal that it was stopped with; a server that was told to stop has done well.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    server.capture_signals = contextlib.nullcontext

    async def give_up():
        await models.given_up.wait()
        server.should_exit = True

    watch = asyncio.create_task(give_up())
    await server.serve(sockets)
    watch.cancel()


def _check_directory(directory: Path, file: str, kind: str) -> None:
    path = directory / file
    if not path.is_file():
        raise FileNotFoundError(f"{str(directory)!r} holds no {kind}: there is no {file} in it.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object. Received: {str(config)[:40]}")


def _check_origin(origin: str) -> None:
    if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
        raise ValueError(
            "An origin is a scheme and a host, such as http://localhost:3000, without a path or a slash at its end; "
            f"or * for all. Received: --cors-origin {origin!r}"
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _named(adapters: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """The directories of adapters by name."""
    named: dict[str, str] = {}
    for adapter in adapters:
        name, separator, directory = adapter.partition("=")
        if not (name and separator and directory):
            raise ValueError(f"An adapter is given as NAME=DIR. Received: {adapter!r}")
        if name in named or name in taken:
            raise ValueError(f"The name {name!r} is taken by another model or adapter. Received: --adapter {adapter}")
        _check_directory(Path(directory), "adapter_config.json", "adapter")
        named[name] = directory
    return named
