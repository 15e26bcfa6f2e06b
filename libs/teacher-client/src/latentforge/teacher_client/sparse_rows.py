"""Sparse next-token distributions as arrays, and the bytes that a cache keeps of them."""

import struct
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np
import zstandard
from numpy.typing import NDArray

LogprobDtype = Literal["float16", "float32"]

_MAGIC = b"LFR2"
# magic, flags, top_k, num_rows, first_position; then crc32 of these and of the compressed payload
_SHAPE = struct.Struct("<4sHHII")
_HEADER = struct.Struct("<4sHHIII")
_FLAG_FLOAT32 = 1
_FLAG_UNMAPPED = 2
_MATRICES = ("ids", "logprobs")
# With byte planes, level 1 is within 2% of level 3's size and a third faster; level 6 takes four times as long.
_ZSTD_LEVEL = 1
# Of a zstd frame, its content's size included.
_FRAME_HEADER_BYTES = 18
# Below this a float16 is subnormal garbage or -inf; no top-k entry that anybody trains on is so improbable.
_FLOAT16_FLOOR = -65504.0


class CorruptRowsError(ValueError):
    """Stored bytes that are not what :func:`pack` wrote."""


class _Zstd(threading.local):
    """Contexts are worth keeping, and no two threads may use one."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd = _Zstd()


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

    @classmethod
    def none(cls, top_k: int) -> Self:
        """A block of no rows: what a sequence has that a teacher was not asked about, or failed on."""
        empty = np.zeros(0, np.float32)
        shape = (0, top_k)
        return cls(
            first_position=0,
            ids=np.zeros(shape, np.uint32),
            logprobs=np.zeros(shape, np.float32),
            counts=np.zeros(0, np.uint16),
            realised_logprobs=empty,
            realised_ranks=np.zeros(0, np.uint32),
            tail_mass=empty,
        )

    @property
    def top_k(self) -> int:
        return int(self.ids.shape[1])

    def part(self, start: int, stop: int) -> "SparseRows":
        """Rows ``start`` … ``stop`` − 1 of these; views."""
        arrays = {name: value[start:stop] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, first_position=self.first_position + start, **arrays)

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


def join_rows(parts: Sequence[SparseRows]) -> SparseRows:
    """Consecutive rows as one block, as wide as the widest.

    Raises:
        ValueError: they do not follow one another.
    """
    position = parts[0].first_position
    for rows in parts:
        if rows.first_position != position:
            raise ValueError(f"rows begin at position {rows.first_position}, {position} is next")
        position += len(rows)
    top_k = max(rows.top_k for rows in parts)
    unmapped = any(rows.unmapped_mass is not None for rows in parts)

    def wide(values: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.pad(values, ((0, 0), (0, top_k - values.shape[1])))

    return SparseRows(
        first_position=parts[0].first_position,
        ids=np.concatenate([wide(rows.ids) for rows in parts]).astype(np.uint32),
        logprobs=np.concatenate([wide(rows.logprobs) for rows in parts]).astype(np.float32),
        counts=np.concatenate([rows.counts for rows in parts]),
        realised_logprobs=np.concatenate([rows.realised_logprobs for rows in parts]),
        realised_ranks=np.concatenate([rows.realised_ranks for rows in parts]),
        tail_mass=np.concatenate([rows.tail_mass for rows in parts]),
        unmapped_mass=np.concatenate(
            [np.zeros(len(rows), np.float32) if rows.unmapped_mass is None else rows.unmapped_mass for rows in parts]
        )
        if unmapped
        else None,
    )


def logprobs_to_bytes(logprobs: NDArray[np.float32], dtype: LogprobDtype) -> bytes:
    """Little-endian bytes; −inf becomes float16's lowest finite value."""
    if dtype == "float16":
        return np.maximum(logprobs, _FLOAT16_FLOOR).astype("<f2").tobytes()
    return logprobs.astype("<f4", copy=False).tobytes()


