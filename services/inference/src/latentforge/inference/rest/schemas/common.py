"""What several requests and answers of the REST API have in common."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from latentforge.inference.rest.errors import conflict
from latentforge.model.sampling import SamplingParams

MOST_STOPS = 16
_MOST_STOP_IDS = 64
_ID = re.compile(r"[0-9]{1,9}")


def _whole(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair, which no text has") from None
    return value


Text = Annotated[str, AfterValidator(_whole)]


def as_whole(value: Any) -> Any:
    """A whole number that is written with a point, 1.0, as what it is to JSON."""
    return int(value) if type(value) is float and value.is_integer() else value


def bounded(most: int, *, least: int = 0, wrap: bool = False) -> BeforeValidator:
    """Has lists looked at no further than one entry beyond ``most``, which is enough to be refused.

    Args:
        most: what the field's own max_length says.
        least: fewer entries are refused.
        wrap: a text alone means a list of it.
    """

    def cut(value: Any) -> Any:
        if isinstance(value, list | tuple) and len(value) < least:
            raise ValueError(f"send at least {least}")
        if wrap and isinstance(value, str):
            return (value,)
        return tuple(map(as_whole, value[: most + 1])) if isinstance(value, list | tuple) else value

    return BeforeValidator(cut)


def refused(why: str) -> BeforeValidator:
    """Of a field that clients know and that only null is allowed in."""

    def refuse(value: Any) -> None:
        if value is not None:
            raise ValueError(f"{why}; leave it out")

    return BeforeValidator(refuse)


def allow_nulls(schema: dict[str, Any]) -> None:
    """Says in a JSON schema that null is the default of every field that has one."""
    properties = schema["properties"]
    if bias := properties.get("logit_bias"):
        bias["propertyNames"] = {"pattern": f"^{_ID.pattern}$"}
    for name in properties.keys() - set(schema.get("required", ())):
        kind = properties[name]
        kinds = kind.get("anyOf")
        if kind.get("type") == "null" or (kinds and {"type": "null"} in kinds):
            continue
        if kinds:
            properties[name] = kind | {"anyOf": [*kinds, {"type": "null"}]}
            continue
        about = {key: kind.pop(key) for key in ("default", "description", "title") if key in kind}
        properties[name] = about | {"anyOf": [kind, {"type": "null"}]}


class SampledRequest(SamplingParams):
    """A text to continue: how it is drawn, as in :class:`SamplingParams`, and where it ends.

    Null is the default of every field that has one. A text is no number and a number no truth value.

    Attributes:
        stop: ends the text before it; a special token that is written out means that token.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, json_schema_extra=allow_nulls)

    stop: Annotated[
        tuple[Annotated[str, Field(min_length=1), AfterValidator(_whole)], ...],
        Field(max_length=MOST_STOPS, json_schema_extra=lambda schema: _or_alone(schema)),
        bounded(MOST_STOPS, wrap=True),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        known = cls._known_names() - required
        given = {name: as_whole(value) for name, value in values.items() if value is not None or name not in known}
        if "logit_bias" in given:
            given["logit_bias"] = _whole_keys(given["logit_bias"])
        return given

    @classmethod
    def _known_names(cls) -> set[str]:
        return set(cls.model_fields)

    @property
    def sampling(self) -> SamplingParams:
        """How it is drawn, and nothing else."""
        return SamplingParams(**{name: getattr(self, name) for name in SamplingParams.model_fields})


def _whole_keys(value: Any) -> Any:
    """JSON's names of fields as the ids that they say."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and _ID.fullmatch(key) else key: bias for key, bias in value.items()}


def _or_alone(schema: dict[str, Any]) -> None:
    about = {key: schema.pop(key) for key in ("default", "description", "title") if key in schema}
    several = dict(schema)
    schema.clear()
    schema.update(about | {"anyOf": [several["items"], several]})


class StreamOptions(BaseModel):
    """What a stream says besides the text.

    Attributes:
        include_usage: the last event before the end has no choice but the usage.
        include_obfuscation: changes nothing: events are not padded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class OpenAIRequest(SampledRequest):
    """What OpenAI's two completion endpoints have in common, and vLLM's additions to them.

    Attributes:
        model: a checkpoint's id, a run's name, or latentforge, which is what is served, and the default.
        n: choices for each prompt; the seed of choice i of all is seed + i.
        stream: answers with server-sent events, one for each step of each choice.
        stop_token_ids: end the text; they are no part of it.
        ignore_eos: the text does not end at the model's own end of text.
        user, metadata, store, service_tier, safety_identifier, prompt_cache_key, prompt_cache_retention: are taken
            and change nothing.
    """

    model: Text | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop_token_ids: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=_MOST_STOP_IDS), bounded(_MOST_STOP_IDS)
    ] = ()
    ignore_eos: bool = False
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "OpenAIRequest":
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options", "stream_options are given, but stream is not true; leave them out")
        return self

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class CompletionUsage(BaseModel):
    """Tokens of all prompts, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ErrorDetail(BaseModel):
    """What went wrong; ``param`` names the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail
