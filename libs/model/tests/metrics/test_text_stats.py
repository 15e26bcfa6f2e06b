import itertools

import numpy as np
import pytest
import torch

from latentforge.model.metrics.text_stats import TextStats, distinct_n, repetition, text_stats


def brute_force_repetition(sequences: list[list[int]], n: int) -> float:
    repeated = 0
    for ids in sequences:
        for i in range(len(ids)):
            starts = [s for s in range(len(ids) - n + 1) if s <= i < s + n]
            repeated += any(ids[s : s + n] == ids[t : t + n] for s in starts for t in range(s))
    return repeated / sum(map(len, sequences))


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1, 2, 3, 4, 1, 2, 3, 4], 4 / 8),
        ([1, 1, 1, 1, 1, 1], 5 / 6),
        ([1, 2, 3, 4, 5, 6, 7, 8], 0),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 9], 5 / 10),  # two repeated 4-grams that overlap
        ([1, 2, 3, 9, 1, 2, 3, 8], 0),  # only three tokens come back
        ([1, 2, 3, 4, 1, 2, 3, 4, 7, 1, 2, 3, 4], 8 / 13),
        ([1, 2, 3], 0),
    ],
)
def test_repetition_of_hand_computed_cases(ids: list[int], wanted: float) -> None:
    assert repetition([ids]) == pytest.approx(wanted)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_matches_brute_force(n: int) -> None:
    rng = np.random.default_rng(n)
    for vocabulary, _ in itertools.product((2, 3, 5), range(20)):
        sequences = [rng.integers(vocabulary, size=rng.integers(1, 40)).tolist() for _ in range(3)]
        assert repetition(sequences, n) == pytest.approx(brute_force_repetition(sequences, n))


def test_repetition_does_not_look_into_other_sequences() -> None:
    assert repetition([[1, 2, 3, 4], [1, 2, 3, 4]]) == 0


def test_distinct_counts_over_all_sequences_and_not_across_their_ends() -> None:
    assert distinct_n([[1, 2, 3, 4], [1, 2, 3, 9]]) == pytest.approx(3 / 4)
    assert distinct_n([[1, 2], [3, 1, 2]]) == 1  # 1 2 3 is no n-gram of either
    assert distinct_n([[1, 1, 1, 1, 1]]) == pytest.approx(1 / 3)
    assert distinct_n([[1, 2, 1, 2]], n=1) == pytest.approx(1 / 2)


def test_tensors_and_arrays_count_like_lists() -> None:
    ids = [1, 1, 1, 1, 1, 1]
    wanted = TextStats(distinct_3=1 / 4, repetition=5 / 6, mean_length=6)
    assert text_stats([ids]) == text_stats([torch.tensor(ids)]) == text_stats([np.array(ids)]) == wanted
    assert text_stats([tuple(ids), torch.tensor(ids)]).distinct_3 == pytest.approx(1 / 8)


def test_sequences_that_are_too_short_have_no_ngrams() -> None:
    assert text_stats([[1, 2], []]) == TextStats(distinct_3=None, repetition=0, mean_length=1)
    assert text_stats([[]]) == TextStats(distinct_3=None, repetition=None, mean_length=0)


def test_nothing_generated_is_refused() -> None:
    with pytest.raises(ValueError, match="generate at least one"):
        text_stats([])
