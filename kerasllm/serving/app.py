"""The HTTP server: OpenAI's routes, TensorFlow Serving's, and a few of ours, over models in processes of their own."""

import array
import asyncio
import base64
import contextlib
import dataclasses
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from kerasllm.serving import protocol
from kerasllm.serving.errors import ApiError, error_body
from kerasllm.serving.gate import Gate
from kerasllm.serving.metrics import Metrics
from kerasllm.serving.replies import Chats, Completions, data, to_json, usage
from kerasllm.serving.supervisor import ModelProcess, Models

WRITERS = ("CausalLM", "Seq2SeqLM")
logger = logging.getLogger("kerasllm.serving")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the server is run.

    Attributes:
        api_key: asked of every request but `/health`; nobody is asked without one.
        seconds: that a request may take.
        patience: seconds that a client may send nothing of its request, or take nothing of its answer.
        max_body_bytes: of a request.
        cors_origins: origins whose pages may call the server; none when empty.
        log_text: whether what people send is logged.
    """

    api_key: str | None = None
    seconds: float = 600.0
    patience: float = 30.0
    max_body_bytes: int = 4 * 2**20
    cors_origins: Sequence[str] = ()
    log_text: bool = False


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content) -> bytes:
        return to_json(content)


class Stream(StreamingResponse):
    """Server-sent events, whose source is closed however the response ends."""

    def __init__(self, events):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events = events

    async def __call__(self, scope, receive, send):
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


def make_app(models: Models, settings: Settings = Settings()) -> FastAPI:
    """The application, which starts the models' processes with itself, and ends them with itself.

    Example:
    ```python
    app = make_app(Models([ModelProcess("saved_models/quickstart")]))
    uvicorn.run(app)
    ```
    """

    @contextlib.asynccontextmanager
    async def lifespan(_):
        models.start()
        yield
        await models.stop()

    metrics = Metrics(models)
    app = FastAPI(
        title="kerasllm",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        default_response_class=JsonResponse,
    )
    app.state.models, app.state.metrics, app.state.settings = models, metrics, settings
    _add_errors(app)
    _add_writing(app, models, metrics, settings)
    _add_reading(app, models, settings)
    _add_adapters(app, models, settings)
    _add_state(app, models, metrics)
    app.openapi = lambda: _openapi(app, bool(settings.api_key))
    gate = settings.api_key, settings.max_body_bytes, settings.patience, metrics, settings.log_text
    app.add_middleware(Gate, *gate)
    if settings.cors_origins:  # Outside of the gate: a browser asks first, without the key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends a dozen of its own, and more with each version.
            expose_headers=["X-Request-Id", "Retry-After"],
            allow_private_network=True,
            max_age=7200,  # as long as browsers keep it
        )
    return app


# Errors ------------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_, error: ApiError):
        return JsonResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_, error: RequestValidationError):
        message, param = _explained(error.errors())
        return JsonResponse(error_body(400, message, param), 400)

    @app.exception_handler(HTTPException)
    async def other(request, error: HTTPException):
        hint = ". /openapi.json lists all routes" if error.status_code in (404, 405) else ""
        if request.url.path.startswith("/v1/responses"):
            hint = ": OpenAI's responses API is not served here. Use /v1/chat/completions"
        message = f"{error.detail}{hint}. Received: {request.method} {request.url.path}"
        return JsonResponse(error_body(error.status_code, message), error.status_code, error.headers)


def _explained(errors: Sequence[dict]) -> tuple[str, str | None]:
    """A message about the first thing that is wrong with a body, and the field's name."""
    # Of a field of several forms, each says what is wrong: the one that was followed furthest is meant.
    error = max(errors, key=lambda each: len(each["loc"]))
    place = [str(part) for part in error["loc"][1:]]
    param = place[0] if place and error["type"] != "json_invalid" else None
    if error["type"] == "extra_forbidden":
        return f"Unsupported parameter: {_path(place)!r}. It is not ignored: leave it out.", param
    if error["type"] == "json_invalid":
        return f"The body is not JSON: {error['ctx']['error']}", None
    if not place and error["type"] == "missing":
        return "The body is empty. Send JSON.", None
    if isinstance(error.get("input"), bytes):
        return "Send the body as JSON, with the header `Content-Type: application/json`.", None
    message = error["msg"].removeprefix("Value error, ")
    if not place and (named := re.match(r"`(\w+)`", message)):
        param = named[1]
    received = repr(error.get("input"))
    received = received if len(received) <= 80 else f"{received[:80]}…"
    return f"{f'`{_path(place)}`: ' if place else ''}{message}. Received: {received}", param