def logprobs_from_bytes(data: bytes, dtype: LogprobDtype, shape: tuple[int, int]) -> NDArray[np.float32]:
    stored = np.frombuffer(data, dtype="<f2" if dtype == "float16" else "<f4")
    return stored.reshape(shape).astype(np.float32, copy=False)


def array_bytes(rows: SparseRows, dtype: LogprobDtype) -> dict[str, bytes]:
    """Little-endian bytes of every array, by the name of its field, in the order in which they are stored."""
    arrays = {
        "ids": rows.ids.astype("<u4", copy=False).tobytes(),
        "logprobs": logprobs_to_bytes(rows.logprobs, dtype),
        "counts": rows.counts.astype("<u2", copy=False).tobytes(),
        "realised_logprobs": rows.realised_logprobs.astype("<f4", copy=False).tobytes(),
        "realised_ranks": rows.realised_ranks.astype("<u4", copy=False).tobytes(),
        "tail_mass": rows.tail_mass.astype("<f4", copy=False).tobytes(),
    }
    if rows.unmapped_mass is not None:
        arrays["unmapped_mass"] = rows.unmapped_mass.astype("<f4", copy=False).tobytes()
    return arrays


def rows_of_arrays(
    arrays: dict[str, bytes], dtype: LogprobDtype, shape: tuple[int, int], first_position: int
) -> SparseRows:
    """The reverse of :func:`array_bytes`: read-only views of the bytes, save that float16 is widened.

    Raises:
        ValueError: the bytes do not fit ``shape``.
    """
    unmapped = arrays.get("unmapped_mass")
    return SparseRows(
        first_position=first_position,
        ids=np.frombuffer(arrays["ids"], "<u4").reshape(shape),
        logprobs=logprobs_from_bytes(arrays["logprobs"], dtype, shape),
        counts=np.frombuffer(arrays["counts"], "<u2"),
        realised_logprobs=np.frombuffer(arrays["realised_logprobs"], "<f4"),
        realised_ranks=np.frombuffer(arrays["realised_ranks"], "<u4"),
        tail_mass=np.frombuffer(arrays["tail_mass"], "<f4"),
        unmapped_mass=None if unmapped is None else np.frombuffer(unmapped, "<f4"),
    )


