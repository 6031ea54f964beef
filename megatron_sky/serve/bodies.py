"""What clients send, in the OpenAI API's form, checked field by field, and what they are told when it is wrong."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from megatron_sky.generation.sampling import Sampling

MOST_PROMPTS = 16
MOST_MESSAGES = 2048
Text = Annotated[str, Field(max_length=1 << 22)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]


class ApiError(Exception):
    """An answer other than 200: OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Strict(BaseModel):
    """As the schema has it: no other fields, and no text, or 0, in place of a number or of false."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a conversation; what else clients keep in one (`name`, `refusal`) has no effect."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(max_length=256)]

    def plain(self) -> dict[str, str]:
        """As a chat template knows it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class _Common(_Strict):
    """What both kinds of completion have. `user`, `metadata` and `store` have no effect."""

    model: str = Field("", max_length=1024)
    max_tokens: int | None = Field(None, ge=1, le=1 << 31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None

    @field_validator("n", "frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _as_whole(cls, value: object) -> object:
        return int(value) if isinstance(value, float) and value in (0, 1) else value

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def limit(self) -> int | None:
        """New tokens that are asked for at most."""
        return self.max_tokens

    def sampling(self, limit: int, seed: int) -> Sampling:
        """How tokens are chosen; the temperature is 1 where none is given, as OpenAI has it."""
        return Sampling(
            max_new_tokens=limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            stop=self.stops,
            seed=seed if self.seed is None else self.seed,
        )


class ChatBody(_Common):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 31)
    logprobs: Literal[False] | None = False

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionBody(_Common):
    prompt: (
        Text
        | Annotated[list[int], Field(min_length=1, max_length=1 << 22)]
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    echo: Literal[False] | None = False
    logprobs: None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None


def _shown(place: str) -> str:
    """A field's name, which the client chose, in a form that can be sent."""
    return place[:120].encode("utf-8", "backslashreplace").decode()


def told(errors: Any) -> ApiError:
    """pydantic's or FastAPI's list of errors as one answer, which names the first field and says all."""
    places = [_shown(".".join(str(part) for part in error["loc"] if part != "body")) for error in errors]
    lines = [
        f"{place or 'body'}: {error['msg']}" for place, error in zip(places, errors, strict=True)
    ]  # not the value: it may be megabytes
    more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
    return ApiError(400, "; ".join(dict.fromkeys(lines[:8])) + more, param=places[0] or None, code="invalid_value")
