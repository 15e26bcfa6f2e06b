import random

import pytest

from latentforge.vllm.acceptance import Acceptance, AcceptanceWindows, ByLoad, is_clearly_worse, overall

WINDOW = 1000


def window(rng: random.Random, chance: float, num: int = WINDOW, num_texts: int = 1, longest: int = 8) -> ByLoad:
    """Drafts each token of which is taken with the same chance once those before it were."""
    windows = AcceptanceWindows(num)
    for _ in range(num):
        accepted = 0
        while accepted < longest and rng.random() < chance:
            accepted += 1
        full = windows.add(accepted, num_texts)
    assert full
    return windows.last


def at_one_load(num_drafts: int, total: int, squares: int) -> ByLoad:
    return {1: Acceptance(num_drafts, total, squares)}


def test_mean_and_its_variance_are_those_of_the_counts() -> None:
    windows = AcceptanceWindows(4)
    assert [windows.add(accepted, 1) for accepted in (1, 3, 3, 5)] == [False, False, False, True]
    assert windows.last == windows.recent == at_one_load(4, 12, 44)
    assert (overall(windows.last).mean, overall(windows.last).error) == (3, 0.5)


def test_a_baseline_is_of_the_last_windows_alone() -> None:
    windows = AcceptanceWindows(2)
    for accepted in (8,) * 2 + (1,) * 8:
        windows.add(accepted, 1)
    assert windows.recent == at_one_load(8, 8, 8)
    assert windows.num_full == 5


def test_chance_alone_makes_hardly_any_version_worse() -> None:
    rng = random.Random(0)
    found = sum(is_clearly_worse(window(rng, 0.6), window(rng, 0.6)) is True for _ in range(300))
    assert found <= 2


@pytest.mark.parametrize(("chance", "at_least"), [(0.0, 50), (0.3, 50), (0.5, 48)])
def test_a_clear_fall_is_seen_in_one_window(chance: float, at_least: int) -> None:
    rng = random.Random(1)
    assert sum(is_clearly_worse(window(rng, chance), window(rng, 0.6)) is True for _ in range(50)) >= at_least


def test_a_fall_that_nobody_notices_is_none_however_certain() -> None:
    old = at_one_load(10**6, 2 * 10**6, 5 * 10**6)
    assert not is_clearly_worse(at_one_load(10**6, 19 * 10**5, 48 * 10**5), old)
    assert is_clearly_worse(at_one_load(10**6, 17 * 10**5, 48 * 10**5), old)


def test_nothing_is_worse_than_what_was_never_taken_nor_without_drafts() -> None:
    nothing = at_one_load(WINDOW, 0, 0)
    assert not is_clearly_worse(nothing, nothing)
    assert is_clearly_worse({}, window(random.Random(2), 0.6)) is None
    assert is_clearly_worse(nothing, window(random.Random(2), 0.6))


def test_drafts_that_are_shorter_for_the_load_are_no_fall() -> None:
    rng = random.Random(3)
    alone, crowded = AcceptanceWindows(WINDOW), AcceptanceWindows(WINDOW)
    for mixed, share in ((alone, 0.9), (crowded, 0.1)):
        for _ in range(WINDOW):
            num_texts, longest = (1, 8) if rng.random() < share else (16, 1)
            accepted = 0
            while accepted < longest and rng.random() < 0.7:
                accepted += 1
            mixed.add(accepted, num_texts)
    assert overall(crowded.last).mean < 0.6 * overall(alone.last).mean
    assert not is_clearly_worse(crowded.last, alone.recent)
    # At the same load a fall is seen, whatever it was at others.
    worse = window(rng, 0.3, num_texts=16, longest=1)
    assert is_clearly_worse(worse, alone.recent)
    # At loads of 16 and 17 to 31 texts drafts are alike; at twice as many nobody knows.
    assert is_clearly_worse(window(rng, 0.3, num_texts=31, longest=1), alone.recent)
    assert is_clearly_worse(window(rng, 0.0, num_texts=32, longest=1), alone.recent) is None
