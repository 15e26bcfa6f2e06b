"""Sparse next-token distributions as arrays, and the bytes that a cache keeps of them."""

import struct
import zlib
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import zstandard
from numpy.typing import NDArray

LogprobDtype = Literal["float16", "float32"]

_MAGIC = b"LFR1"
# magic, flags, top_k, num_rows, first_position, crc32 of the compressed payload
_HEADER = struct.Struct("<4sHHIII")
_FLAG_FLOAT32 = 1
_FLAG_UNMAPPED = 2
# Below this a float16 is subnormal garbage or -inf; no top-k entry that anybody trains on is so improbable.
_FLOAT16_FLOOR = -65504.0


class CorruptRowsError(ValueError):
    """Stored bytes that are not what :func:`pack` wrote."""


@dataclass(frozen=True)
class SparseRows:
    """The teacher's most probable tokens at n consecutive positions; row r is FOR token ``first_position + r``.

    Attributes:
        first_position: position of the token that row 0 predicts.
        ids: uint32 [n, k], most probable first; entries from ``counts[r]`` on mean nothing.
        logprobs: float32 [n, k], nats.
        counts: uint16 [n], valid entries per row.
        realised_logprobs: float32 [n], of the token that is really there.
        realised_ranks: uint32 [n], 1 is the most probable, 0 is unknown.
        tail_mass: float32 [n], 1 minus the sum of the row's probabilities, taken before any rounding.
        unmapped_mass: float32 [n] or None when ids are the backend's own.
    """

    first_position: int
    ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]
    counts: NDArray[np.uint16]
    realised_logprobs: NDArray[np.float32]
    realised_ranks: NDArray[np.uint32]
    tail_mass: NDArray[np.float32]
    unmapped_mass: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, k = self.ids.shape
        for field in fields(self)[2:]:
            array = getattr(self, field.name)
            expected = (n, k) if field.name == "logprobs" else (n,)
            if array is not None and array.shape != expected:
                raise ValueError(f"{field.name} has shape {array.shape}, ids of shape {(n, k)} need {expected}")
        if n and int(self.counts.max()) > k:
            raise ValueError(f"counts holds {int(self.counts.max())}, more than the {k} entries of a row")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[1])

    def narrowed(self, k: int) -> "SparseRows":
        """The same rows with their ``k`` most probable entries; what is cut off goes to the tail.

        Raises:
            ValueError: ``k`` is larger than what is stored.
        """
        if k > self.top_k:
            raise ValueError(f"k={k} asked of rows that hold {self.top_k}")
        if k == self.top_k:
            return self
        cut = np.arange(k, self.top_k)[None, :] < self.counts[:, None]
        mass = np.where(cut, np.exp(self.logprobs[:, k:].astype(np.float64)), 0.0).sum(axis=1)
        return replace(
            self,
            ids=np.ascontiguousarray(self.ids[:, :k]),
            logprobs=np.ascontiguousarray(self.logprobs[:, :k]),
            counts=np.minimum(self.counts, k).astype(np.uint16),
            tail_mass=np.clip(self.tail_mass + mass, 0.0, 1.0).astype(np.float32),
        )


def logprobs_to_bytes(logprobs: NDArray[np.float32], dtype: LogprobDtype) -> bytes:
    """Little-endian bytes; −inf becomes float16's lowest finite value."""
    if dtype == "float16":
        return np.maximum(logprobs, _FLOAT16_FLOOR).astype("<f2").tobytes()
    return logprobs.astype("<f4", copy=False).tobytes()


def logprobs_from_bytes(data: bytes, dtype: LogprobDtype, shape: tuple[int, int]) -> NDArray[np.float32]:
    stored = np.frombuffer(data, dtype="<f2" if dtype == "float16" else "<f4")
    return stored.reshape(shape).astype(np.float32, copy=False)


def pack(rows: SparseRows, dtype: LogprobDtype = "float16") -> bytes:
    """A cache's value: a header, then the zstd-compressed arrays one after another."""
    parts = [
        rows.ids.astype("<u4", copy=False).tobytes(),
        logprobs_to_bytes(rows.logprobs, dtype),
        rows.counts.astype("<u2", copy=False).tobytes(),
        rows.realised_logprobs.astype("<f4", copy=False).tobytes(),
        rows.realised_ranks.astype("<u4", copy=False).tobytes(),
        rows.tail_mass.astype("<f4", copy=False).tobytes(),
    ]
    flags = _FLAG_FLOAT32 if dtype == "float32" else 0
    if rows.unmapped_mass is not None:
        flags |= _FLAG_UNMAPPED
        parts.append(rows.unmapped_mass.astype("<f4", copy=False).tobytes())
    payload = zstandard.ZstdCompressor(level=3).compress(b"".join(parts))
    header = _HEADER.pack(_MAGIC, flags, rows.top_k, len(rows), rows.first_position, zlib.crc32(payload))
    return header + payload


def unpack(data: bytes) -> SparseRows:
    """The reverse of :func:`pack`.

    Raises:
        CorruptRowsError: the header, the checksum or the length is wrong.
    """
    if len(data) < _HEADER.size:
        raise CorruptRowsError(f"{len(data)} bytes are shorter than the header")
    magic, flags, k, n, first_position, crc = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if magic != _MAGIC:
        raise CorruptRowsError(f"the format is {magic!r}, not {_MAGIC!r}")
    if zlib.crc32(payload) != crc:
        raise CorruptRowsError("the checksum is wrong")
    dtype: LogprobDtype = "float32" if flags & _FLAG_FLOAT32 else "float16"
    sizes = [4 * n * k, (4 if dtype == "float32" else 2) * n * k, 2 * n, 4 * n, 4 * n, 4 * n]
    if flags & _FLAG_UNMAPPED:
        sizes.append(4 * n)
    try:
        plain = zstandard.ZstdDecompressor().decompress(payload, max_output_size=sum(sizes) + 1)
    except zstandard.ZstdError as error:
        raise CorruptRowsError(f"the payload does not decompress: {error}") from None
    if len(plain) != sum(sizes):
        raise CorruptRowsError(f"the payload holds {len(plain)} bytes, the header says {sum(sizes)}")
    starts = np.cumsum([0, *sizes])
    piece = [plain[a:b] for a, b in pairwise(starts)]
    try:
        return SparseRows(
            first_position=first_position,
            ids=np.frombuffer(piece[0], "<u4").reshape(n, k),
            logprobs=logprobs_from_bytes(piece[1], dtype, (n, k)),
            counts=np.frombuffer(piece[2], "<u2"),
            realised_logprobs=np.frombuffer(piece[3], "<f4"),
            realised_ranks=np.frombuffer(piece[4], "<u4"),
            tail_mass=np.frombuffer(piece[5], "<f4"),
            unmapped_mass=np.frombuffer(piece[6], "<f4") if flags & _FLAG_UNMAPPED else None,
        )
    except ValueError as error:
        raise CorruptRowsError(str(error)) from None
