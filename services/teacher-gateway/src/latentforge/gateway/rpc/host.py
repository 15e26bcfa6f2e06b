"""The teacher as both transports ask for it, from when it is loaded until the gateway stops."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import ParamSpec, TypeVar

import grpc

from latentforge.gateway.rpc.errors import ApiError
from latentforge.gateway.rpc.token_names import TokenNames
from latentforge.gateway.scoring.teacher import Teacher
from latentforge.text.stopping import stoppable

# A teacher is loaded within seconds or minutes; a caller's next try need not wait for the whole of that.
_RETRY_SECONDS = 1.0
# Bounds the memory that texts take while they are tokenised, which is many times their own.
_TOKENISING_AT_ONCE = 2

P = ParamSpec("P")
T = TypeVar("T")


class TeacherHost:
    """Has no teacher until :meth:`open`, and gives none any more once :meth:`drain` was called."""

    def __init__(self) -> None:
        self._teacher: Teacher | None = None
        self._names: TokenNames | None = None
        self._draining = False
        self._calls = 0
        self._tokenising = ThreadPoolExecutor(_TOKENISING_AT_ONCE, thread_name_prefix="tokenise")
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, teacher: Teacher) -> None:
        """It is loaded; calls are answered from now on."""
        self._teacher = teacher
        self._names = TokenNames(teacher.tokenizer, teacher.description.vocab_size)

    @property
    def teacher(self) -> Teacher | None:
        """Whether or not it may be asked."""
        return self._teacher

    @property
    def names(self) -> TokenNames:
        """Of the teacher's ids, within a :meth:`call`."""
        assert self._names is not None
        return self._names

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Teacher]:
        """Around every answer: the teacher, which stays until the answer is given."""
        self._calls += 1
        self._idle.clear()
        try:
            yield self.ready()
        finally:
            self._calls -= 1
            if self._calls == 0:
                self._idle.set()

    def ready(self) -> Teacher:
        """
        Raises:
            ApiError: UNAVAILABLE; it is being loaded, or the gateway shuts down.
        """
        if self._draining:
            raise draining()
        if self._teacher is None:
            raise _unavailable("the teacher is still being loaded; ask again", "TEACHER_LOADING")
        return self._teacher

    async def tokenise(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Runs what makes ids of text, or text of ids, beside the event loop, few at a time.

        When the caller leaves, what has not begun is not begun, and a long text ends with the piece that is encoded.
        """
        context, stopped = contextvars.copy_context(), threading.Event()

        def job() -> T:
            with stoppable(stopped):
                return work(*arguments, **options)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._tokenising, partial(context.run, job))
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def drain(self, seconds: float) -> bool:
        """Refuses new calls and waits for those that run; false if ``seconds`` were not enough."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        finally:
            self._tokenising.shutdown(wait=False, cancel_futures=True)
        return True


def draining() -> ApiError:
    """What calls are answered that come too late."""
    return _unavailable("this gateway is shutting down; ask again, and another one or the next answers", "DRAINING")


def _unavailable(message: str, reason: str) -> ApiError:
    return ApiError(grpc.StatusCode.UNAVAILABLE, message, reason=reason, retry_after=_RETRY_SECONDS)
