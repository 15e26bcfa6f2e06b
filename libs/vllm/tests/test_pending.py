import numpy as np
import pytest

from latentforge.vllm.pending import PendingDrafts, TextIds, Verified


def ids(*values: int) -> TextIds:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    ("draft", "new", "accepted"),
    [
        ([7, 8, 9], [7, 8, 9, 4], 3),
        ([7, 8, 9], [7, 8, 5], 2),
        ([7, 8, 9], [5], 0),
        # vLLM verified the first alone; that the next one is the same is the teacher's doing.
        ([7, 8, 9], [7, 8], 1),
        ([7, 8, 9], [7], 0),
        ([], [7], 0),
    ],
)
def test_taken_are_the_tokens_that_the_text_goes_on_with_but_for_its_last(
    draft: list[int], new: list[int], accepted: int
) -> None:
    pending = PendingDrafts()
    pending.replace(["v"], [ids(1, 2)], [draft])
    assert pending.verify(ids(1, 2, *new), len(new)) == Verified("v", len(draft), accepted, 1)


def test_a_text_that_was_not_drafted_for_is_not_known() -> None:
    pending = PendingDrafts()
    pending.replace(["v"], [ids(1, 2)], [[7]])
    assert pending.verify(ids(1, 3, 7, 7), 2) is None
    assert pending.verify(ids(2, 7, 7), 2) is None
    assert pending.verify(ids(5), 1) is None
    # What was pending is forgotten with the next step.
    pending.replace([], [], [])
    assert pending.verify(ids(1, 2, 7, 7), 2) is None


def test_ids_are_compared_and_not_what_they_lie_in() -> None:
    pending = PendingDrafts()
    strided = np.array([[1, 2], [3, 4]], dtype=np.int32).T[0]
    pending.replace(["v"], [strided], [[7]])
    assert pending.verify(ids(1, 3, 7, 8), 2) == Verified("v", 1, 1, 1)
