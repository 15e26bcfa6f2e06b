"""Answers about the server itself."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
