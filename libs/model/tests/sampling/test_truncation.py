"""Drawing again until a token is kept keeps exactly what sorting keeps."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling, truncation
from latentforge.model.sampling.truncation import left_beside


def kept_by_sorting(mass: list[float], top_p: float, min_p: float) -> set[int]:
    order = sorted(range(len(mass)), key=lambda token: (-mass[token], token))
    kept, before = set(), 0.0
    for token in order:
        if before < top_p * sum(mass) and mass[token] >= min_p * max(mass):
            kept.add(token)
        before += mass[token]
    return kept


def kept_by_asking(mass: list[float], top_p: float, min_p: float) -> set[int]:
    """Tokens that nothing is left beside; beside others all that is kept is left."""
    params, row = SamplingParams(top_p=top_p, min_p=min_p), torch.tensor(mass)
    left = {t: left_beside(t, params, row, row, sum(mass), max(mass), 0) for t in range(len(mass)) if mass[t] > 0}
    kept = {token for token, rest in left.items() if rest is None}
    for token, rest in left.items():
        if rest is not None:
            assert rest[token] == 0
            assert rest[[*kept]].equal(row[[*kept]])
    return kept


# Sixteenths, whose sums are exact: every bound that they can reach, and just beside it.
BOUNDS = [i / 16 + d for i in range(17) for d in (-1e-7, 0, 1e-7) if 0 < i / 16 + d <= 1]


def test_every_bound_of_every_small_distribution() -> None:
    for parts in product(range(5), repeat=4):
        mass = [n / 16 for n in (*parts, 16 - sum(parts))]
        if mass[-1] < 0:
            continue
        for top_p in BOUNDS[:: 1 if sum(parts) % 4 == 0 else 5]:
            assert kept_by_asking(mass, top_p, 0) == kept_by_sorting(mass, top_p, 0) & kept_by_asking(mass, 1, 0)
        for min_p in (0.25, 0.5, 1):
            assert kept_by_asking(mass, 0.9, min_p) == kept_by_sorting(mass, 0.9, min_p) & kept_by_asking(mass, 1, 0)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 64), min_size=1, max_size=12).filter(any),
    st.integers(1, 64).map(lambda n: n / 64),
    st.integers(0, 64).map(lambda n: n / 64),
)
def test_any_bounds_together(parts: list[int], top_p: float, min_p: float) -> None:
    mass = [float(n) for n in parts]
    assert kept_by_asking(mass, top_p, min_p) == kept_by_sorting(mass, top_p, min_p) & kept_by_asking(mass, 1, 0)


def draws(logits: Tensor, params: SamplingParams, num: int = 400) -> list[int]:
    texts = [TextSampling(params.model_copy(update={"seed": i}), [], logits.shape[0]) for i in range(num)]
    return BatchSampler(texts).draw(logits.expand(num, -1)).tolist()


@pytest.mark.parametrize("tries", [0, 1, 2])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_what_is_not_kept_after_some_tries_is_sorted(tries: int, top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(4))
    kept = kept_by_sorting(logits.softmax(0).tolist(), top_p, 0)
    assert set(draws(logits, SamplingParams(top_p=top_p))) == kept
    monkeypatch.setattr(truncation, "_MOST_TRIES", tries)
    assert set(draws(logits, SamplingParams(top_p=top_p))) == kept


def test_a_narrow_nucleus_of_a_wide_distribution_is_found_without_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(4))

    def refuse(*_: object) -> None:
        raise AssertionError("a row was sorted")

    monkeypatch.setattr(truncation, "_unless_kept", refuse)
    kept = kept_by_sorting(logits.softmax(0).tolist(), 0.01, 0)
    assert set(draws(logits, SamplingParams(top_p=0.01))) <= kept


def test_of_equal_tokens_lower_ids_are_kept() -> None:
    logits = torch.zeros(2000)
    assert set(draws(logits, SamplingParams(top_p=0.0025))) == {0, 1, 2, 3, 4}
    assert set(draws(logits, SamplingParams(top_k=5))) == {0, 1, 2, 3, 4}
    assert set(draws(logits, SamplingParams(top_k=5, top_p=0.5))) == {0, 1, 2}
