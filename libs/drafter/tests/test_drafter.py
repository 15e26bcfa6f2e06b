"""The drafter beside a slow reference that drafts from the whole text every time."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from latentforge.drafter.drafter import Drafter, DraftRule
from latentforge.model.decoding import slot_decoding
from latentforge.model.decoding.batch import DraftRequest
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams
from tests.serial_decoding import SerialDecoding

MakeStudent = Callable[[str], LatentModel]
V, K = 64, 4
ALWAYS = DraftRule(max_tokens=6, least_confidence=0.0, drafts_from="student")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    # Few different ids, so that induction heads find something.
    rng = random.Random(seed)
    return [rng.randrange(2, 12) for _ in range(length)]


def drafted_from_the_whole(
    model: LatentModel, ids: Sequence[int], first_length: int, most: int = 6, least: float = 0.0
) -> list[int]:
    """A draft by a decoding that keeps nothing; ``first_length`` tokens were there when the text was first seen."""
    decoding = SerialDecoding(model)
    text = decoding.open(ids[:first_length], SamplingParams(temperature=0))
    whole = (len(ids) - first_length) // K * K
    decoding.extend(text, ids[first_length : first_length + whole])
    decoding.prefill([text], len(ids) + K)
    [draft] = decoding.draft([DraftRequest(text, ids[first_length + whole :], most, least)])
    return draft.token_ids


class Running:
    """A request of an engine."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.first_length = ids, len(ids)

    def verify(self, draft: Sequence[int], rng: random.Random) -> None:
        """As a teacher does: takes a part of the draft, and adds a token of its own."""
        self.ids += [*draft[: rng.randint(0, len(draft))], rng.randrange(2, 12)]


@pytest.mark.parametrize("kind", ["recurrent", "chunks", "tokens"])
def test_drafts_are_those_of_the_whole_texts(make_student: MakeStudent, kind: str) -> None:
    """Of requests that come and go in rows that are permuted and used again, two of them with the same prompt."""
    rng = random.Random(1)
    model = make_student(kind)
    drafter = Drafter(batch_decoding(model, 5), ALWAYS)
    waiting = [prompt_of(length, seed) for seed, length in enumerate([1, 9, 4, 9, 23, 2, 7])]
    waiting.insert(2, list(waiting[1]))
    running: list[Running] = []
    compared = 0
    for _ in range(24):
        while waiting and len(running) < 4:
            running.append(Running(waiting.pop()))
        rng.shuffle(running)
        drafts = drafter.draft([np.array(one.ids, np.int32) for one in running])
        for one, draft in zip(running, drafts, strict=True):
            assert draft == drafted_from_the_whole(model, one.ids, one.first_length)
            compared += len(draft)
            one.verify(draft, rng)
        running = [one for one in running if len(one.ids) < 40]
    assert compared > 100
    assert drafter.counts.drafted == compared
    # Read once: a text's tokens are not read again while it grows.
    assert drafter.counts.opened == 8
    assert drafter.counts.tokens_read <= 8 * (40 + 6 + K)


def test_equal_texts_part(make_student: MakeStudent) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 3), ALWAYS)
    same = prompt_of(6)
    first = drafter.draft([same, same, same])
    assert first == [drafted_from_the_whole(model, same, 6)] * 3
    texts = [[*same, 2, 3], [*same, 5], [*same, 2, 7, 8, 9, 10]]
    assert drafter.draft(texts) == [drafted_from_the_whole(model, ids, 6) for ids in texts]
    assert drafter.counts.opened == 3


def test_a_text_that_another_goes_on_with_keeps_its_own(make_student: MakeStudent) -> None:
    """Each of two texts, one the other's beginning, goes on with its own slot whatever their order is."""
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2), ALWAYS)
    short, long = prompt_of(5), prompt_of(5) + prompt_of(7, seed=3)
    drafter.draft([short, long])
    for texts in ([[*long, 4], [*short, 9]], [[*short, 9, 8], [*long, 4, 6]]):
        drafter.draft(texts)
    assert drafter.counts.opened == 2


