"""Venice's chat completions: what is sent, and what is read of the answer."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from latentforge.core.errors import describe_errors
from latentforge.gateway.backends.base import BackendError, ContinuationRequest, FailureKind
from latentforge.gateway.backends.costs import Price
from latentforge.gateway.backends.mapped_rows import WrittenContinuation, WrittenPosition, WrittenToken

MAX_STOP_STRINGS = 4
MAX_TEMPERATURE = 2.0

# Whatever changes the context or hides tokens must be off, or rows would be of another text than the student's.
VENICE_PARAMETERS: Mapping[str, bool | str] = {
    "include_venice_system_prompt": False,
    "enable_web_search": "off",
    "enable_web_scraping": False,
    "enable_web_citations": False,
    "disable_thinking": True,
    "strip_thinking_response": False,
}
# Models come with defaults of their own for these, which nobody asked for.
_NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0, "top_k": 0}


def _known_bytes(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes(int(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError("is not a list of bytes") from None


# The schema calls them numbers; null and absent mean that the API does not say.
TokenBytes = Annotated[bytes | None, BeforeValidator(_known_bytes)]


class Candidate(BaseModel):
    """A token that could have come, as the API writes it."""

    token: str
    logprob: float = Field(allow_inf_nan=False)
    data: TokenBytes = Field(None, alias="bytes")

    @property
    def written(self) -> WrittenToken:
        return WrittenToken(self.token, self.data, self.logprob)


class SampledToken(Candidate):
    """The token that came, with the most probable ones at its position."""

    top_logprobs: list[Candidate] = Field(default_factory=list)


class TokenLogprobs(BaseModel):
    """The tokens of one choice."""

    content: list[SampledToken] | None


class ChatChoiceMessage(BaseModel):
    content: str | None = None
    reasoning_content: str | None = None


class ChatChoice(BaseModel):
    index: int
    finish_reason: str
    message: ChatChoiceMessage
    # The published schema has one token where others have a list of them under ``content``; both are accepted.
    logprobs: TokenLogprobs | SampledToken | None

    @property
    def sampled(self) -> list[SampledToken] | None:
        """The tokens of this choice; None if the answer has none."""
        if isinstance(self.logprobs, TokenLogprobs):
            return self.logprobs.content
        return None if self.logprobs is None else [self.logprobs]

    @property
    def written(self) -> WrittenContinuation:
        """What of it becomes ids and rows."""
        positions = [
            WrittenPosition(token.written, [candidate.written for candidate in token.top_logprobs])
            for token in self.sampled or []
        ]
        message = self.message
        return WrittenContinuation(
            self.index, self.finish_reason, message.content or "", positions, reasoned=bool(message.reasoning_content)
        )


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Completion(BaseModel):
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    venice_parameters: dict[str, Any] = Field(default_factory=dict)


class _Capabilities(BaseModel):
    supports_log_probs: bool = Field(False, alias="supportsLogProbs")
    quantization: str = "not-available"


class _Usd(BaseModel):
    usd: float = Field(ge=0, allow_inf_nan=False)


class _Pricing(BaseModel):
    """For a million tokens. Models that make something else than text have other fields."""

    input: _Usd | None = None
    output: _Usd | None = None


class _ModelSpec(BaseModel):
    capabilities: _Capabilities = Field(default_factory=lambda: _Capabilities())
    context_tokens: int | None = Field(None, alias="availableContextTokens")
    pricing: _Pricing | None = None
    offline: bool = False


class ListedModel(BaseModel):
    """What GET /models says of a model."""

    id: str
    created: int | None = None
    model_spec: _ModelSpec = Field(default_factory=lambda: _ModelSpec())

    @property
    def gives_logprobs(self) -> bool:
        return self.model_spec.capabilities.supports_log_probs

    @property
    def price(self) -> Price | None:
        """None where the list does not say."""
        pricing = self.model_spec.pricing
        if pricing is None or pricing.input is None or pricing.output is None:
            return None
        return Price(pricing.input.usd, pricing.output.usd)

    def describe(self) -> str:
        """One line for people."""
        context, price = self.model_spec.context_tokens, self.price
        parts = [
            f"supportsLogProbs {'true' if self.gives_logprobs else 'false'}",
            "no price"
            if price is None
            else f"{price.input_usd:g} USD in and {price.output_usd:g} USD out for a million tokens",
            *([] if context is None else [f"context {context:,}"]),
            *(["offline"] if self.model_spec.offline else []),
        ]
        return f"{self.id}: {', '.join(parts)}"


class _Models(BaseModel):
    data: list[ListedModel]


def request_body(request: ContinuationRequest, model: str, top_logprobs: int) -> dict[str, Any]:
    """The JSON of POST /chat/completions; ``top_logprobs`` 0 asks for the sampled tokens alone."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in request.chat],
        "max_completion_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "n": request.n,
        "stream": False,
        # Without them the ids of the text would be a guess.
        "logprobs": True,
        "venice_parameters": dict(VENICE_PARAMETERS),
        **_NEUTRAL,
    }
    if top_logprobs:
        body["top_logprobs"] = top_logprobs
    if request.seed is not None:
        # Theirs begin at 1 and are taken by engines that know 32 bits.
        body["seed"] = request.seed % (2**31 - 1) + 1
    if request.stop:
        body["stop"] = list(request.stop)
    return body


def check_request(request: ContinuationRequest) -> None:
    """
    Raises:
        BackendError: Venice would refuse the request; a refusal there counts towards its block of the key.
    """
    wrong = []
    if request.temperature > MAX_TEMPERATURE:
        wrong.append(f"temperature is {request.temperature:g}; Venice allows 0 to {MAX_TEMPERATURE:g}")
    if len(request.stop) > MAX_STOP_STRINGS:
        wrong.append(f"stop has {len(request.stop)} strings; Venice allows {MAX_STOP_STRINGS}")
    if wrong:
        raise BackendError("; ".join(wrong), FailureKind.REFUSED)


def parse_completion(answer: Any) -> Completion:
    """What a chat completion says.

    Raises:
        BackendError: it is not one, or was not made as asked.
    """
    try:
        completion = Completion.model_validate(answer)
    except ValidationError as error:
        raise BackendError(
            f"Venice's chat completion is not as published: {describe_errors(error, values=False)[0]}"
        ) from None
    echo = completion.venice_parameters
    if changed := [f"{name} is {echo.get(name)!r}" for name, v in VENICE_PARAMETERS.items() if echo.get(name) != v]:
        raise BackendError(
            f"Venice did not answer as asked: in the venice_parameters of its answer {', '.join(changed)}; "
            "rows of such a text would be of another context"
        )
    return completion


def parse_models(answer: Any) -> dict[str, ListedModel]:
    """What GET /models lists, by id.

    Raises:
        BackendError: it is no list of models.
    """
    try:
        return {model.id: model for model in _Models.model_validate(answer).data}
    except ValidationError as error:
        raise BackendError(
            f"Venice's list of models is not as published: {describe_errors(error, values=False)[0]}"
        ) from None