@dataclass(frozen=True)
class PackedRows:
    """Rows as a cache keeps them and as they may travel: a header, and the arrays' byte planes compressed by zstd.

    Make one with :meth:`of` or, from stored bytes, with :meth:`read`, which checks everything but the arrays' content.

    Attributes:
        data: header and payload.
        dtype: of the log-probabilities.
    """

    data: bytes
    first_position: int
    num_rows: int
    top_k: int
    dtype: LogprobDtype
    has_unmapped_mass: bool

    def __len__(self) -> int:
        return self.num_rows

    @classmethod
    def of(cls, rows: SparseRows, dtype: LogprobDtype = "float16") -> Self:
        has_unmapped_mass = rows.unmapped_mass is not None
        widths = _widths(dtype, has_unmapped_mass)
        planes = [_planes(data, widths[name]) for name, data in array_bytes(rows, dtype).items()]
        payload = _zstd.compressor.compress(b"".join(planes))
        flags = (_FLAG_FLOAT32 if dtype == "float32" else 0) | (_FLAG_UNMAPPED if has_unmapped_mass else 0)
        shape = _SHAPE.pack(_MAGIC, flags, rows.top_k, len(rows), rows.first_position)
        crc = zlib.crc32(payload, zlib.crc32(shape))
        data = shape + crc.to_bytes(4, "little") + payload
        return cls(data, rows.first_position, len(rows), rows.top_k, dtype, has_unmapped_mass)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Checks header, checksum and size; decompresses nothing.

        Raises:
            CorruptRowsError: one of them is wrong.
        """
        if len(data) < _HEADER.size:
            raise CorruptRowsError(f"{len(data)} bytes are shorter than the header")
        magic, flags, top_k, num_rows, first_position, crc = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise CorruptRowsError(f"the format is {magic!r}, not {_MAGIC!r}")
        if zlib.crc32(memoryview(data)[_HEADER.size :], zlib.crc32(data[: _SHAPE.size])) != crc:
            raise CorruptRowsError("the checksum is wrong")
        if flags & ~(_FLAG_FLOAT32 | _FLAG_UNMAPPED):
            raise CorruptRowsError(f"the flags {flags:#x} are unknown")
        dtype: LogprobDtype = "float32" if flags & _FLAG_FLOAT32 else "float16"
        rows = cls(data, first_position, num_rows, top_k, dtype, bool(flags & _FLAG_UNMAPPED))
        expected = sum(rows._sizes().values())
        try:
            size = zstandard.frame_content_size(data[_HEADER.size : _HEADER.size + _FRAME_HEADER_BYTES])
        except zstandard.ZstdError as error:
            raise CorruptRowsError(f"the payload is not zstd: {error}") from None
        if size != expected:
            raise CorruptRowsError(f"the payload holds {size} bytes, the header says {expected}")
        return rows

    def arrays(self) -> dict[str, bytes]:
        """What :func:`array_bytes` made.

        Raises:
            CorruptRowsError: the payload does not decompress.
        """
        try:
            plain = _zstd.decompressor.decompress(memoryview(self.data)[_HEADER.size :])
        except zstandard.ZstdError as error:
            raise CorruptRowsError(f"the payload does not decompress: {error}") from None
        arrays: dict[str, bytes] = {}
        start = 0
        widths = _widths(self.dtype, self.has_unmapped_mass)
        for name, size in self._sizes().items():
            arrays[name] = _from_planes(plain[start : start + size], widths[name])
            start += size
        return arrays

    def unpacked(self) -> SparseRows:
        """The arrays.

        Raises:
            CorruptRowsError: the payload does not decompress, or contradicts itself.
        """
        try:
            return rows_of_arrays(self.arrays(), self.dtype, (self.num_rows, self.top_k), self.first_position)
        except CorruptRowsError:
            raise
        except ValueError as error:
            raise CorruptRowsError(str(error)) from None

    def _sizes(self) -> dict[str, int]:
        n, k = self.num_rows, self.top_k
        return {
            name: width * (n * k if name in _MATRICES else n)
            for name, width in _widths(self.dtype, self.has_unmapped_mass).items()
        }


def _widths(dtype: LogprobDtype, has_unmapped_mass: bool) -> dict[str, int]:
    """Bytes per value of every array, in the order in which they are stored."""
    widths = {
        "ids": 4,
        "logprobs": 4 if dtype == "float32" else 2,
        "counts": 2,
        "realised_logprobs": 4,
        "realised_ranks": 4,
        "tail_mass": 4,
    }
    return widths | {"unmapped_mass": 4} if has_unmapped_mass else widths


def _planes(data: bytes, width: int) -> bytes:
    """Every value's lowest byte, then every value's next one, and so on: like stands beside like, and compresses."""
    return np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes()


def _from_planes(data: bytes, width: int) -> bytes:
    planes = np.frombuffer(data, np.uint8).reshape(width, -1)
    kind: np.dtype[Any] = np.dtype("<u4" if width == 4 else "<u2")
    # Shifted whole planes are several times faster than a transposition.
    values = planes[0].astype(kind)
    for place in range(1, width):
        values |= planes[place].astype(kind) << (8 * place)
    joined: bytes = values.tobytes()
    return joined


def pack(rows: SparseRows, dtype: LogprobDtype = "float16") -> bytes:
    """A cache's value: a header, then the arrays, by byte planes, compressed by zstd."""
    return PackedRows.of(rows, dtype).data


def unpack(data: bytes) -> SparseRows:
    """The reverse of :func:`pack`.

    Raises:
        CorruptRowsError: the header, the checksum or the length is wrong.
    """
    return PackedRows.read(data).unpacked()
