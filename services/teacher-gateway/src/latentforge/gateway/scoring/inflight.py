"""Sequences on their way through the cache and the backend.

In-flight deduplication: while a sequence is on its way, whoever asks for it too waits for the same
:class:`InFlightSequence` instead of beginning another.
"""

import asyncio
import contextvars
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import BackendError, CandidateIds, FailureKind, TokenIds
from latentforge.gateway.scoring.callers import Caller, current_caller
from latentforge.teacher_client.sparse_rows import LogprobDtype, PackedRows, SparseRows


@dataclass(frozen=True)
class ScoredRows:
    """Rows of one sequence, and float32 [rows, candidates] where somebody asked about candidates.

    ``joined``: what the teacher computed counts for another question, which asked for the same at the same time.
    """

    rows: SparseRows | PackedRows
    cache_hit: bool
    candidate_logprobs: NDArray[np.float32] | None = None
    joined: bool = False


class QueueFullError(BackendError):
    """The gateway has as much to do as it may; later it works."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, FailureKind.BUSY, retry_after=retry_after)


@dataclass(eq=False)
class InFlightSequence:
    """A sequence on its way through cache and backend, for everybody who waits for it.

    ``answer`` is set once: to rows, to a failure, or cancelled when nobody waited any more.
    """

    key: bytes
    token_ids: TokenIds
    top_k: int
    dtype: LogprobDtype
    # What else is asked about; such a sequence is neither looked up nor kept.
    candidates: CandidateIds | None = None
    answer: asyncio.Future[ScoredRows] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    # How many questions of each caller wait for it.
    waiters: Counter[str] = field(default_factory=Counter)
    # Those who asked for it and have not left, by name: it comes with the first turn of any of them.
    callers: dict[str, Caller] = field(default_factory=lambda: {current_caller().name: current_caller()})
    # Where the first who asked is answered: what is done for the sequence is told in that call's log and trace.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    # Somebody wants the rows packed.
    packed: bool = False
    # The backend's work on it, once that has begun.
    call: "BackendCall | None" = None
    # One of the questions answers for what the teacher computed.
    counted: bool = False
    # When it was queued for the backend, of time.perf_counter().
    queued_at: float = 0.0
    # What the backend said of the candidates, from when it is done.
    candidate_logprobs: NDArray[np.float32] | None = None

    @property
    def abandoned(self) -> bool:
        return not self.waiters.total()

    def give(self, scored: ScoredRows) -> None:
        """Unless it was answered or dropped before."""
        if not self.answer.done():
            self.answer.set_result(scored)

    def fail(self, error: BackendError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)
            # Callers who are gone leave nobody to retrieve it, which asyncio would complain about.
            self.answer.exception()


class InFlightTable:
    """The sequences in flight, by key.

    A key is here from the first question until its rows are in the cache's hands, it failed or it was dropped. Whoever
    asks meanwhile finds it, so nothing is computed twice, not even between an answer and its write. And what is here
    and has its answer has rows: failures and drops leave in the step that sets them, or the next who asks would be
    given another's failure.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, InFlightSequence] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: bytes) -> InFlightSequence | None:
        return self._by_key.get(key)

    def add(self, sequence: InFlightSequence) -> None:
        """Takes the place of one with fewer entries, which its own callers still wait for."""
        self._by_key[sequence.key] = sequence

    def remove(self, sequence: InFlightSequence) -> None:
        # One that asked for more entries may have taken its place.
        if self._by_key.get(sequence.key) is sequence:
            del self._by_key[sequence.key]

    def fail(self, sequence: InFlightSequence, error: BackendError) -> None:
        sequence.fail(error)
        self.remove(sequence)

    def drop(self, sequence: InFlightSequence) -> None:
        """Nobody waits for it any more."""
        sequence.answer.cancel()
        self.remove(sequence)


@dataclass(eq=False)
class BackendCall:
    """One call of the backend, for a batch."""

    batch: Sequence[InFlightSequence]
    task: asyncio.Task[Any]

    def stop_if_abandoned(self) -> bool:
        """Cancels the call when nobody waits for any of its sequences; says whether it did."""
        # One caller who stays keeps the whole batch: a backend cannot drop a part of a forward pass.
        if self.task.done() or not all(sequence.abandoned for sequence in self.batch):
            return False
        self.task.cancel()
        return True
