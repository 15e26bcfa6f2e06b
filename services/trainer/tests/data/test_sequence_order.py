import numpy as np
import torch

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
