import numpy as np
import pytest
import torch

from latentforge.trainer.data import sequence_order
from latentforge.trainer.data.sequence_order import batch_indices, epoch_phase, phase, step_generator, step_random


def test_every_epoch_visits_everything_once_in_another_order() -> None:
    seen = np.concatenate([batch_indices(10, 4, seed=3, step=s) for s in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_step_needs_no_replay() -> None:
    forward = [batch_indices(1000, 8, 0, s).tolist() for s in range(300)]
    assert batch_indices(1000, 8, 0, 299).tolist() == forward[299]
    assert batch_indices(1000, 8, 1, 299).tolist() != forward[299]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert np.bincount(batch_indices(3, 9, 0, 0)).tolist() == [3, 3, 3]


def test_phases_are_a_function_of_seed_step_and_row() -> None:
    drawn = [phase(0.5, 8, 0, step, row) for step in range(200) for row in range(4)]
    assert drawn == [phase(0.5, 8, 0, step, row) for step in range(200) for row in range(4)]
    assert set(drawn) == set(range(8))
    assert 0.4 < np.mean(np.array(drawn) == 0) < 0.6
    assert {phase(0.0, 8, 0, s, 0) for s in range(20)} == {0}
    assert {phase(1.0, 1, 0, s, 0) for s in range(20)} == {0}


def test_noise_belongs_to_seed_and_step() -> None:
    cpu = torch.device("cpu")
    first, again, later = (torch.rand(3, generator=step_generator(0, s, cpu)) for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert step_random(0, 1).random() == step_random(0, 1).random()
    assert 0 <= epoch_phase(8, 0, 0) < 8


def test_small_counts_have_the_permutation_that_runs_were_begun_with() -> None:
    assert batch_indices(10, 10, 0, 0).tolist() == np.random.default_rng([1, 0, 0]).permutation(10).tolist()


@pytest.mark.parametrize("count", [2, 3, 5, 64, 65, 1000, 1023])
def test_places_of_large_counts_are_a_permutation_by_seed_and_epoch(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(sequence_order, "_MOST_LISTED", 1)
    orders = {tuple(batch_indices(count, count, seed, epoch).tolist()) for seed in (0, 1) for epoch in range(4)}
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len(orders) > (1 if count < 5 else 7)
    # A batch that ends one epoch and begins the next.
    both = np.concatenate([batch_indices(count, 7, 3, step) for step in range(2 * count)])
    assert (np.bincount(both[: 7 * count]) == 7).all()


def test_large_counts_are_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2**24 + 12_345
    taken = batch_indices(count, 20_000, 0, 0)
    assert 0 <= taken.min() < taken.max() < count
    assert len(np.unique(taken)) == 20_000
    # As of a random one: mean, spread, and neither order nor parity are left.
    assert abs(taken.mean() / count - 0.5) < 0.01
    assert abs(np.corrcoef(taken[:-1], taken[1:])[0, 1]) < 0.03
    assert abs((taken % 2).mean() - 0.5) < 0.015
    assert abs(np.histogram(taken, 16, (0, count))[0] / 1250 - 1).max() < 0.15
