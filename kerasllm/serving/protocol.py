"""What clients send: OpenAI's requests, those of ours, and their limits. What is not named here is refused by name."""

import contextlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

MOST_ANSWERS = 128  # prompts × n of a request
MOST_STOPS = 16
MOST_INPUTS = 2048
MOST_CHARACTERS = 2**20
MOST_LOG_PROBS = 20
LEAST_TOP_P = 1e-6  # which the likeliest token reaches alone

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(max_length=MOST_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=256, description="A model's name, or an adapter's.")]


class Body(BaseModel):
    """A request: nothing is converted, nothing is ignored, and `null` is as if not given."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


Harmless = Annotated[Any, Field(description="Accepted; it changes no answer here.")]


def only(*values, because: str):
    """A field that clients may send, with values that ask for nothing."""

    def check(value):
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            accepted = " or ".join(json.dumps(known) for known in (*values, None))
            raise ValueError(f"{because}. Leave it out, or send {accepted}")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [*values, None], "description": because})]


class Asked(Body):
    """What any request may have: which model, and notes for logs, bills and caches of OpenAI's."""

    model: Name
    user: Harmless = None
    metadata: Harmless = None
    store: Harmless = None
    service_tier: Harmless = None
    safety_identifier: Harmless = None
    prompt_cache_key: Harmless = None
    prompt_cache_options: Harmless = None
    prompt_cache_retention: Harmless = None


class StreamOptions(Body):
    include_usage: bool = Field(False, description="A last chunk with the usage, and no choices.")
    include_obfuscation: only(False, because="Streams are not padded to hide their lengths") = None


class JsonSchema(Body):
    name: str = Field("answer", max_length=64)
    description: Text = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: JsonSchema | None = None
    regex: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _whole(self):
        for kind in ("json_schema", "regex"):
            if (self.type == kind) != (getattr(self, kind) is not None):
                raise ValueError(f"`{kind}` must be given with type={kind!r}, and only then")
        return self

    @property
    def form(self) -> dict | None:
        """The arguments of `kerasllm.generation.structured.Grammar`."""
        if self.type == "regex":
            return {"regex": self.regex}
        schema = self.json_schema.schema_ if self.json_schema else {"type": "object"}
        return None if self.type == "text" else {"json_schema": schema}


class Sampling(Asked):
    """What completions and conversations share."""

    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, ge=0, le=1, description="0 is the likeliest token alone.")
    top_k: int = Field(0, ge=0, lt=2**31, description="0 is all.")
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024
    )
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _streams(self):
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` must come with stream=true")
        return self

    @property
    def message(self) -> dict:
        """What a model's process is told."""
        names = "temperature", "top_p", "top_k", "min_p"
        penalties = "frequency_penalty", "presence_penalty", "repetition_penalty"
        sampler = {name: getattr(self, name) for name in names + penalties}
        return {
            "sampler": {**sampler, "top_p": max(self.top_p, LEAST_TOP_P)},
            "logit_bias": self.logit_bias,
            "n": self.n,
            "seed": self.seed and self.seed % 2**62,
            "stop": [self.stop] * bool(self.stop) if isinstance(self.stop, str) else self.stop,
            "stream": self.stream,
            "form": self.response_format and self.response_format.form,
        }


class CompletionRequest(Sampling):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "quickstart", "prompt": "To be", "max_tokens": 16, "seed": 1}]}
    )

    prompt: Text | TokenIds | list[Text] | list[TokenIds] = Field(
        "", description="A text, token ids, or a list of such. Without one, the model begins a text."
    )
    max_tokens: int = Field(16, ge=0, lt=2**31)
    echo: bool = Field(False, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOG_PROBS)
    best_of: int | None = Field(None, description="As many as `n`: answers are not chosen among here.")
    suffix: only("", because="Text before a suffix is not written here") = None

    @model_validator(mode="after")
    def _bounded(self):
        if not len(self.prompts) >= 1 or len(self.prompts) * self.n > MOST_ANSWERS:
            raise ValueError(f"`prompt` must be 1 to {MOST_ANSWERS} prompts, `n` times their number no more than that")
        if self.best_of not in (None, self.n):
            raise ValueError("`best_of` must be as `n`, or left out: all answers are given, none is chosen among them")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` must be above 0, unless echo=true asks for the prompt alone")
        return self

    @property
    def prompts(self) -> list:
        several = isinstance(self.prompt, list) and not (self.prompt and isinstance(self.prompt[0], int))
        return self.prompt if several else [self.prompt]