def _path(place: Sequence[str]) -> str:
    """Where something stands in a body, without the names of the forms that were tried: `messages[0].content`."""
    names = [part for part in place[1:] if re.fullmatch(r"[a-z_]+|\d+", part) and part not in ("str", "int", "dict")]
    return place[0] + "".join(f"[{name}]" if name.isdigit() else f".{name}" for name in names)


# Making tokens -----------------------------------------------------------------------------------------------


def _add_writing(app, models: Models, metrics: Metrics, settings: Settings) -> None:
    @app.post("/v1/completions", responses=_answers("text_completion, or server-sent events of such", stream=True))
    async def completions(body: protocol.CompletionRequest, request: Request):
        """Goes on from a prompt; models with an encoder answer it."""
        process, adapter = models.find(body.model, *WRITERS)
        if body.echo and process.info["task"] == "Seq2SeqLM":
            raise ApiError(400, "`echo` means nothing to a model with an encoder: leave it out.", "echo")
        message = {
            **body.message,
            "prompts": body.prompts,
            "max_tokens": body.max_tokens,
            "log_probs": body.logprobs,
            "echo": body.echo,
            "adapter": adapter,
        }
        return await written(request, body, process, message, len(body.prompts), Completions(_head("cmpl", body)))

    @app.post("/v1/chat/completions", responses=_answers("chat.completion, or server-sent events", stream=True))
    async def chat_completions(body: protocol.ChatRequest, request: Request):
        """Answers a conversation, through the model's chat template."""
        process, adapter = models.find(body.model, *WRITERS)
        message = {
            **body.message,
            "messages": [said.plain for said in body.messages],
            "max_tokens": body.max_completion_tokens or body.max_tokens,
            "log_probs": (body.top_logprobs or 0) if body.logprobs else None,
            "echo": False,
            "adapter": adapter,
        }
        return await written(request, body, process, message, 1, Chats(_head("chatcmpl", body)))

    async def written(request, body, process, message, prompts, shape):
        notes = request.state.notes
        notes["model"] = body.model
        answers = prompts * body.n
        events = _measured(
            process.ask("generate", answers, settings.seconds, **message), body.model, answers, metrics, notes
        )
        if not body.stream:
            made, done = {index: [] for index in range(answers)}, {}
            async with contextlib.aclosing(events):
                await _unless_gone(request, _gather(events, made, done))
            return JsonResponse(shape.whole(made, done))
        # Before the first piece, what is wrong is still a status.
        try:
            first = await _unless_gone(request, anext(events))
        except BaseException:
            await events.aclose()
            raise
        options = body.stream_options
        return Stream(_sent(first, events, shape, bool(options and options.include_usage)))


async def _gather(events, made: dict, done: dict) -> None:
    async for event in events:
        if "done" in event:
            done.update(event["done"])
        else:
            made[event["index"]].append(event)


async def _sent(first: dict, events, shape, with_usage: bool) -> AsyncIterator[bytes]:
    """The events of an answer as they are sent."""
    begun = set()
    none = {"usage": None} if with_usage else {}
    async with contextlib.aclosing(events):
        try:
            async for event in _chained(first, events):
                if "done" in event:
                    if with_usage:
                        yield data({**shape.chunk(_NOTHING), "choices": [], "usage": usage(event["done"])})
                    continue
                if event["index"] not in begun:
                    begun.add(event["index"])
                    for chunk in shape.begin(event["index"]):
                        yield data(chunk | none)
                yield data(shape.chunk(event) | none)
        except ApiError as error:
            yield data(error.body)
            return
        yield b"data: [DONE]\n\n"


_NOTHING = {"index": 0, "text": "", "finish": ""}


async def _chained(first: dict, events):
    yield first
    async for event in events:
        yield event


