"""What POST /generate is asked, and what it answers."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from latentforge.core.errors import shown
from latentforge.inference.rest.errors import conflict
from latentforge.inference.rest.schemas.common import SampledRequest, Text, allow_nulls

DEFAULT_MAX_TOKENS = 64


def _complete_schema(schema: dict[str, Any]) -> None:
    """Adds what a validator accepts and pydantic cannot know: the second name, and null for a default."""
    properties = schema["properties"]
    properties["max_new_tokens"] = properties["max_tokens"] | {"description": "The same as max_tokens."}
    allow_nulls(schema)
    schema["examples"] = [{"prompt": "def main():", "max_new_tokens": 64, "temperature": 0.8, "top_p": 0.95, "seed": 1}]


class GenerateRequest(SampledRequest):
    """A prompt and how to continue it.

    Attributes:
        max_tokens: at most so many are written; without it 64, or as many as fit the context where those are fewer.
        parse_special_tokens: what is written in the prompt like a special token is that token, for who renders chats
            himself, and what ends an assistant's turn ends the answer; otherwise it is text like any other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_complete_schema)

    prompt: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, validation_alias=AliasChoices("max_tokens", "max_new_tokens")
    )
    parse_special_tokens: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = dict(values)
        ours, seeds = given.get("max_tokens"), given.get("max_new_tokens")
        if ours is not None and seeds is not None:
            if ours != seeds:
                raise conflict(
                    "max_new_tokens",
                    f"max_tokens is {shown(ours)} and max_new_tokens {shown(seeds)}, but they are the same thing; "
                    "send one of them",
                )
            del given["max_new_tokens"]
        return given

    @classmethod
    def _known_names(cls) -> set[str]:
        return super()._known_names() | {"max_new_tokens"}


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
