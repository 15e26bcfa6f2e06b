"""Kept rows in place of a gateway's: what a run with ``teacher.targets_from`` asks."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import grpc
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentforge.teacher_client.errors import TeacherError
from latentforge.teacher_client.sparse_rows import (
    LogprobDtype,
    SparseRows,
    logprobs_from_bytes,
    logprobs_to_bytes,
)
from latentforge.trainer.kept.folder import KeptFolder
from latentforge.trainer.run.waiting import Waiting
from latentforge.trainer.teacher.rows import Answer, CacheCount


class KeptRows:
    """Rows from folders, read some batches ahead in a thread; a sequence that none of them holds has none.

    Args:
        folders: looked through in this order.
        top_k: entries per row; what folders hold beyond goes to the tail.
        dtype: that log-probabilities are rounded to, where a folder has them finer.
        waiting: how reading is waited for.

    Attributes:
        cache: sequences asked for, those that were found as hits.
    """

    def __init__(self, folders: Sequence[KeptFolder], top_k: int, dtype: LogprobDtype, waiting: Waiting) -> None:
        self._folders, self._top_k, self._dtype, self._waiting = folders, top_k, dtype, waiting
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="kept-rows")
        self.cache = CacheCount()

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def ask(self, sequences: Sequence[Tensor]) -> Future[list[Answer]]:
        ids = [s.numpy() for s in sequences]
        return self._reader.submit(lambda: [self._answer(i) for i in ids])

    def take(self, asked: Future[list[Answer]]) -> list[Answer]:
        answers = self._waiting.wait(asked)
        # What was read ahead and not taken is read again by a run that resumes.
        for answer in answers:
            self.cache.sequences += 1
            if isinstance(answer, SparseRows) and len(answer):
                self.cache.hits += 1
                self.cache.rows += len(answer)
                self.cache.rows_from_cache += len(answer)
        return answers

    def __contains__(self, ids: NDArray[np.int64]) -> bool:
        """Whether there are rows of a sequence, ids [L]; they are not read."""
        return any(ids in folder for folder in self._folders)

    def digest(self) -> str:
        """Tells these folders from others, wherever they lie."""
        return hashlib.sha256(" ".join(folder.digest() for folder in self._folders).encode()).hexdigest()

    def describe(self) -> str:
        """What there is, and of which data, for an error."""
        parts = []
        for folder in self._folders:
            data = [part.data for part in folder.manifest.splits.values()]
            of = {f"{d.get('source')} in sequences of {d.get('sequence_length')}" for d in data}
            parts.append(f"{folder.folder} has rows of {' and '.join(sorted(of))}")
        return ", ".join(parts) + ", but"

    def _answer(self, ids: NDArray[np.int64]) -> Answer:
        for folder in self._folders:
            kept = folder.find(ids)
            if kept is None:
                continue
            if kept.error is not None:
                return TeacherError(grpc.StatusCode.INTERNAL, kept.error)
            return as_asked(kept.rows, self._top_k, self._dtype)
        return SparseRows.none(self._top_k)


def as_asked(rows: SparseRows, top_k: int, dtype: LogprobDtype) -> SparseRows:
    """Kept rows as a gateway would have sent them: with ``top_k`` entries, log-probabilities rounded to ``dtype``."""
    rows = rows.narrowed(top_k)
    if dtype == "float32":
        return rows
    num_rows, width = rows.logprobs.shape
    rounded = logprobs_to_bytes(rows.logprobs, "float16")
    return replace(rows, logprobs=logprobs_from_bytes(rounded, "float16", (num_rows, width)))
