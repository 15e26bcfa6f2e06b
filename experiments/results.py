"""What an experiment writes: results about models, and every model with all that was measured of it."""

from typing import Any

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from latentforge.core.results import Result, ResultsFile


class ModelResult(Result):
    """A result about models.

    Attributes:
        size: of the backbone.
        seeds: how many low and high are over.
        student, token_level: runs that are compared.
        best: the objective that is.
        tokens: that were learnt.
        nats_per_token, baseline_nats_per_token: held-out, of those whose speed is compared.
        tokens_per_s, baseline_tokens_per_s: decoded, of those whose likelihood is compared.
        beaten: token-level sizes that are slower and worse, or their number.
        beaten_demo: that number at the demo's vocabulary.
        beaten_in_writing: those whose text the teacher likes less.
    """

    model_config = ConfigDict(extra="forbid")

    size: str | None = None
    seeds: int | None = None
    student: str | None = None
    token_level: str | None = None
    best: str | None = None
    tokens: int | None = None
    nats_per_token: float | None = None
    baseline_nats_per_token: float | None = None
    tokens_per_s: float | None = None
    baseline_tokens_per_s: float | None = None
    beaten: list[str] | int | None = None
    beaten_demo: int | None = None
    beaten_in_writing: list[str] | None = None

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: value for name, value in values.items() if value is not None or name in Result.model_fields}


class ModelResults(ResultsFile):
    """What an experiment writes: every model with all that was measured of it (:meth:`Measured.record`)."""

    scale: str | None = None
    models: list[dict[str, Any]]
    results: tuple[ModelResult, ...]
