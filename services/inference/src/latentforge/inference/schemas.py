"""Requests and answers of the REST API."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from latentforge.model.sampling import SamplingParams

LONGEST_PROMPT = 1_000_000


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class GenerateRequest(SamplingParams):
    """A prompt and how to continue it; temperature, top_p, top_k and seed are :class:`SamplingParams`'."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"prompt": "def main():", "max_tokens": 64, "temperature": 0.8, "seed": 1}]},
    )

    prompt: Annotated[str, Field(max_length=LONGEST_PROMPT)]
    max_tokens: Annotated[int, Field(ge=1)] = 64
    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=16), BeforeValidator(_as_list)
    ] = ()


class Usage(BaseModel):
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
        milliseconds: time spent generating, without waiting in the queue.
    """

    text: str
    token_ids: list[int]
    checkpoint: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
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
    waiting: int


class SwapRecord(BaseModel):
    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    from_: Annotated[str | None, Field(alias="from")]
    to: str
    at: str


class Status(Health):
    """All that the server knows: its checkpoint's manifest in short, every swap since it started, and its load."""

    current: dict[str, Any] | None
    swaps: list[SwapRecord]
    running: int
    queued: int
    device: str
