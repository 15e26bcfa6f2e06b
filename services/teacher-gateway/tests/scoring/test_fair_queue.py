import asyncio
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentforge.gateway.scoring import fair_queue
from latentforge.gateway.scoring.callers import Caller
from latentforge.gateway.scoring.fair_queue import FairQueue
from latentforge.gateway.scoring.inflight import InFlightSequence

A, B, C = Caller("a"), Caller("b"), Caller("c")


# Sequences hold futures, which belong to a loop; nothing here waits for them.
LOOP = asyncio.new_event_loop()


@pytest.fixture(scope="module", autouse=True)
def _closed_loop() -> Iterator[None]:
    yield
    LOOP.close()


def sequence(caller: Caller, length: int, *others: Caller) -> InFlightSequence:
    callers = {c.name: c for c in (caller, *others)}
    ids = np.zeros(length, np.uint32)
    return InFlightSequence(b"", ids, 4, "float16", answer=LOOP.create_future(), callers=callers)


def queue_of(*sequences: InFlightSequence, max_tokens: int = 1 << 30) -> FairQueue:
    queue = FairQueue(max_tokens)
    for each in sequences:
        queue.add(each)
    return queue


def owner(of: InFlightSequence) -> str:
    return next(iter(of.callers))


def emptied(queue: FairQueue, max_batch_tokens: int) -> list[list[InFlightSequence]]:
    batches = []
    while batch := queue.next_batch(max_batch_tokens):
        batches.append(batch)
    return batches


def test_one_callers_sequences_come_oldest_first_with_those_of_like_length() -> None:
    queue = queue_of(*(sequence(A, n) for n in (20, 5, 19, 6, 20, 4)))
    lengths = [[len(s.token_ids) for s in batch] for batch in emptied(queue, 40)]
    assert lengths == [[20, 20], [5, 6, 4], [19]]
    assert (len(queue), queue.tokens, queue.callers) == (0, 0, 0)


def test_who_asks_for_little_is_in_the_next_batch_however_much_another_has_queued() -> None:
    queue = queue_of(*(sequence(A, 256) for _ in range(400)))
    for _ in range(3):
        queue.next_batch(2048)
    small = sequence(B, 8)
    queue.add(small)
    assert small in queue.next_batch(2048)


def test_callers_with_work_waiting_get_tokens_by_their_shares() -> None:
    thrice = Caller("thrice", share=3.0)
    queue = queue_of(*(sequence(A, 50) for _ in range(400)), *(sequence(thrice, 50) for _ in range(400)))
    taken: Counter[str] = Counter()
    for _ in range(20):
        taken.update(owner(s) for s in queue.next_batch(1000))
    assert taken == {"a": 100, "thrice": 300}


def test_turns_go_by_tokens_and_not_by_sequences() -> None:
    queue = queue_of(*(sequence(A, 10) for _ in range(1000)), *(sequence(B, 100) for _ in range(100)))
    taken: Counter[str] = Counter()
    for _ in range(30):
        for s in queue.next_batch(100):
            taken[owner(s)] += len(s.token_ids)
    assert taken["a"] == pytest.approx(taken["b"], abs=100)


def test_coming_back_again_and_again_gives_no_more_than_waiting() -> None:
    heavy = [Caller(f"heavy {i}") for i in range(3)]
    queue = queue_of(*(sequence(c, 10) for c in heavy for _ in range(1000)))
    taken: Counter[str] = Counter()
    for _ in range(200):
        if not any("a" in s.callers for s in queue._queued):
            queue.add(sequence(A, 100))
        for s in queue.next_batch(100):
            taken[owner(s)] += len(s.token_ids)
    assert taken["a"] / taken.total() == pytest.approx(0.25, abs=0.02)


def test_idling_earns_nothing() -> None:
    queue = queue_of(*(sequence(A, 100) for _ in range(200)))
    for _ in range(50):
        queue.next_batch(100)
    for _ in range(100):
        queue.add(sequence(B, 100))
    taken = Counter(owner(s) for _ in range(20) for s in queue.next_batch(100))
    assert taken == {"a": 10, "b": 10}


def test_nobody_pays_for_having_used_what_nobody_else_wanted() -> None:
    queue = queue_of(*(sequence(A, 100) for _ in range(50)))
    emptied(queue, 100)
    for caller in (B, A):
        for _ in range(20):
            queue.add(sequence(caller, 100))
    taken = Counter(owner(s) for _ in range(20) for s in queue.next_batch(100))
    assert taken == {"a": 10, "b": 10}


