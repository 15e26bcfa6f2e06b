"""Weights in memory as safetensors lays them out: a header that says what there is, then the numbers.

The tensors of a file that is read are views of its bytes: nothing is copied, and nothing is read from the disk later.
"""

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int


class StoredWeights:
    """The tensors of a ``.safetensors`` file.

    Args:
        content: the whole file.

    Raises:
        ValueError: it is none.
    """

    def __init__(self, content: bytearray) -> None:
        if len(content) < _LENGTH_BYTES:
            raise ValueError(f"{len(content)} bytes are no safetensors")
        begin = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        if begin > len(content):
            raise ValueError("the header is longer than the file")
        try:
            header = json.loads(content[_LENGTH_BYTES:begin])
            header.pop("__metadata__", None)
            self._entries = {name: _entry(entry, begin) for name, entry in header.items()}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the header is not one of safetensors: {error!r}") from None
        self._content = content
        self._check_extent(begin)

    @property
    def num_numbers(self) -> int:
        """Of all tensors together."""
        return sum(math.prod(entry.shape) for entry in self._entries.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: entry.dtype for name, entry in self._entries.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; they share the file's memory."""
        return {name: self._tensor(entry) for name, entry in self._entries.items()}

    def _tensor(self, entry: _Entry) -> Tensor:
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(self._content, dtype=entry.dtype, count=count, offset=entry.begin).view(entry.shape)

    def _check_extent(self, begin: int) -> None:
        """The tensors must lie side by side from the header to the end: none beyond it, none over another."""
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].begin):
            if entry.begin != begin:
                raise ValueError(f"{name} begins at byte {entry.begin}, what is before it ends at {begin}")
            begin += math.prod(entry.shape) * entry.dtype.itemsize
        if begin != len(self._content):
            raise ValueError(f"the tensors end at byte {begin} of {len(self._content)}")


def _entry(entry: dict[str, object], begin: int) -> _Entry:
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError("shape and data_offsets are lists")
    first, end = offsets
    if not all(type(number) is int and number >= 0 for number in [*shape, first, end]):
        raise ValueError("shapes and offsets are whole numbers")
    dtype = _DTYPES[str(entry["dtype"])]
    if end - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - first} bytes for {shape} of {dtype}")
    return _Entry(dtype, tuple(shape), begin + first)
