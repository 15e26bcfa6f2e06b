"""Several texts for one request: all are admitted or none, and what they write comes as it is written."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from latentforge.inference.engine import AsyncEngine, GenerationStream
from latentforge.inference.rest.continuations import ContinuedText, Ends, TextPiece
from latentforge.inference.rest.prompts import EncodedPrompt, sampling_of
from latentforge.inference.rest.schemas.common import OpenAIRequest
from latentforge.model.decoding.batch import TextLogprobs
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.snapshots.snapshot import Snapshot

_SEEDS = 2**63


@dataclass(frozen=True)
class Choice:
    """One text of an answer.

    Attributes:
        index: among all choices of the answer.
        prompt: what it goes on from.
        ends: what ends it.
        request: None writes nothing.
    """

    index: int
    prompt: EncodedPrompt
    ends: Ends
    request: GenerationRequest | None


def ends_of(snapshot: Snapshot, body: OpenAIRequest, *, in_chat: bool) -> Ends:
    """What ends a text: stop strings and ids, the model's own end of text, and in a chat the end of a turn."""
    words, ids = snapshot.tokenizer.stops(body.stop)
    ids |= frozenset(body.stop_token_ids)
    if not body.ignore_eos:
        ids |= {snapshot.decoding.eos_id} | (snapshot.end_ids if in_chat else frozenset())
    return Ends(words, ids)


def choices_of(
    snapshot: Snapshot,
    prompts: Sequence[EncodedPrompt],
    max_tokens: Sequence[int],
    body: OpenAIRequest,
    ends: Ends,
    logprobs: int | None,
) -> tuple[int, list[Choice]]:
    """The choices of an answer, ``n`` for each prompt, and the first one's seed; the next ones' count up from it."""
    seed = secrets.randbelow(2**32) if body.seed is None else body.seed
    choices: list[Choice] = []
    for prompt, most in zip(prompts, max_tokens, strict=True):
        for _ in range(body.n):
            index = len(choices)
            request = GenerationRequest(
                snapshot.decoding,
                prompt.ids,
                most,
                sampling_of(snapshot, body, (seed + index) % _SEEDS),
                # An end is cut here, so that its log probability is told.
                logprobs=logprobs,
                stop=ends.watch(snapshot),
            )
            choices.append(Choice(index, prompt, ends, request if most else None))
    return seed, choices


async def score_all(
    engine: AsyncEngine, snapshot: Snapshot, prompts: Sequence[EncodedPrompt], likeliest: int, deadline: float
) -> list[TextLogprobs | None]:
    """Scores prompts, those without a token excepted; raises as :meth:`AsyncEngine.score`, and then for all.

    As many at once as the engine scores: so the queue holds none of them, however many there are.
    """
    turns = asyncio.Semaphore(engine.engine.limits.scoring_slots)

    async def score(prompt: EncodedPrompt) -> TextLogprobs | None:
        if not prompt.ids:
            return None
        async with turns:
            return await engine.score(ScoringRequest(snapshot.decoding, prompt.ids, likeliest), deadline)

    tasks = [asyncio.create_task(score(prompt)) for prompt in prompts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


class OpenChoices:
    """Choices that the engine has admitted, all of them; :meth:`cancel` ends those that are not over.

    Args:
        choices: those without a request end at once.
        offsets: characters that are before each one's text.
        deadline: of :meth:`AsyncEngine.new_deadline`.

    Raises:
        EngineFullError, GenerationCancelledError: one of them was not admitted, so that none is.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        snapshot: Snapshot,
        choices: Sequence[Choice],
        offsets: Sequence[int],
        deadline: float,
    ) -> None:
        self._choices = choices
        self._texts = [
            ContinuedText(snapshot, choice.ends, offset) for choice, offset in zip(choices, offsets, strict=True)
        ]
        self._streams: dict[int, GenerationStream] = {}
        try:
            for choice in choices:
                if choice.request is not None:
                    self._streams[choice.index] = engine.stream(choice.request, deadline)
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        for stream in self._streams.values():
            stream.cancel()

    async def pieces(self) -> AsyncGenerator[tuple[Choice, TextPiece]]:
        """What steps write, in the order in which they do.

        Raises:
            DeadlineError, GenerationCancelledError, GenerationFailedError: from the engine, of one choice, which ends
                all.
        """
        arrived: asyncio.Queue[tuple[Choice, Written] | Exception] = asyncio.Queue()

        async def pass_on(choice: Choice, stream: GenerationStream) -> None:
            try:
                async for written in stream:
                    arrived.put_nowait((choice, written))
            except Exception as error:
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(pass_on(self._choices[index], stream)) for index, stream in self._streams.items()]
        try:
            for choice in self._choices:
                if choice.request is None:
                    yield choice, TextPiece("", [], [], "length")
            num_open = len(tasks)
            while num_open:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                choice, written = item
                num_open -= written.finish_reason is not None
                yield choice, self._texts[choice.index].push(written)
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
