"""Venice's published request schema for chat completions: a field that it does not have is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Expected number, received boolean")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high", "auto"]


class TextPart(_Strict):
    type: Literal["text"]
    text: str = Field(min_length=1)
    cache_control: dict[str, Any] | None = None


class ChatMessage(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class VeniceParameters(_Strict):
    character_slug: str | None = None
    strip_thinking_response: bool = False
    disable_thinking: bool = False
    enable_e2ee: bool = True
    enable_web_search: Literal["auto", "off", "on"] = "off"
    enable_web_scraping: bool = False
    enable_web_citations: bool = False
    include_search_results_in_stream: bool = False
    return_search_results_as_documents: bool = False
    include_venice_system_prompt: bool = True
    enable_x_search: bool = False

    def echo(self) -> dict[str, Any]:
        """What an answer says of them."""
        return self.model_dump(exclude={"character_slug", "enable_x_search"})


class _Fallback(_Strict):
    model: str


class ChatRequest(_Strict):
    """POST /chat/completions."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    frequency_penalty: Number = Field(0, ge=-2, le=2)
    presence_penalty: Number = Field(0, ge=-2, le=2)
    repetition_penalty: Number = Field(1, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    max_temp: Number | None = Field(None, ge=0, le=2)
    min_temp: Number | None = Field(None, ge=0, le=2)
    min_p: Number = Field(0, ge=0, le=1)
    n: int = Field(1, ge=1)
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["default", "extended", "24h"] | None = None
    reasoning: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None
    seed: int | None = Field(None, gt=0)
    stop: str | Annotated[list[str], Field(min_length=1, max_length=4)] | None = None
    stop_token_ids: list[Number] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    temperature: Number = Field(1, ge=0, le=2)
    top_k: int = Field(0, ge=0)
    top_p: Number = Field(1, ge=0, le=1)
    user: str | None = None
    fallbacks: list[_Fallback] | None = Field(None, max_length=10)
    store: bool | None = None
    verbosity: Verbosity | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    metadata: dict[str, str] | None = None
    venice_parameters: VeniceParameters = Field(default_factory=VeniceParameters)
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def unsupported(self) -> list[str]:
        """Fields of the schema that this server has no code for; silence about them would be a lie."""
        neutral = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1, "min_p": 0, "top_k": 0}
        wrong = [name for name, value in neutral.items() if getattr(self, name) != value]
        absent = ("max_temp", "min_temp", "stop_token_ids", "response_format", "tool_choice", "tools", "fallbacks")
        wrong += [name for name in absent if getattr(self, name) is not None]
        return wrong + (["stream"] if self.stream else [])
