"""A sequence's name by its content: kept rows are found by it, and a share of the data is chosen by it."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def sequence_hash(ids: NDArray[np.integer]) -> bytes:
    """blake2b of ids [L] as little-endian uint32, 16 bytes: the same in whatever folder and at whatever place."""
    return hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=16).digest()


def is_chosen(digest: bytes, share: float) -> bool:
    """Whether a sequence is one of the ``share`` of all that a teacher is asked about.

    By the content alone, not by seed or step: every epoch, every run and `trainer score --share` choose the same ones,
    so that rows are paid for once, and a larger share holds a smaller one.
    """
    return int.from_bytes(digest[:8], "little") < share * 2.0**64