def test_a_texts_slot_goes_to_another_when_it_is_seen_no_more(make_student: MakeStudent) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2), ALWAYS)
    first, second, third = prompt_of(5, 1), prompt_of(6, 2), prompt_of(7, 3)
    drafter.draft([first, second])
    drafter.draft([second])
    # The next turn of a text that was away goes on with its slot.
    assert drafter.draft([[*first, 4, 5, 6]]) == [drafted_from_the_whole(model, [*first, 4, 5, 6], 5)]
    assert drafter.counts.opened == 2
    # The one that was seen last but longest ago gives way.
    assert drafter.draft([third]) == [drafted_from_the_whole(model, third, 7)]
    drafter.draft([[*first, 4, 5, 6, 7]])
    assert drafter.counts.opened == 3
    drafter.draft([second])
    assert drafter.counts.opened == 4


def test_texts_without_a_slot_get_no_draft(make_student: MakeStudent) -> None:
    drafter = Drafter(batch_decoding(make_student("recurrent"), 2), ALWAYS)
    drafts = drafter.draft([prompt_of(5, seed) for seed in range(3)])
    assert [bool(draft) for draft in drafts] == [True, True, False]
    assert drafter.counts.without_slot == 1


def test_texts_beyond_the_context_get_no_draft(make_student: MakeStudent) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2, max_tokens=16), ALWAYS)
    ids = prompt_of(9)
    other = prompt_of(4, 5)
    # 9 tokens and 3 pads before them: 4 are left.
    assert len(drafter.draft([ids, other])[0]) == 4
    drafts = drafter.draft([[*ids, 2, 3], [*other, 7]])
    assert drafts[0] == drafted_from_the_whole(model, [*ids, 2, 3], 9, most=2)
    assert drafts[1] == drafted_from_the_whole(model, [*other, 7], 4)
    for length in (4, 5, 30):
        assert drafter.draft([[*ids, *prompt_of(length)], [*other, 7]])[0] == []
    assert drafter.counts.too_long == 3
    assert drafter.draft([prompt_of(400)]) == [[]]


def test_ids_that_the_student_has_not_get_no_draft(make_student: MakeStudent) -> None:
    """An engine's output layer may be wider than the vocabulary."""
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2), ALWAYS)
    ids = prompt_of(5)
    assert drafter.draft([[*ids, V], ids]) == [[], drafted_from_the_whole(model, ids, 5)]
    assert drafter.draft([[*ids, V], [*ids, V + 3, 4]]) == [[], []]
    assert drafter.draft([[]]) == [[]]


def test_a_long_prompt_is_read_over_several_calls(make_student: MakeStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_decoding, "PIECE_CHUNKS", 2)
    model = make_student("recurrent")
    drafter = Drafter(
        batch_decoding(model, 3), DraftRule(max_tokens=6, least_confidence=0.0, drafts_from="student", read_tokens=8)
    )
    long, short = prompt_of(30, 1), prompt_of(3, 2)
    found = []
    for _ in range(9):
        found.append(drafter.draft([long, short]))
        if found[-1][0]:
            break
        long = [*long, 5]
    assert found[0][0] == []
    assert found[-1][0] == drafted_from_the_whole(model, long, 30)


def test_a_draft_ends_by_the_rule_and_by_the_call(make_student: MakeStudent) -> None:
    model = make_student("recurrent")
    ids = prompt_of(9)
    whole = drafted_from_the_whole(model, ids, 9)
    drafter = Drafter(batch_decoding(model, 2), DraftRule(max_tokens=3, least_confidence=0.0, drafts_from="student"))
    assert drafter.draft([ids, ids], [8, 2]) == [whole[:3], whole[:2]]
    assert drafter.draft([ids, ids], [0, 1]) == [[], whole[:1]]
    for least in (0.02, 0.1, 0.5, 1.0):
        sure = Drafter(batch_decoding(model, 1), DraftRule(max_tokens=6, least_confidence=least, drafts_from="student"))
        assert sure.draft([ids]) == [drafted_from_the_whole(model, ids, 9, least=least)]


