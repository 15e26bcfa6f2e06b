"""The backend ``venice``: continues chats through Venice's API, with rows on its own text. It cannot score."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from latentforge.core.settings import SettingsError
from latentforge.gateway.backends.base import (
    BackendError,
    ContinuationRequest,
    FailureKind,
    LoadedBackend,
    Piece,
    TeacherDescription,
    TokenIds,
)
from latentforge.gateway.backends.costs import Costs, Price
from latentforge.gateway.backends.mapped_rows import mapped_piece
from latentforge.gateway.backends.model_folder import read_config, tokenizer_folder
from latentforge.gateway.backends.token_mapping import TokenMapping
from latentforge.gateway.backends.upstream import Api, Upstream
from latentforge.gateway.backends.venice.messages import (
    Completion,
    ListedModel,
    check_request,
    parse_completion,
    parse_models,
    request_body,
)
from latentforge.gateway.breaker import Breaker
from latentforge.gateway.metrics import Metrics
from latentforge.gateway.settings import GatewaySettings
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)

# More than 20 failures in 30 s block the key for 30 s.
_BLOCKING_FAILURES = 20
_BLOCK_SECONDS = 30.0
_SUCCESSES_BEFORE_WIDE = 10


class TopLogprobs:
    """How many entries to ask for: half as many from a 429 on, all of them again after 10 successes in a row."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._successes = _SUCCESSES_BEFORE_WIDE

    @property
    def now(self) -> int:
        return self._most if self._successes >= _SUCCESSES_BEFORE_WIDE else max(1, self._most // 2)

    def limited(self) -> None:
        self._successes = 0

    def succeeded(self) -> None:
        self._successes += 1


class VeniceBackend(LoadedBackend):
    """Asks Venice for chat completions with logprobs and maps their strings and bytes to ids.

    Nothing of it is cached: every answer is a new sample, and its rows are conditioned on the rendered chat template,
    so they must not be mixed with scored rows.

    Raises:
        SettingsError: the key or the folder of the tokenizer is not set, or cannot be used.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        if settings.venice_api_key is None:
            raise SettingsError("VENICE_API_KEY is not set; TEACHER_BACKEND=venice needs the key of a Venice account")
        self._settings = settings
        self._top_logprobs = TopLogprobs(settings.venice_top_logprobs)
        api = Api(
            name="venice",
            base_url=settings.venice_base_url,
            url_setting="VENICE_BASE_URL",
            key=settings.venice_api_key,
            key_setting="VENICE_API_KEY",
            max_requests=settings.venice_max_requests,
            max_queued=settings.venice_max_queued,
            attempts=settings.venice_attempts,
            timeout=settings.venice_timeout_seconds,
            counts_refusals=True,
        )
        # Requests that are open while it opens may fail too.
        breaker = Breaker(
            _BLOCKING_FAILURES - settings.venice_max_requests,
            _BLOCK_SECONDS,
            _BLOCK_SECONDS,
            on_change=metrics.breaker("venice"),
        )
        self._breaker = breaker
        self._upstream = Upstream(
            api,
            breaker,
            metrics,
            on_rate_limited=self._top_logprobs.limited,
            on_success=self._top_logprobs.succeeded,
        )
        self._costs = Costs(settings.venice_max_usd, "VENICE_MAX_USD", metrics.upstream_usd.labels("venice").inc)
        self._folder = tokenizer_folder(settings)
        self._warned = False

    async def check(self) -> None:
        """Asks nothing: each request counts against the key. While none may be sent, none is answered."""
        if (left := self._breaker.seconds_left) > 0:
            text = f"VENICE_BASE_URL failed too often and is left alone for {left:.0f} s"
            raise BackendError(text, FailureKind.GONE, retry_after=left)

    async def load(self) -> None:
        await self.prepare()
        if not self._model.gives_logprobs:
            raise BackendError(
                f"VENICE_MODEL={self._model.id} gives no logprobs; {models_with_logprobs(self._models)}",
                FailureKind.MISCONFIGURED,
            )

    async def prepare(self) -> None:
        """Like :meth:`load`, but takes a model that is listed as giving no logprobs.

        Raises:
            BackendError: the tokenizer cannot be read, Venice does not answer or does not list the model.
        """
        await asyncio.to_thread(self._read_tokenizer)
        self._models = parse_models(await self._upstream.get("/models"))
        wanted = self._settings.venice_model
        if wanted not in self._models:
            raise BackendError(
                f"VENICE_MODEL={wanted} is not listed; {models_with_logprobs(self._models)}", FailureKind.NOT_FOUND
            )
        self._model = self._models[wanted]
        self._price = self._known_price()
        self._description = self._describe()

    async def score(self, sequences: Sequence[TokenIds], top_k: int) -> list[SparseRows]:
        raise AssertionError("callers ask description.can_score first")

    async def generate(self, request: ContinuationRequest) -> AsyncIterator[Piece]:
        check_request(request)
        for piece in await self._complete(request):
            yield piece

    @property
    def spent_usd(self) -> float:
        return self._costs.spent

    async def close(self) -> None:
        await self._upstream.close()

    async def _complete(self, request: ContinuationRequest) -> list[Piece]:
        asked = 0

        def body() -> dict[str, Any]:
            nonlocal asked
            asked = min(request.top_k, self._top_logprobs.now)
            return request_body(request, self._model.id, asked)

        def read(data: bytes) -> Completion:
            return parse_completion(orjson.loads(data))

        most = self._price.cost(len(request.prompt_ids), request.n * request.max_tokens)
        with self._costs.request(most) as bill:
            # Venice charges for what it answers, whether or not it can be used.
            data = await self._upstream.post("/chat/completions", body, bytes, bill)
            completion = await asyncio.to_thread(read, data)
            bill.answered(self._price.cost(completion.usage.prompt_tokens, completion.usage.completion_tokens))
            return await asyncio.to_thread(self._pieces, completion, request, asked)

    def _known_price(self) -> Price:
        """The listed one; 0 where none is and no limit depends on it."""
        price = self._model.price
        if price is None and self._settings.venice_max_usd is not None:
            raise BackendError(
                f"Venice lists no price for VENICE_MODEL={self._model.id}, so VENICE_MAX_USD cannot be kept; unset it, "
                "or choose another model",
                FailureKind.MISCONFIGURED,
            )
        return price or Price(0.0, 0.0)

    def _pieces(self, completion: Completion, request: ContinuationRequest, top_k: int) -> list[Piece]:
        """One for each of the n continuations, in order."""
        choices = {choice.index: choice for choice in completion.choices}
        if any(choice.sampled is None and choice.message.content for choice in choices.values()):
            raise BackendError(
                f"VENICE_MODEL={self._model.id} answered without logprobs; {models_with_logprobs(self._models)}",
                FailureKind.MISCONFIGURED,
            )
        if problem := self._other_prompt(completion, request):
            return [_dropped(index, problem) for index in range(request.n)]
        missing = f"the answer has {len(choices)} of {request.n} choices"
        return [
            mapped_piece(choices[index].written, request, top_k, self._mapping)
            if index in choices
            else _dropped(index, missing)
            for index in range(request.n)
        ]

    def _other_prompt(self, completion: Completion, request: ContinuationRequest) -> str | None:
        counted, rendered = completion.usage.prompt_tokens, len(request.prompt_ids)
        if counted == rendered:
            return None
        problem = (
            f"Venice counts {counted} tokens of prompt, the chat template of TOKENIZER_PATH={self._folder} gives "
            f"{rendered}: the rows may be of another context; VENICE_CHECK_PROMPT=false takes them nevertheless"
        )
        if self._settings.venice_check_prompt:
            return problem
        if not self._warned:
            self._warned = True
            logger.warning("%s", problem)
        return None

    def _read_tokenizer(self) -> None:
        try:
            # Thinking is switched off in every request, and templates write that into the assistant's turn.
            self._tokenizer = TextTokenizer(self._folder, template_arguments={"enable_thinking": False})
            self._mapping = TokenMapping(self._tokenizer)
        except (OSError, ValueError, KeyError) as error:
            raise BackendError(
                f"TOKENIZER_PATH={self._folder} cannot be read: {error}", FailureKind.MISCONFIGURED
            ) from None

    def _describe(self) -> TeacherDescription:
        settings, model = self._settings, self._model
        config = read_config(self._folder)
        context, asked = model.model_spec.context_tokens, settings.max_sequence_length
        if context is None and asked is None:
            raise BackendError(
                f"Venice does not say how long a context {model.id} takes; set MAX_SEQUENCE_LENGTH",
                FailureKind.MISCONFIGURED,
            )
        if context is not None and asked is not None and asked > context:
            raise BackendError(
                f"MAX_SEQUENCE_LENGTH={asked} is more than the {context} tokens that {model.id} takes",
                FailureKind.MISCONFIGURED,
            )
        quantization = model.model_spec.capabilities.quantization
        return TeacherDescription(
            backend="venice",
            model=model.id,
            revision=model.id if model.created is None else f"{model.id}@{model.created}",
            quantization="unknown" if quantization == "not-available" else quantization,
            engine="venice api",
            compute_dtype="unknown",
            can_score=False,
            can_generate=True,
            max_top_k=min(settings.max_top_k, settings.venice_top_logprobs),
            max_sequence_length=asked or context or 0,
            # Without a config.json there is an id for each token.
            vocab_size=max(self._mapping.num_ids, 0 if config is None else config.vocab_size),
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            # Venice does not say. At temperature 1 and top_p 1 both are the same.
            logprobs_mode=pb.LOGPROBS_MODE_PROCESSED,
            id_fidelity=pb.ID_FIDELITY_MAPPED,
            chat_prompts_only=True,
        )


def models_with_logprobs(models: dict[str, ListedModel]) -> str:
    able = sorted(name for name, model in models.items() if model.gives_logprobs)
    return f"listed models that give logprobs: {', '.join(able) or 'none'}"


def _dropped(index: int, why: str) -> Piece:
    return Piece(index, [], "", None, pb.FINISH_REASON_DROPPED, why)
