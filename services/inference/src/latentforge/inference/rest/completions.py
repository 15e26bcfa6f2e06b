"""POST /v1/completions: OpenAI's, as vLLM answers it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request, Response

from latentforge.inference.engine import AsyncEngine
from latentforge.inference.rest.answers import Answer, respond, whole_texts
from latentforge.inference.rest.bodies import bounded_route
from latentforge.inference.rest.continuations import PlacedToken, TextPiece
from latentforge.inference.rest.generation import Choice, OpenChoices, choices_of, ends_of, score_all
from latentforge.inference.rest.limits import check_choices, check_exact
from latentforge.inference.rest.logprobs import completion_logprobs, prompt_tokens
from latentforge.inference.rest.openapi import ANSWERS, streamed
from latentforge.inference.rest.prompts import EncodedPrompt, check_bytes, encode_ids, encode_text, tokens_to_write
from latentforge.inference.rest.schemas.completions import (
    DEFAULT_MAX_TOKENS,
    MOST_PROMPTS,
    CompletionAnswer,
    CompletionChoice,
    CompletionRequest,
)
from latentforge.inference.rest.services import Services
from latentforge.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class CompletionPlan:
    """A request, ready to be answered.

    Attributes:
        snapshot: answers it.
        body: what was asked.
        prompts: as the model reads them.
        choices: ``n`` for each prompt.
        seed: of the first choice.
    """

    snapshot: Snapshot
    body: CompletionRequest
    prompts: Sequence[EncodedPrompt]
    choices: Sequence[Choice]
    seed: int


def plan_completion(snapshot: Snapshot, body: CompletionRequest) -> CompletionPlan:
    """Encodes a request's prompts, and says what is to be written.

    Raises:
        PromptError: it does not fit the model.
    """
    if body.logprobs is not None:
        check_exact(snapshot, "logprobs")
    writes = body.max_tokens != 0
    # All of them before any is tokenised.
    for prompt in body.prompts:
        check_bytes(snapshot, len(prompt.encode()) if isinstance(prompt, str) else 0, "prompt")
    prompts = [
        encode_text(snapshot, prompt, writes=writes)
        if isinstance(prompt, str)
        else encode_ids(snapshot, prompt, writes=writes)
        for prompt in body.prompts
    ]
    most = [tokens_to_write(snapshot, prompt, body.max_tokens, DEFAULT_MAX_TOKENS) for prompt in prompts]
    ends = ends_of(snapshot, body, in_chat=False)
    seed, choices = choices_of(snapshot, prompts, most, body, ends, body.logprobs)
    return CompletionPlan(snapshot, body, prompts, choices, seed)


class CompletionWriter:
    """Answers one request."""

    def __init__(self, plan: CompletionPlan, choices: OpenChoices, echoes: Sequence[TextPiece] | None) -> None:
        self._plan, self._choices, self._echoes = plan, choices, echoes
        num_prompt_tokens = sum(len(prompt.ids) for prompt in plan.prompts)
        self._answer = Answer("cmpl", plan.snapshot, plan.seed, num_prompt_tokens)

    @classmethod
    async def open(cls, services: Services, body: CompletionRequest) -> "CompletionWriter":
        """Encodes prompts, scores them where that is asked, and has the engine admit all choices.

        Raises:
            PromptError: it does not fit the model.
            EngineFullError, DeadlineError, GenerationCancelledError, GenerationFailedError: from the engine.
        """
        engine, snapshot = services.engine, await services.snapshot(body.model)
        deadline = engine.new_deadline()
        length = sum(map(len, body.prompts))
        work = partial(plan_completion, snapshot, body)
        plan = await engine.prepare(snapshot.decoding, work, deadline, num_characters=length)
        echoes = await cls._echoes_of(plan, engine, deadline) if body.echo else None
        offsets = [len(choice.prompt.text) if body.echo else 0 for choice in plan.choices]
        return cls(plan, OpenChoices(engine, snapshot, plan.choices, offsets, deadline), echoes)

    @staticmethod
    async def _echoes_of(plan: CompletionPlan, engine: AsyncEngine, deadline: float) -> list[TextPiece]:
        tokens: list[list[PlacedToken]] = [[] for _ in plan.prompts]
        if plan.body.logprobs is not None:
            scored = await score_all(engine, plan.snapshot, plan.prompts, plan.body.logprobs, deadline)
            tokens = [
                [] if found is None else prompt_tokens(plan.snapshot, prompt, found)
                for prompt, found in zip(plan.prompts, scored, strict=True)
            ]
        return [
            TextPiece(prompt.text, list(prompt.ids), of_prompt)
            for prompt, of_prompt in zip(plan.prompts, tokens, strict=True)
        ]

    def cancel(self) -> None:
        self._choices.cancel()

    async def whole(self) -> CompletionAnswer:
        """The answer at once."""
        choices = [self._choice(choice, text) for choice, text in await whole_texts(self._pieces())]
        return CompletionAnswer(**self._answer.fields, choices=choices, usage=self._answer.usage)

    async def events(self) -> AsyncGenerator[CompletionAnswer]:
        """The answer step by step."""
        async with aclosing(self._pieces()) as written:
            async for choice, piece in written:
                yield CompletionAnswer(**self._answer.fields, choices=[self._choice(choice, piece)], usage=None)
        if self._plan.body.includes_usage:
            yield CompletionAnswer(**self._answer.fields, choices=[], usage=self._answer.usage)

    async def _pieces(self) -> AsyncGenerator[tuple[Choice, TextPiece]]:
        if self._echoes is not None:
            for choice in self._plan.choices:
                yield choice, self._echoes[choice.index // self._plan.body.n]
        async with aclosing(self._answer.counted(self._choices)) as pieces:
            async for choice, piece in pieces:
                yield choice, piece

    def _choice(self, choice: Choice, piece: TextPiece) -> CompletionChoice:
        likeliest = self._plan.body.logprobs
        return CompletionChoice(
            index=choice.index,
            text=piece.text,
            token_ids=piece.token_ids,
            logprobs=None if likeliest is None else completion_logprobs(self._plan.snapshot, piece.tokens, likeliest),
            finish_reason=piece.finish_reason,
        )


def completions_router(services: Services) -> APIRouter:
    router = APIRouter(route_class=bounded_route(most_strings=MOST_PROMPTS, most_between=2**20))

    @router.post("/v1/completions", response_model=CompletionAnswer, responses=ANSWERS | streamed(CompletionAnswer))
    async def complete_text(body: CompletionRequest, request: Request) -> Response:
        """Continues prompts, or scores them."""
        check_choices(services.settings, len(body.prompts), body.n, writes=body.max_tokens != 0)

        return await respond(
            request,
            lambda: CompletionWriter.open(services, body),
            stream=body.stream,
            heartbeat_seconds=services.settings.inference_heartbeat_seconds,
        )

    return router