def test_a_wrong_rule_is_refused() -> None:
    for wrong in ({"max_tokens": 0}, {"read_tokens": 0}, {"least_confidence": 1.5}, {"least_confidence": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DraftRule(**wrong)


def test_passes_are_measured_where_they_went_on_with_the_same_texts(make_student: MakeStudent) -> None:
    now = 0.0

    def clock() -> float:
        return now

    drafter = Drafter(batch_decoding(make_student("recurrent"), 3), ALWAYS, clock)
    seen: list[tuple[int, float]] = []
    drafter.steps.speed.passes.observe = lambda *said: seen.append(said)  # type: ignore[method-assign]
    first, second = prompt_of(5, 1), prompt_of(6, 2)
    drafter.draft([first])
    now = 2.0
    # Another one's prompt was in that pass.
    drafter.draft([[*first, 3], second], [4, 6])
    now = 3.0
    drafter.draft([[*first, 3, 4], [*second, 5, 6, 7]])
    now = 7.0
    # One that has ended was in that one.
    drafter.draft([[*first, 3, 4, 8]])
    now = 7.5
    drafter.draft([[*first, 3, 4, 8, 8]])
    assert seen == [(1 + 4 + 1 + 6, 1.0), (1 + 6, 0.5)]


def test_a_drafter_that_is_closed_leaves_its_slots_to_the_next(make_student: MakeStudent) -> None:
    decoding = batch_decoding(make_student("chunks"), 2)
    texts = [prompt_of(5, 1), prompt_of(9, 2)]
    first = Drafter(decoding, ALWAYS)
    drafts = first.draft(texts)
    assert decoding.num_free == 0
    first.close()
    assert decoding.num_free == 2
    assert Drafter(decoding, ALWAYS).draft(texts) == drafts


def test_where_to_ask_the_student_does_not_pay_nothing_is_read_and_later_everything_is(
    make_student: MakeStudent,
) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2), DraftRule(max_tokens=6, drafts_from="student"))
    # What a token costs is not what is tried here.
    drafter.steps.speed.least = lambda rate, looked_up: 0.0  # type: ignore[method-assign,misc]
    first, second = list(prompt_of(9, 1)), list(prompt_of(5, 2))
    pays = True
    drafter.steps.trials.pays = lambda num_texts: pays  # type: ignore[method-assign]
    drafter.draft([first, second])
    read = drafter.counts.tokens_read
    pays = False
    for _ in range(5):
        first, second = [*first, 3, 4], [*second, 5, 6, 7]
        assert drafter.draft([first, second]) == [[], []]
        assert drafter.by_student == [False, False]
    assert drafter.counts.tokens_read == read
    pays = True
    first, second = [*first, 8], [*second, 9]
    assert drafter.draft([first, second]) == [
        drafted_from_the_whole(model, first, 9),
        drafted_from_the_whole(model, second, 5),
    ]
    assert drafter.counts.opened == 2


def test_steps_are_measured_by_whether_the_student_was_to_draft(make_student: MakeStudent) -> None:
    now, pays = 0.0, True
    drafter = Drafter(
        batch_decoding(make_student("recurrent"), 3), DraftRule(max_tokens=4, drafts_from="student"), lambda: now
    )
    drafter.steps.trials.pays = lambda num_texts: pays  # type: ignore[method-assign]
    seen: list[tuple[int, int, float, bool]] = []

    def noted(num_texts: int, num_tokens: int, seconds: float, *, asked: bool) -> None:
        seen.append((num_texts, num_tokens, seconds, asked))

    drafter.steps.trials.observe = noted  # type: ignore[method-assign]
    # The first four drafts of all are not measured.
    for _ in range(4):
        drafter.draft([prompt_of(3)])
    ids = list(prompt_of(5))
    for paying, seconds, new in ((True, 1.0, 2), (False, 2.0, 1), (False, 3.0, 1), (True, 4.0, 3), (True, 5.0, 2)):
        pays = paying
        drafter.draft([ids])
        now += seconds
        ids = [*ids, *[3] * new]
    drafter.draft([ids])
    # The step behind the first drafts again paid for what was read until then, and is left out.
    assert seen == [(1, 2, 1.0, True), (1, 1, 2.0, False), (1, 1, 3.0, False), (1, 2, 5.0, True)]
