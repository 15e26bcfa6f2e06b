import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentforge.model.chunks import left_pad_count, shift_right, to_chunks


@given(st.integers(0, 200), st.integers(1, 17))
def test_left_pads_are_the_fewest_that_fill_chunks(n: int, k: int) -> None:
    pads = left_pad_count(n, k)
    assert 0 <= pads < k
    assert (n + pads) % k == 0


def test_length_that_k_does_not_divide_pads_the_first_chunk_only() -> None:
    chunks = to_chunks(torch.arange(10, 17), 4, pad_id=1)
    assert chunks.tolist() == [[1, 10, 11, 12], [13, 14, 15, 16]]


def test_to_chunks_keeps_batch_and_takes_empty() -> None:
    assert to_chunks(torch.zeros(3, 8, dtype=torch.int64), 4, 1).shape == (3, 2, 4)
    assert to_chunks(torch.zeros(0, dtype=torch.int64), 4, 1).shape == (0, 4)


@given(st.integers(0, 12))
def test_shift_keeps_tokens_rows_and_mask_aligned(pads: int) -> None:
    length, pad_id = 12, 1
    tokens = torch.arange(100, 100 + length)
    rows = tokens[:, None] * 10 + torch.arange(3)
    mask = torch.ones(length, dtype=torch.bool)
    tokens2, rows2, mask2 = (
        shift_right(tokens, pads, pad_id),
        shift_right(rows, pads, 0),
        shift_right(mask, pads, False),
    )
    assert len(tokens2) == length
    assert mask2.tolist() == [False] * pads + [True] * (length - pads)
    assert (tokens2[~mask2] == pad_id).all()
    assert tokens2[mask2].tolist() == tokens[: length - pads].tolist()
    assert (rows2[mask2][:, 1] == tokens2[mask2] * 10 + 1).all()
    assert (tokens == torch.arange(100, 100 + length)).all()


@pytest.mark.parametrize("pads", [-1, 5])
def test_shift_refuses_more_pads_than_tokens(pads: int) -> None:
    with pytest.raises(ValueError, match=rf"pads={pads} is not in 0\.\.4"):
        shift_right(torch.arange(4), pads, 0)
