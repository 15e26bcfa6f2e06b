"""One call of the backend for a batch, and what its failure means for each of the sequences."""

import logging
from collections.abc import Callable, Sequence

from latentforge.core.logs import log_exception
from latentforge.core.tracing import span
from latentforge.gateway.backends.base import Backend, BackendError, CandidateRows, FailureKind, TokenIds
from latentforge.gateway.scoring.inflight import InFlightSequence
from latentforge.teacher_client.sparse_rows import SparseRows

logger = logging.getLogger(__name__)

# What says of a sequence alone that it is this one that fails, and not the teacher.
_ITS_OWN = (FailureKind.REFUSED, FailureKind.BROKEN)
# Of sequences alone, one after another and none answered: after so many it is the teacher.
_FAILURES_OF_AN_OUTAGE = 2


async def call_backend(
    backend: Backend, batch: Sequence[InFlightSequence], drop: Callable[[InFlightSequence], None]
) -> list[SparseRows | BackendError]:
    """Rows or a failure for each sequence, in order.

    After a failure that one sequence may have caused, each is asked for alone, so that a bad one fails alone. A failure
    that concerns all of them, as of a teacher that is gone, ends that: it would be waited for once a sequence. So do
    two that may be either (a 500) where nothing was answered between them.

    Args:
        drop: given each sequence that is not asked for alone, since nobody waits for it then. Whoever wants it later
            must not find it, or he would be given the batch's failure.
    """
    outcome = await _try(backend, batch)
    if isinstance(outcome, list):
        return outcome
    if len(batch) == 1 or not outcome.one_may_cause:
        return [outcome] * len(batch)
    results: list[SparseRows | BackendError] = []
    unclear = 0
    for sequence in batch:
        if sequence.abandoned:
            drop(sequence)
            results.append(outcome)
            continue
        results += await call_backend(backend, [sequence], drop)
        last = results[-1]
        if not isinstance(last, BackendError):
            unclear = 0
        elif last.kind not in _ITS_OWN:
            unclear += 1
            if not last.one_may_cause or unclear == _FAILURES_OF_AN_OUTAGE:
                return results + [last] * (len(batch) - len(results))
    return results


async def _try(backend: Backend, batch: Sequence[InFlightSequence]) -> list[SparseRows | BackendError] | BackendError:
    tokens = sum(len(sequence.token_ids) for sequence in batch)
    try:
        with span("backend score", {"sequences": len(batch), "tokens": tokens}):
            # Entries for the one who wants most; the others' rows are narrowed.
            answers = await _ask(backend, batch, [s.token_ids for s in batch], max(s.top_k for s in batch))
    except BackendError as error:
        return error
    except Exception as error:
        log_exception(logger, "the backend failed in an unknown way", error)
        return BackendError(f"{type(error).__name__} in the gateway; its log says more")
    if len(answers) != len(batch):
        return BackendError(f"the backend gave {len(answers)} answers for {len(batch)} sequences")
    return [_checked(sequence, rows) for sequence, rows in zip(batch, answers, strict=True)]


async def _ask(
    backend: Backend, batch: Sequence[InFlightSequence], sequences: Sequence[TokenIds], top_k: int
) -> list[CandidateRows]:
    candidates = [sequence.candidates for sequence in batch]
    if any(own is not None for own in candidates):
        return await backend.score_candidates(sequences, top_k, candidates)
    return [CandidateRows(rows, None) for rows in await backend.score(sequences, top_k)]


def _checked(sequence: InFlightSequence, answer: CandidateRows) -> SparseRows | BackendError:
    """The rows; what is said of candidates is left with the sequence."""
    rows = answer.rows
    if sequence.candidates is not None:
        if answer.logprobs is None or answer.logprobs.shape != sequence.candidates.shape:
            return BackendError("the backend did not say what was asked of it about candidates")
        sequence.candidate_logprobs = answer.logprobs
    if len(rows) == len(sequence.token_ids) - 1 and rows.top_k >= sequence.top_k:
        return rows
    given, asked = f"{len(rows)} rows of {rows.top_k} entries", f"{len(sequence.token_ids)} tokens"
    return BackendError(f"the backend gave {given} for {asked} and top_k={sequence.top_k}")
