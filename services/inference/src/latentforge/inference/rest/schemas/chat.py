"""What POST /v1/chat/completions is asked, and what it answers."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from latentforge.core.errors import shown
from latentforge.inference.rest.errors import conflict
from latentforge.inference.rest.schemas.common import (
    CompletionUsage,
    OpenAIRequest,
    Text,
    allow_nulls,
    bounded,
    refused,
)

MOST_MESSAGES = 1024
_MOST_PARTS = 64
NoTools = Annotated[None, refused("this model calls no tools")]


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in (None, "text"):
        raise ValueError(f"a part is of type {shown(kind)}, but this model reads text only; leave it out")
    if kind is None or part.keys() != {"type", "text"} or not isinstance(part["text"], str):
        raise ValueError('a part is not {"type": "text", "text": "…"}')
    return str(part["text"])


def _joined(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if len(value) > _MOST_PARTS:
        raise ValueError(f"{len(value)} parts; send at most {_MOST_PARTS}")
    return "".join(map(_text_of, value))


_CONTENT_SCHEMA = {
    "title": "Content",
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "maxItems": _MOST_PARTS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ],
}


class SaidMessage(BaseModel):
    """What somebody said; fields of OpenAI's that are null are passed over, as its own answers hold them.

    Attributes:
        role: developer means system.
        content: a text, or parts that are texts, which are put one behind the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Text, BeforeValidator(_joined), WithJsonSchema(_CONTENT_SCHEMA)]

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: said for name, said in value.items() if said is not None or name in cls.model_fields}

    @property
    def as_said(self) -> dict[str, str]:
        """As chat templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


Messages = Annotated[
    tuple[SaidMessage, ...],
    Field(max_length=MOST_MESSAGES, json_schema_extra={"minItems": 1}),
    bounded(MOST_MESSAGES, least=1),
]


def _complete_schema(schema: dict[str, Any]) -> None:
    allow_nulls(schema)
    schema["examples"] = [{"model": "latentforge", "messages": [{"role": "user", "content": "Hello"}]}]


class ResponseFormat(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["text"]


class ChatCompletionRequest(OpenAIRequest):
    """A chat that the assistant is to answer.

    Attributes:
        messages: rendered with the checkpoint's chat template.
        max_tokens, max_completion_tokens: are the same; without them the answer may be as long as the context.
        logprobs: each token's log probability, before temperature, penalties and truncation.
        top_logprobs: with ``logprobs`` so many of the likeliest tokens.
        tool_choice, response_format, modalities, parallel_tool_calls: only what changes nothing.
        tools, functions, function_call, audio, prediction: nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_complete_schema)

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: NoTools = None
    functions: NoTools = None
    function_call: NoTools = None
    audio: Annotated[None, refused("this model writes text only")] = None
    prediction: Annotated[None, refused("this model takes no predicted output")] = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[tuple[Literal["text"], ...], Field(max_length=1), bounded(1)] | None = None

    @property
    def most_tokens(self) -> tuple[str, int | None]:
        """What was asked for, and under which name."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    @model_validator(mode="after")
    def _possible(self) -> "ChatCompletionRequest":
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise conflict(
                "max_completion_tokens",
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}, but they are "
                "the same thing; send one of them",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise conflict(
                "top_logprobs", "top_logprobs are given, but logprobs is not true; set it, or leave them out"
            )
        return self


class TokenLogprobEntry(BaseModel):
    """A token; ``bytes`` is null where the vocabulary does not say them."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TokenLogprobEntry):
    """A token that was written, and the likeliest in its place."""

    top_logprobs: list[TokenLogprobEntry]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatAnswerChoice(BaseModel):
    """One answer; ``token_ids`` are its ids, without what ended it."""

    index: int
    message: AssistantMessage
    token_ids: list[int]
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """An answer.

    Attributes:
        model: the checkpoint that wrote all of it.
        system_fingerprint: the checkpoint, and the beginning of its manifest's digest.
        seed: of the first choice; repeats the answer when sent with the same request to the same checkpoint.
    """

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[ChatAnswerChoice]
    usage: CompletionUsage


class ChatDelta(BaseModel):
    """What an event adds to a message."""

    role: Literal["assistant"] | None = Field(None, exclude_if=lambda role: role is None)
    content: str


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    token_ids: list[int]
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(BaseModel):
    """An event of a stream; ``usage`` is null but in the last one."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None
