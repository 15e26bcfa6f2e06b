"""Which data a step sees, and what it draws: functions of (seed, step), so that resuming needs the step alone.

No generator runs through a whole run. Each draw starts one of its own from (stream, seed, step …), and so

- a state on disk holds no generator: a resumed run draws what an uninterrupted one draws;
- a batch can be made long before its step, to ask the teacher about it, or twice;
- what is drawn between two steps, by a validation or for a checkpoint, changes nothing of the next one.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

# Keep the streams of one seed apart. Other numbers would be other runs: they stay as they are. numpy takes a missing
# number for a 0, so an autoencoder's epoch e shares the phase's generator with a student's step e, row 0; neither sees
# the other.
_ORDER, _PHASE, _NOISE, _CHUNKS, _WALK = 1, 2, 3, 4, 5
# So many items are permuted as an array, of 128 MiB; of more each place is computed by itself.
_MOST_LISTED = 2**24


# An even number: left and right are where they were.
_ROUNDS = 8


# One epoch is walked through at a time, by steps and, some batches ahead, by what asks the teacher; at its end, two.
@lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(num_items)


def batch_indices(num_items: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Items of step ``step``, int64 [batch_size].

    Steps walk through one seeded permutation of all items per epoch; a batch may end one epoch and begin the next.
    Every item is taken once an epoch, whatever the batch size, and steps [a, b) take the same items however often the
    run was interrupted between them.
    """
    # Position p of the endless walk is place p mod n of epoch p div n.
    positions = step * batch_size + np.arange(batch_size)
    epochs, within = np.divmod(positions, num_items)
    items = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        if num_items <= _MOST_LISTED:
            items[mine] = _permutation(num_items, seed, int(epoch))[within[mine]]
        else:
            items[mine] = _permuted(within[mine], num_items, seed, int(epoch))
    return items


def _permuted(places: NDArray[np.int64], num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A seeded permutation of 0 … n − 1 at some places, without any other of its n values.

    A Feistel network over the numbers of b bits, n ≤ 2^b < 2n, is one of those; a number that it maps beyond n − 1 is
    mapped again, which is a permutation of the first n (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    2002). Left and right have b/2 bits each, rounded down and up, and change places in every round.
    """
    num_bits = (num_items - 1).bit_length()
    left_bits = num_bits // 2
    keys = np.random.default_rng([_WALK, seed, epoch]).integers(2**64, size=_ROUNDS, dtype=np.uint64)

    def network(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a_bits, b_bits = left_bits, num_bits - left_bits
        a, b = numbers >> np.uint64(b_bits), numbers & np.uint64(2**b_bits - 1)
        for key in keys:
            a, b = b, a ^ (mixed(b + key) >> np.uint64(64 - a_bits))
            a_bits, b_bits = b_bits, a_bits
        return a << np.uint64(b_bits) | b

    found = network(places.astype(np.uint64))
    while (beyond := found >= num_items).any():
        found[beyond] = network(found[beyond])
    return found.astype(np.int64)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each of x, which no two share: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).

    Every bit of x changes half of the result's.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def data_steps(first: int, last: int, skipped: Sequence[tuple[int, int]] = ()) -> Sequence[int]:
    """The data's steps that steps ``first`` to ``last`` - 1 learn from: the same numbers, past what is skipped.

    Args:
        first, last: steps of the training.
        skipped: steps of the data that nothing is learnt from, each range with both ends, in rising order.
    """
    steps = range(first, last)
    return [data_step(step, skipped) for step in steps] if skipped else steps


def data_step(step: int, skipped: Sequence[tuple[int, int]]) -> int:
    """That of one step of the training."""
    for begin, end in skipped:
        if step < begin:
            break
        step += end - begin + 1
    return step


def phase(probability: float, chunk_size: int, seed: int, step: int, row: int) -> int:
    """Pads before row ``row`` of step ``step``: 0, or with ``probability`` one of 1 … K−1."""
    random = np.random.default_rng([_PHASE, seed, step, row])
    if chunk_size == 1 or random.random() >= probability:
        return 0
    return int(random.integers(1, chunk_size))


def epoch_phase(chunk_size: int, seed: int, epoch: int) -> int:
    """Where an epoch's chunks start in the stream of tokens: 0 … K−1."""
    return int(np.random.default_rng([_PHASE, seed, epoch]).integers(chunk_size))


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of everything random inside step ``step``."""
    state = np.random.default_rng([_NOISE, seed, step]).integers(2**63)
    return torch.Generator(device).manual_seed(int(state))


def step_random(seed: int, step: int) -> np.random.Generator:
    """As :func:`step_generator`, for the making of a batch in numpy."""
    return np.random.default_rng([_CHUNKS, seed, step])
