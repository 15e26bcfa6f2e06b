"""Lookups beside a slow reference that compares the end with every place."""

import itertools
import random
from collections.abc import Callable, Sequence

import pytest

from latentforge.drafter.drafter import Drafter, DraftRule
from latentforge.drafter.lookup import Lookups, Match, TextIndex
from latentforge.model.decoding.batch import DraftRequest
from latentforge.model.decoding.build import batch_decoding
from latentforge.model.latent_model import LatentModel
from latentforge.model.sampling import SamplingParams

MakeStudent = Callable[[str], LatentModel]


def matched(ids: Sequence[int], most: int) -> Match | None:
    """The same as an index finds, by comparing all places, of which it compares the last eight that end alike."""
    best = None
    places = [place for place in range(2, len(ids)) if list(ids[place - 2 : place]) == list(ids[-2:])][-8:]
    for place in places:
        num = 2
        while num < 16 and num < place and ids[place - 1 - num] == ids[-1 - num]:
            num += 1
        if best is None or num >= best[0]:
            best = (num, place)
    if best is None:
        return None
    # As if the text went on as it did there: what is copied is copied on.
    longer = list(ids)
    for _ in range(most):
        longer.append(longer[best[1] + len(longer) - len(ids)])
    return Match(best[0], longer[len(ids) :])


@pytest.mark.parametrize("num_ids", [2, 4, 30])
def test_matches_are_those_of_comparing_all_places(num_ids: int) -> None:
    rng = random.Random(num_ids)
    found = 0
    for _ in range(40):
        ids: list[int] = []
        index = TextIndex()
        while len(ids) < 60:
            new = [rng.randrange(num_ids) for _ in range(rng.randint(1, 5))]
            if len(ids) > 10 and rng.random() < 0.3:
                start = rng.randrange(len(ids) - 5)
                new = ids[start : start + 10]
            ids += new
            index.extend(new)
            assert index.match(5) == matched(ids, 5)
            found += index.match(5) is not None
    assert found > 30


def test_a_text_that_goes_round_is_drafted_round() -> None:
    index = TextIndex()
    index.extend([7, 8, 1, 2, 3, 1, 2, 3, 1, 2, 3])
    match = index.match(8)
    assert match == Match(6, [1, 2, 3, 1, 2, 3, 1, 2])


@pytest.mark.parametrize("ids", [[], [4], [4, 4], [1, 2, 3, 4, 5], [1, 2, 3, 2, 1]])
def test_what_is_new_has_no_match(ids: list[int]) -> None:
    index = TextIndex()
    index.extend(ids)
    assert index.match(8) is None
    assert Lookups().draft(None, 8, 0.0) == ([], 0.0)


def test_a_draft_ends_where_it_becomes_unlikely() -> None:
    lookups, match = Lookups(), Match(2, [5, 6, 7, 8])
    # 2/3.5, 3/4.5, 4/5.5 and 5/6.5, one behind the other.
    chances = [0.5714, 0.3810, 0.2771, 0.2131]
    assert lookups.draft(match, 8, 0.0).expected == pytest.approx(sum(chances), abs=1e-3)
    for num, least in enumerate([0.6, 0.4, 0.3, 0.25, 0.2]):
        assert lookups.draft(match, 8, least).token_ids == match.following[:num]
    assert lookups.draft(match, 3, 0.0).token_ids == [5, 6, 7]
    assert lookups.draft(match, -1, 0.0).token_ids == []


def test_chances_are_learnt_by_how_much_is_alike() -> None:
    lookups, rng = Lookups(), random.Random(0)
    for _ in range(600):
        # The first token behind two alike is right one time in four, and behind three nine times in ten.
        lookups.observe(Match(2, [1, 1]), [int(rng.random() < 0.25), int(rng.random() < 0.9)])
    assert lookups.chance(2) == pytest.approx(0.25, abs=0.1)
    assert lookups.chance(3) == pytest.approx(0.9, abs=0.1)
    assert lookups.chance(4) == pytest.approx(4 / 5.5)
    # As many as that are not told apart.
    lookups.observe(Match(15, [1] * 8), [1] * 8)
    assert lookups.chance(99) == lookups.chance(16) > 16 / 17.5


def test_behind_the_first_wrong_token_nothing_is_learnt() -> None:
    lookups = Lookups()
    lookups.observe(Match(4, [1, 2, 3]), [1, 9, 3])
    assert lookups.chance(4) > 4 / 5.5
    assert lookups.chance(5) < 5 / 6.5
    assert lookups.chance(6) == pytest.approx(6 / 7.5)


