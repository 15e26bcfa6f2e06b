"""What a cache is to the rest of the gateway, and what an entry is filed under."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentforge.gateway.backends.base import CandidateIds, TeacherDescription, TokenIds
from latentforge.teacher.v1 import teacher_pb2 as pb
from latentforge.teacher_client.sparse_rows import LogprobDtype


class CacheError(RuntimeError):
    """A read or write that the store did not do, and why. The gateway works without it."""


class WritesRefusedError(CacheError):
    """The store answers, and takes no entries: a replica, one that is full, one that cannot save."""


@dataclass(frozen=True)
class StoreStats:
    """Entries and their size in bytes, as the store counts them."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class Patience:
    """Seconds that are waited for a lookup: never less than ``least``, never more than ``most``."""

    least: float
    most: float


# Of an entry that is written to see whether one can be; no key of rows is as short.
CHECK_KEY = b"check"


class Cache(Protocol):
    """Bytes under keys. All but ``used`` and ``close`` raise CacheError when the store fails or is too slow."""

    @property
    def kind(self) -> str:
        """sqlite, redis, redis-cluster or none."""

    @property
    def patience(self) -> Patience:
        """How long its lookups may take; several times what they take when all is well."""

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def used(self, key: bytes) -> None:
        """Told that an entry was answered from elsewhere, so that a store that fills up keeps what is asked for."""

    async def put_many(self, entries: Mapping[bytes, bytes]) -> None: ...

    async def check(self) -> None:
        """Writes an entry and removes it: whether the store takes any just now."""

    async def stats(self) -> StoreStats: ...

    async def clear(self) -> int:
        """Removes every entry of the gateway's; returns how many there were."""

    async def close(self) -> None: ...


class KeyMaker:
    """Keys of one teacher's rows: whatever changes a row's numbers or its context changes the key.

    Entries per row are not in it, since more of them serve fewer.
    """

    def __init__(self, teacher: TeacherDescription) -> None:
        self._prefix = {dtype: self._prefix_of(teacher, dtype) for dtype in ("float16", "float32")}

    def key(self, token_ids: TokenIds, dtype: LogprobDtype, candidates: CandidateIds | None = None) -> bytes:
        """64 bytes; with candidates 96, by which nothing is kept: it tells what is in flight apart.

        Args:
            dtype: what the entry's log-probabilities are rounded to.
        """
        key = self._prefix[dtype] + _digest(token_ids)
        return key if candidates is None else key + _digest(np.array(candidates.shape), candidates)

    @staticmethod
    def _prefix_of(teacher: TeacherDescription, dtype: str) -> bytes:
        parts = (
            teacher.model,
            teacher.revision,
            teacher.quantization,
            teacher.tokenizer_fingerprint,
            pb.LogprobsMode.Name(teacher.logprobs_mode),
            f"score {teacher.compute_dtype} {dtype}",
        )
        # Lengths keep the parts apart whatever they contain.
        return hashlib.sha256(b"".join(f"{len(p.encode())}:{p}".encode() for p in parts)).digest()


def _digest(*arrays: NDArray[Any]) -> bytes:
    """32 bytes of integers below 2³²."""
    digest = hashlib.blake2b(digest_size=32)
    for array in arrays:
        digest.update(array.astype("<u4", copy=False).tobytes())
    return digest.digest()
