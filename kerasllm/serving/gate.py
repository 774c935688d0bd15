"""What stands before every route: a request id, the key, the limits of a body, and a line in the log."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import re
import sys
import time
import uuid

from kerasllm.serving.errors import ApiError
from kerasllm.serving.replies import to_json

OPEN_PATHS = ("/health",)
DRAIN_BYTES, DRAIN_SECONDS = 1 << 26, 2.0  # read and left of a request that is refused before its body
logger = logging.getLogger("kerasllm.serving")


class Gate:
    """Middleware around the application.

    Args:
        app: of ASGI.
        api_key: what `Authorization: Bearer …` must say, for all paths but `/health`; nobody is asked without one.
        max_body_bytes: of a request.
        patience: seconds that a body may take to come.
        metrics: counts requests.
        log_text: whether bodies of requests are logged: what people wrote.
    """

    def __init__(self, app, api_key: str | None, max_body_bytes: int, patience: float, metrics, log_text: bool = False):
        self.app, self.max_body_bytes, self.patience = app, max_body_bytes, patience
        self.metrics, self.log_text = metrics, log_text
        self._key = api_key and _digest(api_key.encode())

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.-]{1,128}", given, re.ASCII) else f"req-{uuid.uuid4().hex}"
        notes = scope.setdefault("state", {})["notes"] = {}
        began, status, method = time.perf_counter(), 0, scope["method"]
        unread = method in ("POST", "PUT", "PATCH") and b"expect" not in headers
        if method == "HEAD":  # As GET; the server's protocol leaves out the body.
            scope = {**scope, "method": "GET"}

        async def answer(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            self._check_key(scope["path"], headers)
            if method in ("POST", "PUT", "PATCH"):
                _check_encoding(headers.get(b"content-encoding", b"identity"))
                body = await self._body(headers, receive)
                unread = False
                if body is None:  # The client has gone.
                    return
                if self.log_text:
                    notes["body"] = body.decode("utf-8", "replace")
                receive = _replayed(body, receive)
            await self.app(scope, receive, answer)
        except ApiError as error:
            if unread and error.status != 408:
                await _drain(receive)
            await _refuse(error, answer)
        except Exception:  # Answered here, so that a page may read that, too.
            logger.exception("failed", extra={"request_id": request_id})
            if status:  # The answer has begun: the connection is cut.
                raise
            await _refuse(ApiError(500, "The server failed at this request."), answer)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "unknown")  # A path of the client's own would be a label without bounds.
            self.metrics.requests.labels(path, status).inc()
            logger.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": method,
                    "path": path,
                    "status": status,
                    "seconds": round(time.perf_counter() - began, 4),
                    **notes,
                },
            )

    def _check_key(self, path: str, headers: dict) -> None:
        if self._key is None or path in OPEN_PATHS:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length, and are compared in constant time.
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, headers: dict, receive) -> bytes | None:
        """The whole body; `None` if the client went away."""
        length = headers.get(b"content-length", b"")
        self._check_size(int(length) if length.isdigit() else 0)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"The body did not come within {self.patience:g} seconds.", headers={"Connection": "close"}
            ) from None

    def _check_size(self, size: int) -> None:
        if size > self.max_body_bytes:
            raise ApiError(
                413,
                f"The body is too large: at most {self.max_body_bytes} bytes. Received: {size} or more",
                code="body_too_large",
                headers={"Connection": "close"},
            )


def _check_encoding(encoding: bytes) -> None:
    if encoding.lower() != b"identity":
        raise ApiError(
            415,
            f"Bodies are read as they are: send it without Content-Encoding. Received: {encoding.decode('latin-1')!r}",
            code="unsupported_encoding",
            headers={"Connection": "close", "Accept-Encoding": "identity"},
        )


def _replayed(body: bytes, receive):
    """`receive` as if the body had not been read yet."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return first.pop() if first else await receive()

    return again


async def _drain(receive) -> None:
    """Reads on for a while what a refused client still sends: a connection that is closed on unread bytes is reset, and
    the client would not get its answer."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < DRAIN_BYTES and (message := await receive()).get("more_body"):
                size += len(message.get("body", b""))


async def _refuse(error: ApiError, send) -> None:
    headers = {"Content-Type": "application/json", **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": to_json(error.body)})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class JsonLines(logging.Formatter):
    """Each record as one line of JSON."""

    _usual = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record):
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= {key: value for key, value in vars(record).items() if key not in self._usual}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr() -> None:
    """Lets the server's and uvicorn's loggers write lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("kerasllm.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        chosen = logging.getLogger(name)
        chosen.handlers, chosen.propagate = [handler], False
        chosen.setLevel(level)
