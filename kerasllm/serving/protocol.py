"""What clients send: OpenAI's requests, those of ours, and their limits. What is not named here is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_ANSWERS = 128  # prompts × n of a request
MOST_STOPS = 16
MOST_INPUTS = 2048
MOST_CHARACTERS = 2**20
MOST_LOG_PROBS = 20

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


class StreamOptions(Body):
    include_usage: bool = Field(False, description="A last chunk with the usage, and no choices.")


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


class Sampling(Body):
    """What completions and conversations share."""

    model: Name
    max_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    temperature: float = Field(1.0, ge=0, le=2, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, lt=2**31, description="0 is all.")
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024
    )
    n: int = Field(1, ge=1, le=MOST_ANSWERS)
    seed: int | None = Field(None, ge=0, lt=2**62)
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
        return {
            "sampler": {name: getattr(self, name) for name in names + penalties},
            "logit_bias": self.logit_bias,
            "n": self.n,
            "seed": self.seed,
            "stop": [self.stop] * bool(self.stop) if isinstance(self.stop, str) else self.stop,
            "stream": self.stream,
            "form": self.response_format and self.response_format.form,
        }


class CompletionRequest(Sampling):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "quickstart", "prompt": "To be", "max_tokens": 16, "seed": 1}]}
    )

    prompt: Text | TokenIds | list[Text] | list[TokenIds] = Field(description="A text, token ids, or a list of such.")
    max_tokens: int = Field(16, ge=0, lt=2**31)
    echo: bool = Field(False, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(None, ge=0, le=MOST_LOG_PROBS)

    @model_validator(mode="after")
    def _bounded(self):
        if not len(self.prompts) >= 1 or len(self.prompts) * self.n > MOST_ANSWERS:
            raise ValueError(f"`prompt` must be 1 to {MOST_ANSWERS} prompts, `n` times their number no more than that")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` must be above 0, unless echo=true asks for the prompt alone")
        return self

    @property
    def prompts(self) -> list:
        several = isinstance(self.prompt, list) and not (self.prompt and isinstance(self.prompt[0], int))
        return self.prompt if several else [self.prompt]


class Part(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    name: Annotated[str, Field(max_length=256)] | None = None

    @property
    def plain(self) -> dict:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text, **({"name": self.name} if self.name else {})}


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

    @model_validator(mode="after")
    def _consistent(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` must come with logprobs=true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` is the old name of `max_completion_tokens`: give one of them")
        return self


Inputs = Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=MOST_INPUTS)]


class EmbeddingRequest(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "simcse", "input": ["a cat", "a theorem"]}]})

    model: Name
    input: Inputs | Annotated[TokenIds, Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"

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