def test_a_sequence_that_two_wait_for_comes_with_the_first_turn_of_either() -> None:
    queue = queue_of(*(sequence(A, 100) for _ in range(20)))
    shared = sequence(A, 100)
    queue.add(shared)
    shared.callers[B.name] = B
    queue.join(shared, B)
    assert shared in [*queue.next_batch(100), *queue.next_batch(100)]
    assert sum(map(len, emptied(queue, 100))) == 19


def test_what_is_removed_is_in_no_line_any_more() -> None:
    gone, stays = sequence(A, 10, B), sequence(B, 10)
    queue = queue_of(gone, stays)
    queue.remove(gone)
    queue.remove(gone)
    assert (len(queue), queue.tokens, queue.callers) == (1, 10, 1)
    assert emptied(queue, 100) == [[stays]]


def test_a_length_that_never_fits_others_batches_is_not_passed_over_for_ever() -> None:
    # After these b is always a little ahead of a, who therefore begins every batch, and b's nearest come along.
    odd = sequence(B, 900)
    queue = queue_of(sequence(A, 50), sequence(A, 50), sequence(B, 60), odd)
    assert len(queue.next_batch(120)) == 2
    for _ in range(300):
        queue.add(sequence(A, 50))
        queue.add(sequence(B, 50))
        if odd in queue.next_batch(120):
            return
    pytest.fail("it still waits")


def test_a_line_that_a_shared_sequence_empties_within_the_batch_has_no_turn_left() -> None:
    # He takes a thousand for every one of b's, so he begins each batch, and b's short ones come along before his long.
    ahead = Caller("ahead", share=1000.0)
    shared = sequence(B, 1000)
    others = [*(sequence(ahead, 1) for _ in range(600)), *(sequence(B, 1) for _ in range(300))]
    queue = queue_of(others[0], shared, *others[1:])
    while queue._lines["b"].tokens > 1000:
        assert shared not in queue.next_batch(1000)
    shared.callers[ahead.name] = ahead
    queue.join(shared, ahead)
    assert shared in queue.next_batch(1_000_000)
    assert (len(queue), queue.tokens, queue.callers) == (0, 0, 0)


def test_when_full_whoever_has_most_waiting_gives_way_newest_first() -> None:
    many = [sequence(A, 100) for _ in range(9)]
    queue = queue_of(*many, sequence(B, 100), max_tokens=1000)
    assert queue.room_for(C, 150) == [many[8], many[7]]
    assert queue.room_for(B, 100) == [many[8]]
    assert queue.room_for(A, 1) is None
    # He would have more than the other then.
    assert queue.room_for(C, 900) is None
    assert queue.place_for(B) is many[8]
    assert queue.place_for(A) is None


def test_what_another_waits_for_too_does_not_give_way() -> None:
    shared = sequence(A, 100, B)
    queue = queue_of(*(sequence(A, 100) for _ in range(4)), shared, max_tokens=500)
    leaving = queue.room_for(C, 100)
    assert leaving is not None
    assert shared not in leaving
    assert len(leaving) == 1


def test_one_sequence_may_be_longer_than_the_queue() -> None:
    assert FairQueue(10).room_for(A, 100) == []
    assert queue_of(sequence(A, 5), max_tokens=10).room_for(A, 100) is None


callers = st.sampled_from([A, B, C, Caller("d", share=2.5)])
waiting = st.lists(callers, min_size=1, max_size=3, unique=True)
arrivals = st.lists(st.tuples(waiting, st.integers(1, 90), st.booleans()), min_size=1, max_size=60)


@given(arrivals, st.integers(10, 200), st.sampled_from([0, 2, 256]))
def test_every_sequence_comes_once_and_batches_fit(
    steps: list[tuple[list[Caller], int, bool]], max_tokens: int, passed_over: int
) -> None:
    queue = FairQueue(1 << 30)
    added, batches = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fair_queue, "_PASSED_OVER", passed_over)
        for waiting_for_it, length, take in steps:
            added.append(sequence(waiting_for_it[0], length, *waiting_for_it[1:]))
            queue.add(added[-1])
            if take:
                batches.append(queue.next_batch(max_tokens))
        batches += emptied(queue, max_tokens)
    taken = [s for batch in batches for s in batch]
    assert len(taken) == len(added)
    assert set(taken) == set(added)
    for batch in batches:
        assert len(batch) == 1 or max(len(s.token_ids) for s in batch) * len(batch) <= max_tokens
    assert (len(queue), queue.tokens, queue.callers) == (0, 0, 0)
