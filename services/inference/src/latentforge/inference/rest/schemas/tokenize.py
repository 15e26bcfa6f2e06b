"""What POST /tokenize and /detokenize are asked, and what they answer."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema, model_validator

from latentforge.inference.rest.errors import conflict
from latentforge.inference.rest.schemas.chat import Messages
from latentforge.inference.rest.schemas.common import Text
from latentforge.inference.rest.schemas.completions import IDS_SCHEMA, as_ids


def _listed_ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("send a list of ids")
    return as_ids(value)


def _one_of_both(schema: dict[str, Any]) -> None:
    null = {"type": "null"}
    schema["oneOf"] = [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": null}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": null}},
    ]


class TokenizeRequest(BaseModel):
    """A text, or a chat that the assistant is to answer.

    Attributes:
        add_special_tokens: a text begins with the tokenizer's bos where the model's texts do, as a prompt does.
        model: as in completions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_one_of_both)

    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    model: Text | None = None

    @model_validator(mode="after")
    def _not_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise conflict("prompt", "send either prompt or messages")
        return self


class TokenizeAnswer(BaseModel):
    """Ids, how each of them reads, and how many tokens of prompt and answer together always fit."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str]


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tokens: Annotated[tuple[int, ...], BeforeValidator(_listed_ids), WithJsonSchema(IDS_SCHEMA)]
    model: Text | None = None


class DetokenizeAnswer(BaseModel):
    """The text of ids, special tokens as they are written."""

    prompt: str