async def _measured(events, model: str, answers: int, metrics: Metrics, notes: dict) -> AsyncIterator[dict]:
    """Events as they are, while their times are noted."""
    last: dict[int, float] = {}
    began = time.perf_counter()
    async with contextlib.aclosing(events):
        async for event in events:
            now = time.perf_counter()
            if "done" in event:
                notes |= event["done"]
                metrics.prompt_tokens.labels(model).inc(event["done"]["prompt_tokens"])
                metrics.completion_tokens.labels(model).inc(event["done"]["completion_tokens"])
            elif event["count"]:
                index = event["index"]
                if index not in last:
                    metrics.first.labels(model).observe(now - began)
                else:
                    metrics.between.labels(model).observe((now - last[index]) / event["count"])
                last[index] = now
            yield event


async def _unless_gone(request: Request, awaited):
    """What is awaited, unless the client goes away first."""

    async def gone():
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(awaited), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client closed the connection.")
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def _head(prefix: str, body) -> dict:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}


# Reading -----------------------------------------------------------------------------------------------------


def _add_reading(app, models: Models, settings: Settings) -> None:
    async def ask(request, name, task, **arguments):
        request.state.notes["model"] = name
        process, _ = models.find(name, *([task] if task else ()))
        return await _unless_gone(request, process.call("read", settings.seconds, **arguments))

    @app.post("/v1/embeddings", responses=_answers("Vectors of texts."))
    async def embeddings(body: protocol.EmbeddingRequest, request: Request):
        """Turns texts into vectors."""
        result = await ask(request, body.model, "TextEmbedder", inputs=body.inputs, dimensions=body.dimensions)
        vectors = result["vectors"] if body.encoding_format == "base64" else map(_floats, result["vectors"])
        rows = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        counted = usage({"prompt_tokens": result["tokens"]})
        return JsonResponse({"object": "list", "data": rows, "model": body.model, "usage": counted})

    @app.post("/v1/fill-mask", responses=_answers("For each text and each of its masks, the likeliest tokens."))
    async def fill_mask(body: protocol.FillMaskRequest, request: Request):
        """Says what may stand in the place of each mask."""
        texts = [body.input] if isinstance(body.input, str) else body.input
        result = await ask(request, body.model, "MaskedLM", inputs=texts, top_k=body.top_k)
        return JsonResponse(_listed(body.model, "masks", result))

    @app.post("/v1/classify", responses=_answers("The labels of each text."))
    async def classify(body: protocol.ClassifyRequest, request: Request):
        """Labels texts, or pairs of texts."""
        rows = [body.input] if isinstance(body.input, str) else body.input
        result = await ask(request, body.model, "TextClassifier", inputs=rows)
        return JsonResponse(_listed(body.model, None, result))

    @app.post("/v1/models/{name}:predict", responses=_answers("A prediction for each instance."))
    async def predict(name: str, body: protocol.PredictRequest, request: Request):
        """TensorFlow Serving's route: what the model makes of each instance."""
        process, _ = models.find(name, "TextClassifier", "TextEmbedder", "MaskedLM")
        result = await ask(request, name, None, inputs=body.instances)
        vectors = process.info["task"] == "TextEmbedder"
        return JsonResponse({"predictions": [*map(_floats, result["vectors"])] if vectors else result["answers"]})

    @app.post("/tokenize", responses=_answers("Token ids, and how many the model reads."))
    async def tokenize(body: protocol.TokenizeRequest):
        """Turns a text into token ids."""
        process, _ = models.find(body.model)
        return JsonResponse(await process.call("tokenize", settings.seconds, text=body.prompt))

    @app.post("/detokenize", responses=_answers("The text."))
    async def detokenize(body: protocol.DetokenizeRequest):
        """Turns token ids into a text."""
        process, _ = models.find(body.model)
        return JsonResponse(await process.call("detokenize", settings.seconds, tokens=body.tokens))


def _floats(vector: str) -> list[float]:
    return array.array("f", base64.b64decode(vector)).tolist()


def _listed(model: str, key: str | None, result: dict) -> dict:
    rows = [{"index": i, **({key: row} if key else row)} for i, row in enumerate(result["answers"])]
    return {"object": "list", "data": rows, "model": model, "usage": usage({"prompt_tokens": result["tokens"]})}


# Adapters ----------------------------------------------------------------------------------------------------


