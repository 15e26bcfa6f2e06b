"""The connection to a gateway: a client in a thread of its own, patient with a lost one."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from pydantic import SecretStr
from tenacity import AsyncRetrying, RetryCallState

from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.client import TeacherClient
from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.retries import pause, retrying_options
from latentforge.trainer.config.settings import TrainerSettings
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.waiting import Waiting

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 30.0
# More than a client tries again by itself: a run is worth waiting for a teacher that is too slow just now.
_RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

# Another teacher than the one that was met: on the gateway's side, or at the server that it asks.
_CHANGED = {"REVISION_MISMATCH", "TEACHER_CHANGED"}


class TeacherLostError(TrainerError):
    """The teacher that was met is gone: its gateway stayed away longer than the patience, or see below."""


class TeacherChangedError(TeacherLostError):
    """The gateway has another teacher now, whose rows must not be learnt beside those of the first."""


class TeacherLink:
    """A gateway; use as a context manager.

    The client lives in a thread of its own with an event loop, so that requests go on while a step computes.

    Args:
        target: host:port of the gateway.
        patience: seconds that a lost gateway is waited for.
        stop: asked while waiting; True raises Interrupted.
        api_key: the gateway's, if it has one.
        tls_ca: PEM file of the root certificate of a gateway with TLS.

    Attributes:
        waiting: has :meth:`wait` waited so far.
        on_lost: told in a line what is waited for and for how long, again and again; None when it is back. Called in
            the link's thread.
        revision: of the teacher that :meth:`teacher` met, which every later answer must be of; empty before.
    """

    def __init__(
        self,
        target: str,
        *,
        patience: float = 300.0,
        stop: Callable[[], bool] = lambda: False,
        api_key: SecretStr | None = None,
        tls_ca: Path | None = None,
    ) -> None:
        self.target, self.stop = target, stop
        self.waiting = Waiting(stop)
        self._patience = patience
        self._api_key, self._tls_ca = api_key, tls_ca
        self._lost_since: float | None = None
        self._said = 0.0
        self.revision = ""
        self.on_lost: Callable[[str | None], None] = lambda line: None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teacher-link", daemon=True)
        self._thread.start()
        try:
            self.client = asyncio.run_coroutine_threadsafe(self._connect(), self._loop).result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
        self._end()

    @classmethod
    def of(cls, settings: TrainerSettings, stop: Callable[[], bool], target: str | None = None) -> Self:
        """To the gateway that the environment names, or with its key to ``target``."""
        return cls(
            target or settings.gateway_target,
            patience=settings.trainer_gateway_patience_seconds,
            stop=stop,
            api_key=settings.gateway_api_key,
            tls_ca=settings.gateway_tls_ca,
        )

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self) -> TeacherClient:
        # Trying again is done here, where it ends when the run is asked to stop.
        return TeacherClient(self.target, api_key=self._api_key, tls_ca=self._tls_ca, attempts=1)

    async def _disconnect(self) -> None:
        # What nobody waits for any more must not outlive the loop.
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.close()

    def teacher(self, fingerprint: str, vocab_size: int | None, top_k: int) -> pb.GetTeacherResponse:
        """Asks what the teacher is, and refuses one that :func:`check_teacher` refuses."""
        answer = self.wait(self.submit(self.retried(lambda: self.client.teacher())))
        check_teacher(answer, f"at {self.target}", fingerprint, vocab_size, top_k)
        self.revision = answer.revision
        return answer

    def cache_stats(self) -> pb.GetCacheStatsResponse:
        """The gateway's own counts."""
        return self.wait(self.submit(self.retried(lambda: self.client.cache_stats())))

    def submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine in the link's thread."""
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def wait(self, future: Future[T]) -> T:
        """Waits for what was submitted.

        Raises:
            Interrupted: ``stop`` said so meanwhile.
        """
        return self.waiting.wait(future)

    async def retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """Calls again, more and more seldom, while the gateway is lost, and for the last time when the patience ends.

        Raises:
            TrainerError: the teacher refused; the cause is the TeacherError.
            TeacherLostError: it stayed away longer than the patience, or (TeacherChangedError) is another one now.
        """

        async def once() -> T:
            # tenacity awaits only what it sees to be a coroutine function.
            return await call()

        options = retrying_options(self._patience_ended, _is_loss, self._pause)
        try:
            answer: T = await AsyncRetrying(**options, after=self._lost)(once)
        except TeacherError as error:
            if error.reason in _CHANGED:
                raise TeacherChangedError(
                    f"the teacher at {self.target} is no longer the one that this run met: {error.message}. What was "
                    "done is saved; give the gateway its first teacher and run the same command to resume, or start "
                    "anew with --fresh or --run NAME"
                ) from error
            if not _is_loss(error):
                raise TrainerError(f"the teacher at {self.target} refused: {error}") from error
            raise TeacherLostError(
                f"the teacher stayed away for {self._seconds_lost():.0f} s: {error.message}. "
                "What was done is saved; start the gateway and run the same command to resume"
            ) from None
        if self._lost_since is not None:
            logger.warning("teacher back after %.0f s", self._seconds_lost())
            self._lost_since = None
            self.on_lost(None)
        return answer

    def _lost(self, state: RetryCallState) -> None:
        """Notes when the gateway was lost; whichever call finds it again ends that for all of them."""
        now = time.monotonic()
        assert state.outcome is not None
        error = state.outcome.exception()
        if self._lost_since is None:
            self._lost_since = self._said = now
            logger.warning("teacher lost (%s); trying again for %.0f s", error, self._patience)
        seconds = now - self._lost_since
        line = f"waiting for the teacher at {self.target} for {seconds:.0f} s, at most {self._patience:.0f} s"
        if now - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = now
            logger.warning("%s: %s", line, error)
        self.on_lost(line)

    def _pause(self, state: RetryCallState) -> float:
        """As every client's, but no longer than the patience: a gateway may be back before it said it would be."""
        return max(0.0, min(pause(state), self._patience - self._seconds_lost()))

    def _patience_ended(self, state: RetryCallState) -> bool:
        return self._seconds_lost() >= self._patience

    def _seconds_lost(self) -> float:
        return 0.0 if self._lost_since is None else time.monotonic() - self._lost_since


def check_teacher(
    answer: pb.GetTeacherResponse, place: str, fingerprint: str, vocab_size: int | None, top_k: int
) -> None:
    """Refuses a teacher that a run cannot learn from, however it is asked.

    Args:
        answer: what it says of itself.
        place: where it is, or its rows are, for the error.
        fingerprint: of the tokenizer that packed the data.
        vocab_size: ids of the models; None where there are none.
        top_k: entries per row.

    Raises:
        TrainerError: another tokenizer (both fingerprints), too small a max_top_k, or too wide an output layer.
    """
    who = f"the teacher {answer.model} ({answer.backend}) {place}"
    if answer.tokenizer_fingerprint != fingerprint:
        raise TrainerError(
            f"{who} has the tokenizer fingerprint {answer.tokenizer_fingerprint}, the data was packed with "
            f"{fingerprint}; "
            "set TOKENIZER_PATH to the teacher's tokenizer and pack again"
        )
    if answer.max_top_k < top_k:
        raise TrainerError(f"{who} gives at most {answer.max_top_k} entries a row; teacher.top_k={top_k} asks for more")
    if vocab_size is not None and answer.vocab_size > vocab_size:
        raise TrainerError(
            f"{who} has an output layer of {answer.vocab_size} ids, the models have {vocab_size}; "
            f"set the recipe's vocab_size to {answer.vocab_size}"
        )


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, TeacherError) and error.code in _RETRIED