def by_student(model: LatentModel, ids: Sequence[int]) -> list[int]:
    decoding = batch_decoding(model, 1)
    text = decoding.open(ids, SamplingParams(temperature=0))
    decoding.prefill([text], len(ids) + 4)
    return decoding.draft([DraftRequest(text, [], 6)])[0].token_ids


def test_the_student_is_asked_where_a_text_is_new_and_reads_what_was_looked_up_meanwhile(
    make_student: MakeStudent,
) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 2), DraftRule(max_tokens=6, least_confidence=0.0))
    round_about, new = [2, 3, 4, 5, 2, 3, 4, 5, 2, 3], [9, 8, 7, 6]
    assert drafter.draft([round_about, new]) == [[4, 5, 2, 3, 4, 5], by_student(model, new)]
    assert drafter.by_student == [False, True]
    assert drafter.counts.tokens_read == 4
    round_about = [*round_about, 4, 5, 2, 3, 4, 5, 30, 31]
    assert drafter.draft([round_about, [*new, 5, 4]])[0] == by_student(model, round_about)
    assert drafter.by_student == [True, True]
    assert drafter.counts.looked_up == 1


def test_the_student_is_asked_where_lookups_were_wrong(make_student: MakeStudent) -> None:
    drafter = Drafter(batch_decoding(make_student("recurrent"), 1), DraftRule(max_tokens=6, least_confidence=0.0))
    ids, asked = [2, 3], []
    for number in range(150):
        drafter.draft([ids])
        asked += drafter.by_student
        # Always behind the same two, and never the same.
        ids = [*ids, 4 + number % 50, 2, 3] if len(ids) < 48 else [2, 3, 4, 2, 3]
    assert not any(asked[2:14])
    assert all(asked[-20:])


def test_where_to_ask_the_student_does_not_pay_there_are_lookups(make_student: MakeStudent) -> None:
    drafter = Drafter(batch_decoding(make_student("recurrent"), 2), DraftRule(max_tokens=6))
    drafter.steps.trials.pays = lambda num_texts: False  # type: ignore[method-assign]
    # Then even what is hardly ever right, for nobody else drafts.
    for _ in range(200):
        drafter._lookups.observe(Match(4, [1]), [2])
    assert drafter.draft([[2, 3, 4, 5, 7, 8, 2, 3, 4, 5], [9, 8, 7]]) == [[7, 8, 2, 3, 4, 5], []]
    assert drafter.by_student == [False, False]
    assert drafter.counts.tokens_read == 0


def test_drafts_are_timed_by_the_students_tokens_alone(make_student: MakeStudent) -> None:
    drafter = Drafter(batch_decoding(make_student("recurrent"), 2), DraftRule(max_tokens=6, least_confidence=0.0))
    ended: list[int | None] = []
    drafter.steps.end = ended.append  # type: ignore[method-assign,assignment]
    round_about = [2, 3, 4, 5, 2, 3, 4, 5, 2, 3]
    drafter.draft([round_about, [9, 8, 7]], [6, 4])
    drafter.draft([[*round_about, 4]])
    assert ended == [4, None]


def test_the_rule_may_leave_them_out(make_student: MakeStudent) -> None:
    model = make_student("recurrent")
    drafter = Drafter(batch_decoding(model, 1), DraftRule(max_tokens=6, least_confidence=0.0, drafts_from="student"))
    ids = [2, 3, 4, 5, 2, 3, 4, 5, 2, 3]
    assert drafter.draft([ids]) == [by_student(model, ids)]
    assert drafter.by_student == [True]


@pytest.mark.parametrize("least", [0.0, None])
def test_the_rule_may_leave_the_student_out(make_student: MakeStudent, least: float | None) -> None:
    rule = DraftRule(max_tokens=6, least_confidence=least, drafts_from="lookups")
    # Every call of the clock is a second later, so that no machine's speed has a say.
    drafter = Drafter(batch_decoding(make_student("recurrent"), 2), rule, itertools.count().__next__)
    for end in range(10, 40):
        ids = ([2, 3, 4, 5] * 10)[:end]
        drafts = drafter.draft([ids, [9, *range(10, end)]])
        assert drafts == [([2, 3, 4, 5] * 20)[end : end + 6], []]
    assert drafter.by_student == [False, False]
    assert drafter.counts.tokens_read == 0