def _add_adapters(app, models: Models, settings: Settings) -> None:
    loading: set[str] = set()

    def check_allowed():
        if not settings.api_key:
            raise ApiError(403, "Adapters are loaded only where there is an API key. Start the server with --api-key.")

    @app.post("/v1/load_lora_adapter", responses=_answers("What was loaded."))
    async def load_adapter(body: protocol.LoadAdapterRequest):
        """Adds an adapter, which is then a model's name of its own. What runs ends first."""
        check_allowed()
        if body.lora_name in loading or body.lora_name in models.names:
            raise ApiError(400, f"The name is taken. Received: lora_name={body.lora_name!r}", "lora_name")
        process = _base(models, body.base_model)
        loading.add(body.lora_name)
        try:
            await process.call("load_adapter", settings.seconds, name=body.lora_name, directory=body.lora_path)
        finally:
            loading.discard(body.lora_name)
        process.adapters[body.lora_name] = body.lora_path
        return JsonResponse({"loaded": body.lora_name, "base_model": process.name})

    @app.post("/v1/unload_lora_adapter", responses=_answers("What was unloaded."))
    async def unload_adapter(body: protocol.UnloadAdapterRequest):
        """Takes an adapter away. What runs ends first."""
        check_allowed()
        process, adapter = models.find(body.lora_name)
        if not adapter:
            raise ApiError(400, f"{body.lora_name!r} is a model, not an adapter.", "lora_name")
        await process.call("unload_adapter", settings.seconds, name=adapter)
        process.adapters.pop(adapter, None)  # Somebody else may have been faster.
        return JsonResponse({"unloaded": adapter, "base_model": process.name})


def _base(models: Models, name: str | None) -> ModelProcess:
    if name is None and len(models.processes) > 1:
        raise ApiError(400, f"Say whose adapter it is. Models: {', '.join(models.processes)}", "base_model")
    process, adapter = models.find(name or next(iter(models.processes)), *WRITERS)
    if adapter:
        raise ApiError(400, f"{name!r} is an adapter itself.", "base_model")
    return process


# The server itself -------------------------------------------------------------------------------------------


def _add_state(app, models: Models, metrics: Metrics) -> None:
    @app.get("/health", responses={200: {"description": "All models are loaded."}, 503: _ERROR})
    async def health():
        """Whether all models are loaded. Asks for no key."""
        waiting = [name for name, process in models.processes.items() if not process.ready]
        if waiting:
            raise ApiError(503, f"Not ready: {', '.join(waiting)}.", code="not_ready", headers={"Retry-After": "5"})
        return JsonResponse({"status": "ok"})

    @app.get("/metrics", responses={200: {"description": "Metrics for Prometheus.", "content": {_PLAIN: {}}}})
    async def prometheus():
        """Requests, tokens and times."""
        return Response(metrics.text(), media_type=_PLAIN)

    @app.get("/v1/models", responses={200: {"description": "All models and adapters."}})
    async def list_models():
        """Models and adapters."""
        return JsonResponse({"object": "list", "data": [_model(models, name) for name in models.names]})

    @app.get("/v1/models/{name}", responses={200: {"description": "A model."}, 404: _ERROR})
    async def get_model(name: str):
        """A model or an adapter, for OpenAI's clients and TensorFlow Serving's alike."""
        process = next((p for p in models.processes.values() if name == p.name or name in p.adapters), None)
        if process is None:
            models.find(name)
        state = "AVAILABLE" if process.ready else "LOADING"
        version = {"version": "1", "state": state, "status": {"error_code": "OK", "error_message": ""}}
        return JsonResponse({**_model(models, name), "model_version_status": [version]})


def _model(models: Models, name: str) -> dict:
    process = next(p for p in models.processes.values() if name == p.name or name in p.adapters)
    known = {"id": name, "object": "model", "created": process.since, "owned_by": "kerasllm"}
    if name != process.name:
        known["parent"] = process.name
    return known | {"max_model_len": process.info.get("limit"), "task": process.info.get("task")}


_PLAIN = "text/plain; version=0.0.4"
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERROR = {"description": "An error, in OpenAI's shape.", "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
_REFUSALS = (400, 401, 403, 404, 408, 413, 429, 503, 504)


def _answers(description: str, stream: bool = False) -> dict:
    content = {"application/json": {}, **({"text/event-stream": {}} if stream else {})}
    return {200: {"description": description, "content": content}, **dict.fromkeys(_REFUSALS, _ERROR)}


def _openapi(app: FastAPI, has_key: bool) -> dict:
    """The description of the routes: without FastAPI's own shape of errors, and with the key."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if has_key and path != "/health":
                    operation["security"] = [{"key": []}]
                    operation["responses"].setdefault("401", _ERROR)
        if has_key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
