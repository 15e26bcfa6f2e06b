import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from latentforge.model.weights import StoredWeights

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).view(2, 3),
    "brain": torch.arange(4, dtype=torch.bfloat16),
    "whole": torch.arange(5, dtype=torch.float32) / 7,
    "ids": torch.tensor([[2**40], [-1]]),
    "scalar": torch.tensor(2.5),
    "nothing": torch.empty(0, 3),
}


def test_what_safetensors_writes_is_read_bit_for_bit_and_shares_the_files_memory() -> None:
    content = bytearray(save(TENSORS, {"format": "pt"}))
    weights = StoredWeights(content)
    assert weights.shapes == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert weights.num_numbers == sum(tensor.numel() for tensor in TENSORS.values())
    tensors = weights.tensors()
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype == weights.dtypes[name]
        assert tensors[name].equal(tensor)
    at = content.index(TENSORS["ids"].numpy().tobytes())
    content[at] = 3
    assert tensors["ids"][0, 0] == 2**40 + 3


def stored(header: Any, data: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def entry(shape: Any, begin: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytearray(b"12"), "2 bytes are no safetensors"),
        (bytearray((2**60).to_bytes(8, "little") + b"{}"), "the header is longer than the file"),
        (stored(b"{"), "the header is not one of safetensors"),
        (stored(b"[" * 100_000), "the header is not one of safetensors"),
        (stored([1]), "the header is not one of safetensors"),
        (stored({"a": 1}), "the header is not one of safetensors"),
        (stored({"a": {"dtype": "F32"}}), "the header is not one of safetensors"),
        (stored({"a": entry([1], 0, 4, "F31")}, b"1234"), "the header is not one of safetensors"),
        (stored({"a": entry([1.5], 0, 6)}, b"123456"), "shapes and offsets are whole numbers"),
        (stored({"a": entry([-1], 0, -4)}), "shapes and offsets are whole numbers"),
        (stored({"a": entry([True], 0, 4)}, b"1234"), "shapes and offsets are whole numbers"),
        (stored({"a": entry([1], 0, 4, "F64")}, b"1234"), "4 bytes for"),
        (stored({"a": entry([10**15], 0, 4 * 10**15)}), "the tensors end at byte"),
        (stored({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234"), "b begins at byte"),
        (stored({"a": entry([1], 4, 8)}, b"12345678"), "a begins at byte"),
        (stored({"a": entry([1], 0, 4)}, b"12345"), "the tensors end at byte"),
    ],
)
def test_what_is_no_safetensors_is_refused(content: bytearray, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        StoredWeights(content)
