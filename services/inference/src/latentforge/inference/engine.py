"""The engine for asyncio: its loop runs in a thread, and the event loop is woken once an iteration."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TypeVar

from latentforge.inference.operation.text_timings import note_timings
from latentforge.model.decoding.batch import BatchDecoding, TextLogprobs
from latentforge.model.engine.engine import Engine
from latentforge.model.engine.errors import DeadlineError, EngineFullError, GenerationCancelledError
from latentforge.model.engine.limits import EngineLimits
from latentforge.model.engine.observer import EngineObserver
from latentforge.model.engine.offline import GenerationResult, collected
from latentforge.model.engine.requests import GenerationRequest, ScoringRequest, Written
from latentforge.model.engine.thread import EngineThread
from latentforge.model.engine.ticket import EngineEvent
from latentforge.model.engine.timings import Timings

T = TypeVar("T")

_TOKENIZER_THREADS = 2
# Tokenising so little takes less time, some 0.1 ms, than handing it to a thread and being woken.
_SHORT_CHARACTERS = 1024
_SETTINGS = {"queue_limit": "INFERENCE_QUEUE_LIMIT", "queue_tokens": "INFERENCE_QUEUE_TOKENS"}


class AsyncEngine:
    """Streams generations and answers scorings; for one event loop.

    Attributes:
        engine: steps the texts; its load may be read at any time.
        preparing: requests whose texts are being tokenised, or wait to be.
    """

    def __init__(self, limits: EngineLimits, observer: EngineObserver | None = None) -> None:
        self.engine = Engine(limits, observer, self._wake)
        self.preparing = 0
        self._thread = EngineThread(self.engine)
        self._tokenizers = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenise")
        # Streams that were told something in this iteration.
        self._told: list[_Inbox] = []

    def start(self) -> None:
        """Starts the loop's thread."""
        self._thread.start()

    @property
    def running(self) -> int:
        return self.engine.running

    @property
    def queued(self) -> int:
        """Requests that have not begun, those whose texts are still being tokenised among them."""
        return self.engine.queued + self.preparing

    def new_deadline(self) -> float:
        """For a request that arrives now: until when it may take, of the monotonic clock."""
        return time.monotonic() + self.engine.limits.request_seconds

    async def prepare(
        self,
        decoding: BatchDecoding,
        work: Callable[[], T],
        deadline: float | None = None,
        *,
        num_characters: int = _SHORT_CHARACTERS + 1,
    ) -> T:
        """Does what must be done before a request can be made, off the event loop: tokenising its text.

        A full engine refuses before that. A bounded number of texts are tokenised at once; the others are queued.

        Args:
            decoding: what the request will be bound to.
            work: run in a thread, unless the text is short; what it raises is raised.
            deadline: from :meth:`new_deadline`; a new one by default.
            num_characters: of the text; taken for long by default.

        Raises:
            EngineFullError: too many requests are queued.
            DeadlineError: it took longer than a request may.
            GenerationCancelledError: the engine takes no more requests.
        """
        deadline = self.new_deadline() if deadline is None else deadline
        with _settings_named():
            self.engine.check_room(decoding, self.preparing)
            if num_characters <= _SHORT_CHARACTERS:
                return work()
            self.preparing += 1
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    return await asyncio.get_running_loop().run_in_executor(self._tokenizers, work)
            except TimeoutError:
                raise DeadlineError("the prompt was not tokenised in the time of its request; try again") from None
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not this task was cancelled but the work, by close().
                raise GenerationCancelledError("the engine was shut down") from None
            finally:
                self.preparing -= 1

    def stream(self, request: GenerationRequest, deadline: float | None = None) -> "GenerationStream":
        """Submits a request; see :class:`GenerationStream`.

        Raises:
            EngineFullError: too many requests, or tokens of requests, are queued.
            GenerationCancelledError: the engine takes no more requests.
        """
        return GenerationStream(self._submit(request, deadline))

    async def generate(self, request: GenerationRequest, deadline: float | None = None) -> GenerationResult:
        """All that is written for a request; raises as :meth:`stream` and its iteration."""
        async with GenerationStream(self._submit(request, deadline, at_end=True)) as stream:
            return collected([written async for written in stream], stream.timings)

    async def score(self, request: ScoringRequest, deadline: float | None = None) -> TextLogprobs:
        """A text's log probabilities; raises as :meth:`generate`. Cancelling the task cancels the request."""
        inbox = self._submit(request, deadline)
        try:
            event = await inbox.next()
        finally:
            inbox.cancel()
            note_timings(inbox.timings)
        assert isinstance(event, TextLogprobs)
        return event

    def close(self) -> None:
        """Cancels all requests, tells everybody, and waits for the thread."""
        self._thread.close()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, request: GenerationRequest | ScoringRequest, deadline: float | None, *, at_end: bool = False
    ) -> "_Inbox":
        """``at_end`` wakes the reader for the last event alone, who then finds all of them."""
        inbox = _Inbox(asyncio.get_running_loop())

        def listen(event: EngineEvent) -> None:
            inbox.events.append(event)
            if not (at_end and isinstance(event, Written) and event.finish_reason is None):
                self._told.append(inbox)

        seconds = None if deadline is None else deadline - time.monotonic()
        with _settings_named():
            ticket = self.engine.submit(request, listen, seconds)
        inbox.cancel, inbox.timings = ticket.cancel, ticket.timings
        return inbox

    def _wake(self) -> None:
        """In the loop's thread, after each iteration: one call into the event loop for all streams."""
        if self._told:
            told, self._told = self._told, []
            # Closed event loops have no readers any more.
            with suppress(RuntimeError):
                told[0].loop.call_soon_threadsafe(_signal, told)