class Part(Body):
    type: Literal["text", "refusal"]
    text: Text
    prompt_cache_breakpoint: Harmless = None

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, part: Any) -> Any:
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] not in ("text", "refusal"):
            raise ValueError(f"Models here read text alone, and no part of type {part['type']!r}")
        if isinstance(part, dict) and part.get("type") == "refusal" and "text" not in part:
            return {"text" if key == "refusal" else key: value for key, value in part.items()}
        return part


class Function(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Text


class ToolCall(Body):
    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: Function

    @property
    def plain(self) -> dict:
        """As chat templates read it: the arguments as an object, where they are one."""
        arguments: Any = self.function.arguments
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: Text | None = Field(None, description="What an assistant said in place of `content`.")
    tool_calls: Annotated[list[ToolCall], Field(max_length=1024)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    audio: only(because="Models here know no sound") = None
    annotations: only([], because="Notes on a text are not read") = None
    function_call: only(because="`function_call` is the old form of `tool_calls`") = None

    @model_validator(mode="after")
    def _of_its_role(self):
        for key, role in {"tool_calls": "assistant", "refusal": "assistant", "tool_call_id": "tool"}.items():
            if getattr(self, key) is not None and self.role != role:
                raise ValueError(f"`{key}` belongs to the role {role!r}")
        if self.content is None and self.role != "assistant":
            raise ValueError(f"`content` must be given with the role {self.role!r}; null is for an assistant's alone")
        if self.content is not None and self.refusal is not None:
            raise ValueError("`content` and `refusal` are one or the other")
        return self

    @property
    def plain(self) -> dict:
        """As chat templates read it."""
        content = self.content or self.refusal or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        known = {"name": self.name, "tool_call_id": self.tool_call_id}
        known["tool_calls"] = [call.plain for call in self.tool_calls or ()]
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": text, **{key: value for key, value in known.items() if value}}


_NO_TOOLS = "Models here call no tools: their answers are not read for calls"


class ChatRequest(Sampling):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "quickstart", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}]
        }
    )

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOG_PROBS)
    prediction: Harmless = None
    parallel_tool_calls: Harmless = None
    tools: only([], because=_NO_TOOLS) = None
    functions: only([], because=_NO_TOOLS) = None
    tool_choice: only("none", "auto", because=_NO_TOOLS) = None
    function_call: only("none", "auto", because=_NO_TOOLS) = None
    modalities: only(["text"], because="Models here write text alone") = None
    audio: only(because="Models here write text alone") = None
    reasoning_effort: only("none", because="Models here do not reason apart from their answers") = None
    verbosity: only("medium", because="How much models here say cannot be set; see `max_completion_tokens`") = None
    web_search_options: only(because="Nothing is searched for here") = None
    moderation: only(because="Nothing is moderated here") = None
    add_generation_prompt: only(True, because="A conversation ends here where the assistant's turn begins") = None
    continue_final_message: only(False, because="A turn that has begun is not gone on with") = None

    @model_validator(mode="after")
    def _consistent(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` must come with logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_completion_tokens` is the new name of `max_tokens`: give one of them")
        return self


Inputs = Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=MOST_INPUTS)]


class EmbeddingRequest(Asked):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "simcse", "input": ["a cat", "a theorem"]}]})

    input: Inputs | Annotated[TokenIds, Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="As many as the model's vectors have.")

    @property
    def inputs(self) -> list:
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return self.input if several else [self.input]


class FillMaskRequest(Body):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "bert", "input": "The [MASK] sat.", "top_k": 3}]}
    )

    model: Name
    input: Inputs
    top_k: int = Field(5, ge=1, le=1000)


Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]


class ClassifyRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "kinds", "input": ["What a day!"]}]})

    model: Name
    input: Text | Annotated[list[Text | Pair], Field(min_length=1, max_length=MOST_INPUTS)] = Field(
        description="A text, or a list of texts or pairs of texts."
    )


class PredictRequest(Body):
    """TensorFlow Serving's."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["What a day!"]}]})

    instances: list[Text | Pair] = Field(min_length=1, max_length=MOST_INPUTS)
    signature_name: Literal["serving_default"] = "serving_default"


class TokenizeRequest(Body):
    model: Name
    prompt: Text


class DetokenizeRequest(Body):
    model: Name
    tokens: TokenIds


class LoadAdapterRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"lora_name": "poems", "lora_path": "/adapters/poems"}]})

    lora_name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    lora_path: str = Field(min_length=1, max_length=4096, description="A directory on the server.")
    base_model: Name | None = Field(None, description="Whose adapter it is; the only model's when left out.")


class UnloadAdapterRequest(Body):
    lora_name: Name
