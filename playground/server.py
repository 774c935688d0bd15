"""The server: where it listens, what it refuses, and how it opens in a window."""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kerasllm.serving.listening import listen
from playground.limits import MAX_UPLOAD_BYTES

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FIRST_PORT, PORTS = 7860, 50


@dataclass(frozen=True)
class Settings:
    """How the playground is served.

    Attributes:
        host, port: where it listens; a free port from 7860 on when 0.
        auth: "name:password", which every page then asks for; needed to listen beyond this machine.
        model: directory of a model of one's own.
        root: folder of the sessions' runs.
        shipped: folder of the models that ship.

    Raises:
        ValueError: a host beyond this machine without `auth`, or a model that is not there.
    """

    host: str = "127.0.0.1"
    port: int = 0
    auth: str | None = None
    model: Path | None = None
    root: Path = Path("saved_models/playground")
    shipped: Path = field(default_factory=lambda: _shipped())

    def __post_init__(self):
        if self.auth is not None and (":" not in self.auth or not all(self.auth.split(":", 1))):
            raise ValueError("`--auth` is name:password. Received: something else.")
        if self.host not in LOOPBACK and self.auth is None:
            raise ValueError(
                f"Whoever reaches {self.host} could use this machine: give --auth name:password, "
                "or listen on 127.0.0.1."
            )
        if self.model is not None and not (self.model / "config.json").is_file():
            raise ValueError(f"There is no model in {str(self.model)!r}: it has no config.json.")


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[str]:
    """Serves the playground while the block runs, and yields its address.

    Raises:
        ImportError: Gradio is not installed.
        ValueError: no such port or host.
        OSError: no port is free, or the address is not this machine's.
    """
    sockets = _listen(settings.host, settings.port)  # before what takes long
    try:
        import gradio
        import uvicorn
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise ImportError("The playground needs Gradio: pip install 'kerasllm[playground]'") from None
    from playground.app import build, look, make_page
    from playground.corpus import builtin_text
    from playground.warming import Warming

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    page = make_page(settings.root, settings.shipped, settings.model)
    warming = Warming(lambda: builtin_text(settings.root))
    demo = build(page, warming)
    demo.queue(default_concurrency_limit=4, max_size=64)
    port = sockets[0].getsockname()[1]
    hosts = [*LOOPBACK, settings.host] if settings.host not in ("0.0.0.0", "::") else ["*"]
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    gradio.mount_gradio_app(
        api,
        demo,
        path="/",
        server_name=settings.host,
        server_port=port,
        auth=tuple(settings.auth.split(":", 1)) if settings.auth else None,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_BYTES,
        show_error=True,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=True,
        footer_links=[],
        **look(),
    )
    server = uvicorn.Server(uvicorn.Config(api, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    warming.start()
    try:
        yield f"http://{settings.host if settings.host in LOOPBACK[:2] else 'localhost'}:{port}/"
    finally:
        server.should_exit = True
        page.jobs.close()
        page.outbox.cleanup()
        thread.join(5)


def run(settings: Settings, desktop: bool = False, browser: bool = True) -> None:
    """Serves until Ctrl-C, or until the window is closed.

    Args:
        settings: of the server.
        desktop: in a window of its own, rather than a tab of the browser.
        browser: whether to open one.
    """
    with served(settings) as address:
        print(f"The playground is at {address} (Ctrl-C ends it)", flush=True)
        if desktop:
            open_window(address)
            return
        if browser:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def open_window(address: str) -> None:
    """A window of its own, until it is closed: pywebview, else a browser without its frame.

    Raises:
        ImportError: neither is there.
    """
    try:
        import webview
    except ImportError:
        webview = None
    if webview is not None:
        webview.create_window("kerasllm playground", address, width=1280, height=860)
        webview.start()
        return
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        raise ImportError("A window needs pywebview, or Chromium: pip install 'kerasllm[desktop]'")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run([program, f"--app={address}", f"--user-data-dir={profile}"], check=False)


def _shipped() -> Path:
    """In a wheel the models are in the package; in a checkout they are beside it."""
    inside = Path(__file__).resolve().parent / "saved_models"
    return inside if inside.is_dir() else inside.parent.parent / "saved_models"


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at a port; at the first free one from 7860 on when it is 0."""
    for each in [] if port else range(FIRST_PORT, FIRST_PORT + PORTS):
        try:
            return listen(host, each)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    if port:
        return listen(host, port)
    raise OSError(f"No port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free. Choose one with --port.")