class GenerationStream:
    """What is written for one request, an item for each step; the last one has a ``finish_reason``.

    Leaving the ``async with``, cancelling the task that reads, :meth:`cancel` and letting go of it all cancel the
    request; its slot is free within a step.
    """

    def __init__(self, inbox: "_Inbox") -> None:
        self._inbox = inbox
        self._is_over = False

    @property
    def timings(self) -> Timings:
        """Complete once the last item is there."""
        return self._inbox.timings

    def __aiter__(self) -> "GenerationStream":
        return self

    async def __anext__(self) -> Written:
        """
        Raises:
            DeadlineError: it took longer than a request may.
            GenerationCancelledError: the engine was closed.
            GenerationFailedError: the model failed.
            ValueError: the decoding refuses the request.
        """
        if self._is_over:
            raise StopAsyncIteration
        try:
            event = await self._inbox.next()
        except BaseException:
            self.cancel()
            raise
        assert isinstance(event, Written)
        if event.finish_reason is not None:
            self._is_over = True
            note_timings(self.timings)
        return event

    def cancel(self) -> None:
        if not self._is_over:
            self._is_over = True
            note_timings(self.timings)
        self._inbox.cancel()

    async def __aenter__(self) -> "GenerationStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        self._inbox.cancel()


class _Inbox:
    """What the engine's thread told, for one reader in the event loop."""

    cancel: Callable[[], None]
    timings: Timings

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.events: deque[EngineEvent] = deque()
        self.arrived = asyncio.Event()

    async def next(self) -> Written | TextLogprobs:
        while not self.events:
            self.arrived.clear()
            await self.arrived.wait()
        event = self.events.popleft()
        if isinstance(event, Exception):
            with _settings_named():
                raise event
        return event


def _signal(told: list[_Inbox]) -> None:
    for inbox in told:
        inbox.arrived.set()


@contextmanager
def _settings_named() -> Iterator[None]:
    """Says in the engine's refusals which setting is to be changed."""
    try:
        yield
    except EngineFullError as error:
        message = error.message.replace(error.limit, _SETTINGS[error.limit])
        raise EngineFullError(error.limit, message, error.retry_after) from None
    except DeadlineError as error:
        raise DeadlineError(f"{error} or raise INFERENCE_REQUEST_TIMEOUT") from None
