"""POST /v1/chat/completions: OpenAI's, with the checkpoint's own chat template."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request, Response

from latentforge.inference.rest.answers import Answer, respond, whole_texts
from latentforge.inference.rest.bodies import bounded_route
from latentforge.inference.rest.continuations import PlacedToken, TextPiece
from latentforge.inference.rest.generation import Choice, OpenChoices, choices_of, ends_of
from latentforge.inference.rest.limits import check_choices, check_exact
from latentforge.inference.rest.logprobs import chat_logprobs
from latentforge.inference.rest.openapi import ANSWERS, streamed
from latentforge.inference.rest.prompts import encode_chat, tokens_to_write
from latentforge.inference.rest.schemas.chat import (
    MOST_MESSAGES,
    AssistantMessage,
    ChatAnswer,
    ChatAnswerChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletionRequest,
    ChatDelta,
    ChatLogprobs,
)
from latentforge.inference.rest.services import Services
from latentforge.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class ChatPlan:
    """A request, ready to be answered: its ``choices``, and the first one's ``seed``."""

    snapshot: Snapshot
    body: ChatCompletionRequest
    choices: Sequence[Choice]
    seed: int
    num_prompt_tokens: int


def plan_chat(snapshot: Snapshot, body: ChatCompletionRequest) -> ChatPlan:
    """Renders and encodes a chat, and says what is to be written.

    Raises:
        PromptError: it does not fit the model.
    """
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    if logprobs is not None:
        check_exact(snapshot, "logprobs")
    prompt = encode_chat(snapshot, [message.as_said for message in body.messages])
    name, asked = body.most_tokens
    most = tokens_to_write(snapshot, prompt, asked, prompt.room, name=name)
    ends = ends_of(snapshot, body, in_chat=True)
    seed, choices = choices_of(snapshot, [prompt], [most], body, ends, logprobs)
    return ChatPlan(snapshot, body, choices, seed, len(prompt.ids))


class ChatWriter:
    """Answers one request."""

    def __init__(self, plan: ChatPlan, choices: OpenChoices) -> None:
        self._plan, self._choices = plan, choices
        self._answer = Answer("chatcmpl", plan.snapshot, plan.seed, plan.num_prompt_tokens)

    @classmethod
    async def open(cls, services: Services, body: ChatCompletionRequest) -> "ChatWriter":
        """Encodes the chat and has the engine admit all choices.

        Raises:
            PromptError: it does not fit the model.
            EngineFullError, DeadlineError, GenerationCancelledError, GenerationFailedError: from the engine.
        """
        engine, snapshot = services.engine, await services.snapshot(body.model)
        deadline = engine.new_deadline()
        length = sum(len(message.content) for message in body.messages)
        work = partial(plan_chat, snapshot, body)
        plan = await engine.prepare(snapshot.decoding, work, deadline, num_characters=length)
        return cls(plan, OpenChoices(engine, snapshot, plan.choices, [0] * len(plan.choices), deadline))

    def cancel(self) -> None:
        self._choices.cancel()

    async def whole(self) -> ChatAnswer:
        """The answer at once."""
        choices = []
        for choice, text in await whole_texts(self._answer.counted(self._choices)):
            assert text.finish_reason is not None
            choices.append(
                ChatAnswerChoice(
                    index=choice.index,
                    message=AssistantMessage(content=text.text),
                    token_ids=text.token_ids,
                    logprobs=self._logprobs(text),
                    finish_reason=text.finish_reason,
                )
            )
        return ChatAnswer(**self._answer.fields, choices=choices, usage=self._answer.usage)

    async def events(self) -> AsyncGenerator[ChatChunk]:
        """The answer step by step; first of all it is said whose turn it is."""
        for choice in self._plan.choices:
            yield self._chunk(choice, ChatDelta(role="assistant", content=""), TextPiece("", [], []))
        async with aclosing(self._answer.counted(self._choices)) as written:
            async for choice, piece in written:
                yield self._chunk(choice, ChatDelta(content=piece.text), piece)
        if self._plan.body.includes_usage:
            yield ChatChunk(**self._answer.fields, choices=[], usage=self._answer.usage)

    def _chunk(self, choice: Choice, delta: ChatDelta, piece: TextPiece) -> ChatChunk:
        one = ChatChunkChoice(
            index=choice.index,
            delta=delta,
            token_ids=piece.token_ids,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
        )
        return ChatChunk(**self._answer.fields, choices=[one], usage=None)

    def _logprobs(self, piece: TextPiece) -> ChatLogprobs | None:
        if not self._plan.body.logprobs:
            return None
        # Of what the message says: the end of the turn is no part of it.
        tokens: list[PlacedToken] = piece.tokens[: len(piece.token_ids)]
        return chat_logprobs(self._plan.snapshot, tokens)


def chat_router(services: Services) -> APIRouter:
    router = APIRouter(route_class=bounded_route(most_strings=8 * MOST_MESSAGES, most_between=2**18))

    @router.post("/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERS | streamed(ChatChunk))
    async def complete_chat(body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a chat."""
        check_choices(services.settings, 1, body.n)
        return await respond(
            request,
            lambda: ChatWriter.open(services, body),
            stream=body.stream,
            heartbeat_seconds=services.settings.inference_heartbeat_seconds,
        )

    return router
