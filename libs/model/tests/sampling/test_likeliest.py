import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentforge.model.sampling.likeliest import likeliest, likeliest_one


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3000) | st.integers(4090, 20_000),
    st.integers(1, 60),
    st.sampled_from([2, 40, 2000, 10**6]),
    st.booleans(),
)
def test_they_are_what_a_stable_sort_puts_first(
    seed: int, vocab_size: int, count: int, num_values: int, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(num_values, (3, vocab_size), generator=generator).float() - num_values // 2
    if masked:
        logits[torch.rand(logits.shape, generator=generator) < 0.7] = -torch.inf
    count = min(count, vocab_size)
    values, ids = likeliest(logits, count)
    wanted = logits.sort(dim=-1, descending=True, stable=True)
    assert values.equal(wanted.values[:, :count])
    assert ids.equal(wanted.indices[:, :count])


@pytest.mark.parametrize("vocab_size", [5, 128, 1023, 1024, 1025, 4097])
def test_the_likeliest_one_is_the_lowest_id_of_the_greatest(vocab_size: int) -> None:
    logits = torch.randint(50, (300, vocab_size), generator=torch.Generator().manual_seed(1)).float()
    values, ids = likeliest_one(logits)
    assert ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert values.equal(logits.amax(-1))


def test_a_row_with_nan_spares_the_others() -> None:
    logits = torch.randn(3, 2000)
    wanted = likeliest(logits, 5)[1]
    logits[1, 7] = torch.nan
    ids = likeliest(logits, 5)[1]
    assert ids[[0, 2]].equal(wanted[[0, 2]])
    assert ((ids >= 0) & (ids < 2000)).all()
