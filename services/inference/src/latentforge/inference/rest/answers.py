"""What all of OpenAI's answers carry, and how a stream of them ends."""

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request, Response
from pydantic import BaseModel

from latentforge.core.api_errors import error_body
from latentforge.core.http.disconnects import while_connected
from latentforge.inference.operation.request_record import note_request
from latentforge.inference.rest.continuations import TextPiece, joined
from latentforge.inference.rest.failures import rest_error_of
from latentforge.inference.rest.generation import Choice, OpenChoices
from latentforge.inference.rest.schemas.common import CompletionUsage, ErrorAnswer
from latentforge.inference.rest.sse import DONE, EventStream, event
from latentforge.snapshots.snapshot import Snapshot

_DIGEST_LENGTH = 12


def fingerprint(snapshot: Snapshot) -> str:
    """A checkpoint's id and the beginning of its manifest's digest: two of one name are told apart."""
    return f"{snapshot.id}@{snapshot.digest[:_DIGEST_LENGTH]}"


@dataclass
class Answer:
    """Fields that are the same in an answer and in every event of a stream, and what it came to."""

    prefix: str
    snapshot: Snapshot
    seed: int
    prompt_tokens: int
    completion_tokens: int = 0
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        note_request(checkpoint=self.snapshot.id, prompt_tokens=self.prompt_tokens)

    async def counted(self, choices: OpenChoices) -> AsyncGenerator[tuple[Choice, TextPiece]]:
        """What steps write, counted; raises as :meth:`OpenChoices.pieces`."""
        async with aclosing(choices.pieces()) as pieces:
            async for choice, piece in pieces:
                self.completion_tokens += len(piece.token_ids)
                note_request(completion_tokens=len(piece.token_ids))
                yield choice, piece

    @property
    def usage(self) -> CompletionUsage:
        total = self.prompt_tokens + self.completion_tokens
        return CompletionUsage(
            prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens, total_tokens=total
        )

    @property
    def fields(self) -> dict[str, object]:
        return {
            "id": self.id,
            "created": self.created,
            "model": self.snapshot.id,
            "system_fingerprint": fingerprint(self.snapshot),
            "seed": self.seed,
        }


async def whole_texts(pieces: AsyncGenerator[tuple[Choice, TextPiece]]) -> list[tuple[Choice, TextPiece]]:
    """All that is written for each choice, in their order."""
    found: dict[int, tuple[Choice, list[TextPiece]]] = {}
    async with aclosing(pieces):
        async for choice, piece in pieces:
            found.setdefault(choice.index, (choice, []))[1].append(piece)
    return [(choice, joined(of_choice)) for _, (choice, of_choice) in sorted(found.items())]


class AnswerWriter(Protocol):
    """A request whose texts the engine has admitted."""

    async def whole(self) -> BaseModel:
        """The answer at once."""

    def events(self) -> AsyncGenerator[BaseModel]:
        """The answer step by step."""

    def cancel(self) -> None:
        """Ends what is not over."""


async def respond(
    request: Request, open_writer: Callable[[], Awaitable[AnswerWriter]], *, stream: bool, heartbeat_seconds: float
) -> Response:
    """Answers at once or as a stream; nothing goes on for a client that has hung up.

    What goes wrong before the first event is raised, so that the status says it.
    """

    async def whole() -> BaseModel:
        writer = await open_writer()
        try:
            return await writer.whole()
        finally:
            writer.cancel()

    async def opened() -> AnswerWriter:
        return await open_writer()

    if stream:
        writer = await while_connected(request.receive, opened())
        return EventStream(events_of(writer.events()), heartbeat_seconds, writer.cancel)
    answer = await while_connected(request.receive, whole())
    return Response(answer.model_dump_json(), media_type="application/json")


async def events_of(answers: AsyncGenerator[BaseModel]) -> AsyncGenerator[bytes]:
    """Answers as events and the end that clients know; what goes wrong midway is an event, since the status is sent."""
    try:
        async with aclosing(answers):
            async for answer in answers:
                yield event(answer)
    except Exception as error:
        failed = rest_error_of(error)
        yield event(
            ErrorAnswer.model_validate(error_body(failed.status_code, failed.code, failed.detail, failed.param))
        )
    yield DONE
