"""What POST /v1/completions is asked, and what it answers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from latentforge.core.errors import shown
from latentforge.inference.rest.errors import conflict
from latentforge.inference.rest.schemas.common import CompletionUsage, OpenAIRequest, allow_nulls, as_whole, refused

DEFAULT_MAX_TOKENS = 16
MOST_LOGPROBS = 20
# More than any setting allows; a body has room for far more.
MOST_PROMPTS = 4096

# A text, or its ids.
Prompt = str | tuple[int, ...]

IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PROMPT_SCHEMA = {
    "title": "Prompt",
    "description": "A text, a list of texts, a list of ids, or a list of lists of ids.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_PROMPTS},
        IDS_SCHEMA | {"minItems": 1},
        {"type": "array", "items": IDS_SCHEMA, "minItems": 1, "maxItems": MOST_PROMPTS},
    ],
}


def as_ids(value: Any) -> tuple[int, ...]:
    """Checks ids by hand: pydantic would go on after the first of a million wrong ones, and name them all."""
    ids = tuple(map(as_whole, value))
    for item in ids:
        if type(item) is not int or item < 0:
            raise ValueError(f"a list of ids holds {shown(item)}, which is none; ids are whole numbers from 0 up")
    return ids


def _as_prompts(value: Any) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("send a text, a list of texts, a list of ids, or a list of lists of ids")
    kind = type(value[0])
    if kind in (int, float):
        return (as_ids(value),)
    if len(value) > MOST_PROMPTS:
        raise ValueError(f"{len(value)} prompts; send at most {MOST_PROMPTS}")
    if kind not in (str, list, tuple) or any(type(item) is not kind for item in value):
        raise ValueError("send texts or lists of ids, not both, and nothing else")
    return tuple(value) if kind is str else tuple(as_ids(item) for item in value)


def _whole_texts(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    for at, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"character {error.start} of text {at} is half of a surrogate pair, which no text has"
                ) from None
    return prompts


def _complete_schema(schema: dict[str, Any]) -> None:
    allow_nulls(schema)
    schema["examples"] = [{"model": "latentforge", "prompt": "def main():", "max_tokens": 32, "temperature": 0.8}]


class CompletionRequest(OpenAIRequest):
    """Prompts and how to continue them.

    Attributes:
        prompt: a text, a list of texts, ids, or a list of lists of ids.
        max_tokens: at most so many are written for each choice; 0 with ``echo`` writes nothing. Without it 16, or as
            many as fit the context where those are fewer.
        echo: the prompt comes before the text, and with ``logprobs`` its tokens before the text's.
        logprobs: each token's log probability, before temperature, penalties and truncation, and so many of the
            likeliest tokens.
        best_of: nothing but ``n``.
        suffix: nothing: the model writes behind a prompt only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=_complete_schema)

    prompt: Annotated[
        tuple[Any, ...], BeforeValidator(_as_prompts), AfterValidator(_whole_texts), WithJsonSchema(_PROMPT_SCHEMA)
    ]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: Annotated[None, refused("this model writes behind a prompt, and knows of no text that follows")] = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return self.prompt

    @model_validator(mode="after")
    def _possible(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise conflict("max_tokens", "max_tokens is 0: ask for at least 1, or set echo to have a prompt scored")
        if self.best_of is not None and self.best_of != self.n:
            raise conflict(
                "best_of", f"best_of is {self.best_of}, but n is {self.n}; choices are not ranked: leave best_of out"
            )
        return self


class CompletionLogprobs(BaseModel):
    """Of each token of a text, in its order.

    Attributes:
        tokens: how they read; those that are no whole characters as ``bytes:\\xe2\\x82``.
        token_logprobs: null for a prompt's first token.
        top_logprobs: the likeliest tokens, and the text's own; null where none were asked for.
        text_offset: at which character of the choice's text each begins.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text.

    Attributes:
        text: what was written, behind the prompt where that was to be echoed; without what ended it.
        token_ids: its ids.
        finish_reason: "stop" at an end of text or a stop, "length" at max_tokens or the end of the context; null
            while there is more to come.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(BaseModel):
    """An answer, or an event of a stream; ``usage`` of an event is null but in the last one.

    Attributes:
        model: the checkpoint that wrote all of it.
        system_fingerprint: the checkpoint, and the beginning of its manifest's digest.
        seed: of the first choice; repeats the answer when sent with the same request to the same checkpoint.
    """

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    seed: int
    choices: list[CompletionChoice]
    usage: CompletionUsage | None
