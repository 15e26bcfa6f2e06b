"""Runs generation in a bounded pool of threads. Knows ids only."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from latentforge.model.engine.errors import DeadlineError, EngineFullError, GenerationCancelledError
from latentforge.model.generation import ChunkGenerator, FinishReason, TokenGenerator
from latentforge.model.sampling import SamplingParams

NO_EOS = -1


@dataclass(frozen=True)
class GenerationJob:
    """One request, bound to one snapshot's generator.

    Attributes:
        generator: writes the ids.
        prompt_ids: what it continues.
        max_tokens: at most so many ids are written.
        params: how they are drawn.
        eos_id: ends the text; None is the model's own, ``NO_EOS`` is none.
        stop: asked after every step with all ids so far; True ends with finish reason "stop".
    """

    generator: ChunkGenerator | TokenGenerator
    prompt_ids: Sequence[int]
    max_tokens: int
    params: SamplingParams
    eos_id: int | None = None
    stop: Callable[[list[int]], bool] | None = None


@dataclass(frozen=True)
class PooledResult:
    """What a job wrote.

    Attributes:
        token_ids: without the end-of-text id.
        finish_reason: why it ended.
        steps: latent steps; tokens, where a token-level model wrote them.
        seconds: from the first step's begin to the last one's end, time in the queue not counted.
    """

    token_ids: list[int]
    finish_reason: FinishReason
    steps: int
    seconds: float


def generate_ids(job: GenerationJob, cancel: Callable[[], bool] | None = None) -> PooledResult:
    """Runs a job to its end in the calling thread.

    Raises:
        ValueError: the generator refuses the request.
    """
    start = time.perf_counter()
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    steps = 0
    for chunk in job.generator.generate(job.prompt_ids, job.max_tokens, job.params, job.eos_id, cancel):
        token_ids += chunk.token_ids
        finish_reason = chunk.finish_reason
        steps += finish_reason != "cancelled"
        if job.stop is not None and finish_reason != "cancelled" and job.stop(token_ids):
            finish_reason = "stop"
            break
    assert finish_reason is not None
    return PooledResult(token_ids, finish_reason, steps, time.perf_counter() - start)


@dataclass
class _Ticket:
    """A job's place in the engine."""

    deadline: float
    abandoned: threading.Event = field(default_factory=threading.Event)

    def is_over(self) -> bool:
        return self.abandoned.is_set() or time.monotonic() > self.deadline


class GenerationPool:
    """Admits jobs up to a bound, and runs ``max_concurrent`` of them at a time.

    Args:
        max_concurrent: jobs that run at the same time.
        queue_limit: jobs that may be queued beside those.
        request_timeout: seconds from admission to the end of a job.
    """

    def __init__(self, *, max_concurrent: int, queue_limit: int, request_timeout: float) -> None:
        self.max_concurrent = max_concurrent
        self.queue_limit = queue_limit
        self.request_timeout = request_timeout
        self._pool = ThreadPoolExecutor(max_concurrent, thread_name_prefix="generate")
        self._lock = threading.Lock()
        self._open: dict[int, _Ticket] = {}
        self._running = 0
        self._mean_seconds = 1.0

    @property
    def running(self) -> int:
        """Jobs that generate now."""
        return self._running

    @property
    def queued(self) -> int:
        """Jobs that are admitted and have not begun."""
        with self._lock:
            return len(self._open) - self._running

    @property
    def is_full(self) -> bool:
        """Whether the next job would be refused."""
        with self._lock:
            return len(self._open) >= self.max_concurrent + self.queue_limit

    async def generate(self, job: GenerationJob) -> PooledResult:
        """Runs a job in the pool; cancelling the awaiting task cancels the job before its next step.

        Raises:
            EngineFullError: too many jobs are running or queued.
            DeadlineError: the job was not done in ``request_timeout`` seconds.
            GenerationCancelledError: the engine was closed.
            ValueError: the generator refuses the request.
        """
        ticket = _Ticket(time.monotonic() + self.request_timeout)
        future = self._admit(job, ticket)
        try:
            generation = await asyncio.wrap_future(future)
        finally:
            ticket.abandoned.set()
        if generation.finish_reason == "cancelled":
            if time.monotonic() > ticket.deadline:
                raise DeadlineError(
                    f"{len(generation.token_ids)} of at most {job.max_tokens} tokens were written in "
                    f"{self.request_timeout:g} s, the longest that a request may take; "
                    "ask for fewer with max_tokens or raise INFERENCE_REQUEST_TIMEOUT"
                )
            raise GenerationCancelledError("the server is shutting down")
        return generation

    def close(self) -> None:
        """Cancels what is running or queued, and waits for the threads."""
        with self._lock:
            for ticket in self._open.values():
                ticket.abandoned.set()
        # Queued jobs are run too, and end before their first step, so that whoever awaits them is told.
        self._pool.shutdown(wait=True)

    def _admit(self, job: GenerationJob, ticket: _Ticket) -> "Future[PooledResult]":
        with self._lock:
            pending = len(self._open)
            if pending >= self.max_concurrent + self.queue_limit:
                rounds = 1 + (pending - self.max_concurrent) // self.max_concurrent
                raise EngineFullError(
                    "queue_limit",
                    f"{pending} requests are running or queued",
                    max(1, round(self._mean_seconds * rounds)),
                )
            self._open[id(ticket)] = ticket
        try:
            future = self._pool.submit(self._run, job, ticket)
        except RuntimeError:
            self._leave(ticket)
            raise GenerationCancelledError("the server is shutting down") from None
        future.add_done_callback(lambda _: self._leave(ticket))
        return future

    def _run(self, job: GenerationJob, ticket: _Ticket) -> PooledResult:
        with self._lock:
            self._running += 1
        try:
            generation = generate_ids(job, ticket.is_over)
        finally:
            with self._lock:
                self._running -= 1
        self._mean_seconds += 0.1 * (generation.seconds - self._mean_seconds)
        return generation

    def _leave(self, ticket: _Ticket) -> None:
        with self._lock:
            self._open.pop(id(ticket), None)
