"""What POST /v1/completions is asked: OpenAI's and vLLM's fields, those that this gateway can honour."""

from dataclasses import dataclass
from typing import Any

import msgspec

from latentforge.gateway.http.decoding import RAWS, decoded, decoded_ids
from latentforge.gateway.http.errors import invalid
from latentforge.gateway.rpc.validation import MAX_CONTINUATIONS

DEFAULT_MAX_TOKENS = 16
# Of vLLM's fields: each changes what is asked for, and has these values where it does not.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "stream": (None, False),
    "suffix": (None, ""),
    "prompt_embeds": (None,),
    "truncate_prompt_tokens": (None,),
    "prompt_logprob_token_ids": (None,),
    "logprob_token_ids": (None,),
}
# The same for text that is written; where none is, they have no effect.
_REFUSED_WRITING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "top_k": (None, 0, -1),
    "logit_bias": (None, {}),
    "use_beam_search": (None, False),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "repetition_detection": (None,),
    "thinking_token_budget": (None,),
    "vllm_xargs": (None, {}),
}


class _Fields(msgspec.Struct, gc=False):
    """The body. Fields that are not listed are left unread, as vLLM leaves what it does not know."""

    prompt: msgspec.Raw
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    echo: bool | None = None
    # Some clients say true, which is one.
    logprobs: int | bool | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    stream: Any = None
    suffix: Any = None
    prompt_embeds: Any = None
    truncate_prompt_tokens: Any = None
    prompt_logprob_token_ids: Any = None
    logprob_token_ids: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    min_p: Any = None
    top_k: Any = None
    logit_bias: Any = None
    use_beam_search: Any = None
    min_tokens: Any = None
    ignore_eos: Any = None
    stop_token_ids: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    include_stop_str_in_output: Any = None
    skip_special_tokens: Any = None
    repetition_detection: Any = None
    thinking_token_budget: Any = None
    vllm_xargs: Any = None


_DECODER = msgspec.json.Decoder(_Fields)
_TEXT = msgspec.json.Decoder(str)
_IDS = msgspec.json.Decoder(list[int])
# Of a prompt: its first brackets are in them, unless somebody sends blanks alone.
_HEAD_BYTES = 256
_TEXTS = msgspec.json.Decoder(list[str])


@dataclass(frozen=True)
class TextRequest:
    """A request whose fields have the right types.

    Attributes:
        prompts: a text or ids each.
        is_list: whether they came in a list, in which each has its place.
        max_tokens: None is :data:`DEFAULT_MAX_TOKENS`, or as many as fit where those are fewer.
        logprobs: entries beside each token; None for none at all.
        prompt_logprobs: entries of each row of the prompt; None where it is not to be scored.
    """

    prompts: tuple[str | list[int], ...]
    is_list: bool
    model: str | None
    max_tokens: int | None
    temperature: float
    top_p: float
    n: int
    seed: int | None
    stop: tuple[str, ...]
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None
    add_special_tokens: bool
    tokens_as_ids: bool
    return_ids: bool

    def name_of(self, at: int) -> str:
        """Where in the request a prompt is."""
        return f"prompt[{at}]" if self.is_list else "prompt"

    @property
    def scores(self) -> bool:
        """Whether the prompt's rows are asked for."""
        return self.prompt_logprobs is not None or (self.echo and self.logprobs is not None)

    @property
    def writes(self) -> bool:
        """Whether tokens are.

        A prompt is scored by asking for prompt_logprobs and one token, since vLLM takes no fewer. Nobody wants that
        token, and drawing it would cost what the cache saves: none is written unless logprobs ask for it.
        """
        if self.max_tokens == 0:
            return False
        return not (self.max_tokens == 1 and self.prompt_logprobs is not None and self.logprobs is None)

    @property
    def is_greedy_look(self) -> bool:
        """Whether it asks for the prompt's rows and the likeliest token behind it, as lm-evaluation-harness does."""
        one = self.max_tokens == 1 and self.temperature == 0 and self.n == 1 and not self.stop
        return one and self.scores and self.writes


def read_completion_request(body: bytes) -> TextRequest:
    """
    Raises:
        HttpError: 400; it is no JSON, or a field has another type than it may, or contradicts another.
    """
    fields = decoded(_DECODER, body)
    prompts, is_list = _prompts_of(fields.prompt)
    logprobs = fields.logprobs
    if isinstance(logprobs, bool):
        logprobs = 1 if logprobs else None
    stop = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ())
    n = 1 if fields.n is None else fields.n
    request = TextRequest(
        prompts=prompts,
        is_list=is_list,
        model=fields.model,
        max_tokens=fields.max_tokens,
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        n=n,
        seed=fields.seed,
        stop=stop,
        echo=bool(fields.echo),
        logprobs=logprobs,
        prompt_logprobs=fields.prompt_logprobs,
        add_special_tokens=fields.add_special_tokens is not False,
        tokens_as_ids=bool(fields.return_tokens_as_token_ids),
        return_ids=bool(fields.return_token_ids),
    )
    _check(request, fields)
    return request


def _prompts_of(prompt: msgspec.Raw) -> tuple[tuple[str | list[int], ...], bool]:
    """The prompts, and whether they are a list of some."""
    head = bytes(memoryview(prompt)[:_HEAD_BYTES]).lstrip()
    inside = head[1:].lstrip()[:1]
    if head[:1] == b'"':
        return (decoded(_TEXT, prompt),), False
    if head[:1] != b"[" or inside == b"]":
        raise invalid("prompt", "is none; send a text, a list of texts, a list of ids or a list of lists of ids")
    if inside == b'"':
        texts: list[str] = decoded(_TEXTS, prompt)
        return tuple(texts), True
    if inside == b"[":
        raws: list[msgspec.Raw] = decoded(RAWS, prompt)
        return tuple(decoded_ids(raws, "prompt")), True
    return (decoded(_IDS, prompt),), False


def _check(request: TextRequest, fields: _Fields) -> None:
    for name, neutral in (_REFUSED | _REFUSED_WRITING if request.writes else _REFUSED).items():
        if (value := getattr(fields, name)) not in neutral:
            shown = f"is {value}; " if isinstance(value, bool | int | float) else ""
            raise invalid(name, f"{shown}this gateway does not know it; leave it out")
    if fields.best_of not in (None, request.n):
        raise invalid("best_of", f"is {fields.best_of}; choices are not ranked; leave it out")
    if request.max_tokens is not None and request.max_tokens < 0:
        raise invalid("max_tokens", f"is {request.max_tokens}; allowed is 0 or more")
    for name, entries in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if entries is not None and entries < 0:
            raise invalid(name, f"is {entries}; allowed is 0 or more")
    if not 1 <= request.n <= MAX_CONTINUATIONS:
        raise invalid("n", f"is {request.n}; allowed are 1 to {MAX_CONTINUATIONS}")
    if request.seed is not None and not 0 <= request.seed < 2**63:
        raise invalid("seed", f"is {request.seed}; allowed are 0 to 2^63 − 1")
    if not request.writes and not request.scores and not request.echo:
        raise invalid("max_tokens", "is 0, so that nothing is asked for; set echo, logprobs or prompt_logprobs")
    # Rows are what the teacher says at temperature 1: of the k likeliest tokens no other temperature's can be made.
    if not request.writes and request.temperature not in (0.0, 1.0):
        raise invalid(
            "temperature",
            f"is {request.temperature:g}, and nothing is written; log-probabilities of a prompt are raw; send 1",
        )
