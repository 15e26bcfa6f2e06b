"""Requests and answers of the REST API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from latentforge.core.errors import shown
from latentforge.inference.rest.errors import CONFLICT
from latentforge.model.sampling import SamplingParams

_MOST_STOPS = 16


def _as_list(value: Any) -> Any:
    # One too many is enough to be refused; a million are not looked at.
    return [value] if isinstance(value, str) else value[: _MOST_STOPS + 1] if isinstance(value, list) else value


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which no text has") from None
    return value


def _complete_schema(schema: dict[str, Any]) -> None:
    """Adds what a validator accepts and pydantic cannot know: the second name, and null for a default."""
    properties = schema["properties"]
    properties["max_new_tokens"] = properties["max_tokens"] | {"description": "The same as max_tokens."}
    for name in properties.keys() - set(schema["required"]):
        kind = properties[name]
        if "anyOf" not in kind:
            about = {key: kind.pop(key) for key in ("default", "description", "title") if key in kind}
            properties[name] = about | {"anyOf": [kind, {"type": "null"}]}
    schema["examples"] = [{"prompt": "def main():", "max_new_tokens": 64, "temperature": 0.8, "seed": 1}]


class GenerateRequest(SamplingParams):
    """A prompt and how to continue it; how tokens are drawn is :class:`SamplingParams`'.

    Null is the default of every field that has one.

    Attributes:
        stop: ends the text before it; a special token that is written out means that token.
        parse_special_tokens: what is written in the prompt like a special token is that token, for who renders chats
            himself, and what ends an assistant's turn ends the answer; otherwise it is text like any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_complete_schema)

    prompt: Annotated[str, AfterValidator(_text)]
    max_tokens: Annotated[int, Field(ge=1, validation_alias=AliasChoices("max_tokens", "max_new_tokens"))] = 64
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=_MOST_STOPS), BeforeValidator(_as_list)
    ] = ()
    parse_special_tokens: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_name_and_no_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        optional = cls.model_fields.keys() - {"prompt"} | {"max_new_tokens"}
        given = {name: value for name, value in values.items() if value is not None or name not in optional}
        if "max_tokens" in given and "max_new_tokens" in given:
            ours, seeds = given["max_tokens"], given.pop("max_new_tokens")
            if ours != seeds:
                raise PydanticCustomError(
                    CONFLICT,
                    "max_tokens is {ours} and max_new_tokens {seeds}, but they are the same thing; send one of them",
                    {"ours": shown(ours), "seeds": shown(seeds), "param": "max_new_tokens"},
                )
        return given


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    latent_steps: int


class GenerateResponse(BaseModel):
    """What was written.

    Attributes:
        text: the continuation, without a stop string.
        token_ids: its ids, without the end-of-text id.
        checkpoint: ``<run>/step-00001200``, the one that wrote all of it.
        finish_reason: "stop" at the end of a text or a stop string, "length" at max_tokens.
        seed: repeats the answer when sent with the same request to the same checkpoint.
        milliseconds: time spent generating, without time in the queue.
    """

    text: str
    token_ids: list[int]
    checkpoint: str
    finish_reason: Literal["stop", "length"]
    usage: TokenUsage
    seed: int
    milliseconds: float
    latent_steps_per_second: float
    tokens_per_second: float


class QuarantinedCheckpoint(BaseModel):
    checkpoint: str
    reason: str
    at: str


class Health(BaseModel):
    """``status`` is "ok" where a checkpoint is served, else "waiting", and ``waiting_for`` says for what."""

    status: Literal["ok", "waiting"]
    checkpoint: str | None
    waiting_for: str | None
    problem: str | None
    quarantined: list[QuarantinedCheckpoint]


class Ready(BaseModel):
    ready: bool
    checkpoint: str | None
    running: int
    queued: int


class SwapRecord(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    from_: Annotated[str | None, Field(alias="from")]
    to: str
    at: str


class ServerStatus(Health):
    """All that the server knows: its checkpoint's manifest in short, every swap since it started, and its load."""

    current: dict[str, Any] | None
    swaps: list[SwapRecord]
    running: int
    queued: int
    device: str
