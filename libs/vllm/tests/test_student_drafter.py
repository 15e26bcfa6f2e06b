import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from latentforge.core.pins import PINNED
from latentforge.drafter.drafter import Drafter, DraftRule
from latentforge.drafter.trials import DraftTrials
from latentforge.snapshots.snapshot import load_snapshot
from latentforge.vllm import StudentDrafter

from .conftest import MAX_TOKENS, NUM_DRAFT_TOKENS, FakeEngine, MakeDrafter, always, figure

Publish = Callable[..., Path]
GOOD, OTHER = 40, 41


def writes(token: int) -> Callable[[Sequence[int]], int]:
    """A teacher that writes one token for ever."""
    return lambda text: token


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def version(drafter: StudentDrafter) -> int:
    """The step of the checkpoint that the last step was drafted with."""
    return int(figure(drafter, "checkpoint_step", run="demo"))


def test_drafts_are_what_the_student_would_write(publish: Publish, make_drafter: MakeDrafter) -> None:
    place = publish(1)
    drafter = make_drafter()
    assert drafter.checkpoint is None
    engine = FakeEngine(drafter, writes(9))
    texts = {"a": [5, 6, 7], "b": list(range(2, 60)), "c": [8]}
    for name, text in texts.items():
        engine.add(name, text)
    engine.step()
    decoding = load_snapshot(place, torch.device("cpu")).decoding
    for name, text in texts.items():
        alone = Drafter(decoding, DraftRule(NUM_DRAFT_TOKENS, 0.0, drafts_from="student")).draft([[*text, 9]])
        assert engine.drafts[name] == alone[0]
    assert any(engine.drafts.values())
    assert drafter.checkpoint == "demo/step-00000001"


def test_a_step_in_which_to_ask_the_student_does_not_pay_says_nothing_of_a_version(
    publish: Publish, make_drafter: MakeDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pays = True
    monkeypatch.setattr(DraftTrials, "pays", lambda trials, num_texts: pays)
    publish(1, shape=always(GOOD))
    drafter = make_drafter(latentforge_least_confidence=None)
    judged: list[int] = []
    monkeypatch.setattr(
        drafter._versions, "count", lambda verified: judged.append(verified.num_accepted) if verified.version else None
    )
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5, 6, 7])
    for _ in range(3):
        engine.step()
    assert judged == [NUM_DRAFT_TOKENS] * 2
    pays = False
    for _ in range(3):
        engine.step()
    assert engine.drafts["a"] == []
    # The one that was drafted before.
    assert judged == [NUM_DRAFT_TOKENS] * 3


def test_what_is_looked_up_is_drafted_and_says_nothing_of_a_version(
    publish: Publish, make_drafter: MakeDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1, shape=always(OTHER))
    drafter = make_drafter(latentforge_drafts_from="both")
    whose: list[tuple[object, int]] = []
    monkeypatch.setattr(
        drafter._versions, "count", lambda verified: whose.append((verified.version, verified.num_accepted))
    )
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5, 6, 7])
    for _ in range(5):
        engine.step()
    # From the third on two tokens have stood there before, and the student, who never is right, is not asked.
    version = drafter._drafting
    assert whose == [(version, 0), (version, 0), (None, NUM_DRAFT_TOKENS), (None, NUM_DRAFT_TOKENS)]
    assert engine.drafts["a"] == [GOOD] * NUM_DRAFT_TOKENS
    assert figure(drafter, "looked_up_drafts_total") == 3
    assert figure(drafter, "accepted_tokens_total", position="1") == 2


def test_a_text_is_drafted_for_alike_whatever_row_it_has_and_whoever_is_beside_it(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    publish(1)

    def teacher(text: Sequence[int]) -> int:
        return (7 * len(text) + text[-1]) % 50 + 2

    def drafts_of(name: str, others: bool) -> list[list[int]]:
        engine, found = FakeEngine(make_drafter(), teacher), []
        engine.add(name, [3, int(name), 4])
        for step in range(24):
            if others and step % 3 == 0:
                engine.add(f"o{step}", [step + 2, 5])
            if others and step % 4 == 3:
                engine.finish(next(other for other in engine.texts if other != name))
            engine.step()
            found.append(engine.drafts[name])
        return found

    for name in ("11", "12"):
        assert drafts_of(name, others=True) == drafts_of(name, others=False)


def test_accepted_tokens_are_counted_by_position_as_the_engine_sees_them(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    # Three that are drafted, and one that is not.
    engine = FakeEngine(drafter, lambda text: GOOD if len(text) % 4 else OTHER)
    for name, prompt in {"a": [5, 6], "b": [5, 6], "c": [9, 9, 9]}.items():
        engine.add(name, prompt)
    for _ in range(20):
        engine.step()
    # What the last step drafted is not verified yet.
    counted = [figure(drafter, "accepted_tokens_total", position=str(p)) for p in range(1, NUM_DRAFT_TOKENS + 1)]
    assert counted == [sum(a >= p for a in engine.accepted) for p in range(1, NUM_DRAFT_TOKENS + 1)]
    assert counted[0] > counted[2] > 0
    drafts = [figure(drafter, "verified_tokens_total", position=str(p)) for p in range(1, NUM_DRAFT_TOKENS + 1)]
    assert drafts == [len(engine.accepted)] * NUM_DRAFT_TOKENS
    assert figure(drafter, "drafted_tokens_total") == 20 * 3 * NUM_DRAFT_TOKENS
    assert figure(drafter, "seconds_count") == 20


def test_a_prompt_that_is_still_being_read_gets_no_draft(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, shape=always(GOOD))
    engine = FakeEngine(make_drafter(), writes(GOOD))
    engine.add("read", [5, 6])
    engine.add("reading", [5, 6, 7])
    engine.step(reading=["reading"])
    assert engine.drafts == {"read": [GOOD] * NUM_DRAFT_TOKENS, "reading": []}
    engine.step(reading=["read", "reading"])
    assert engine.drafts == {"read": [], "reading": []}
    engine.step()
    assert engine.drafts["reading"] == [GOOD] * NUM_DRAFT_TOKENS


def test_texts_that_the_student_cannot_read_get_no_draft_and_harm_no_others(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    # A context of 64 tokens, before a teacher of 512 that writes ids of its own besides.
    publish(1, max_chunks=16, shape=always(GOOD))
    drafter = make_drafter({"vocab_size": 1000}, latentforge_acceptance_window=1)
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("long", [5] * 100)
    engine.add("strange", [5, 900])
    engine.add("plain", [5])
    engine.step()
    assert engine.drafts == {"long": [], "strange": [], "plain": [GOOD] * NUM_DRAFT_TOKENS}
    assert figure(drafter, "failures_total") == 0


def test_no_draft_goes_beyond_the_teachers_context(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, shape=always(GOOD))
    engine = FakeEngine(make_drafter(), writes(GOOD))
    engine.add("a", [5] * (MAX_TOKENS - 4))
    engine.step()
    assert engine.drafts["a"] == [GOOD] * 2


def test_a_newer_checkpoint_drafts_from_the_next_step_on(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    engine = FakeEngine(drafter, writes(GOOD))
    for name in "abc":
        engine.add(name, [5, ord(name)])
    engine.step()
    publish(2, shape=always(OTHER))
    until(lambda: drafter._registry.current is not None and drafter._registry.current.manifest.step == 2, "not loaded")
    assert version(drafter) == 1
    engine.step()
    # All of a step's drafts are one version's.
    assert engine.drafts == dict.fromkeys("abc", [OTHER] * NUM_DRAFT_TOKENS)
    assert (version(drafter), figure(drafter, "swaps_total")) == (2, 2)
    assert all(set(text[2:]) == {GOOD} for text in engine.texts.values())


def test_drafting_begins_with_the_first_checkpoint_that_there_is(publish: Publish, make_drafter: MakeDrafter) -> None:
    drafter = make_drafter()
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])
    engine.step()
    assert engine.drafts == {"a": []}
    publish(1, shape=always(GOOD))
    until(lambda: drafter._registry.current is not None, "not loaded")
    engine.step()
    assert engine.drafts == {"a": [GOOD] * NUM_DRAFT_TOKENS}


def test_a_damaged_checkpoint_is_quarantined_while_the_last_one_drafts(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])
    engine.step()
    # It writes other than what it was published for, as damaged weights do.
    publish(2, shape=always(OTHER), spoil=lambda student: student.bias.fill_(float("nan")))
    until(lambda: figure(drafter, "quarantines_total") == 1, "not quarantined")
    engine.step()
    assert engine.drafts == {"a": [GOOD] * NUM_DRAFT_TOKENS}
    assert version(drafter) == 1


def test_a_pin_rolls_back_and_forward(publish: Publish, make_drafter: MakeDrafter) -> None:
    first = publish(1, shape=always(GOOD))
    publish(2, shape=always(OTHER))
    drafter = make_drafter()
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])
    pinned = first.parent / PINNED

    def drafts(token: int) -> bool:
        engine.finish("a")
        engine.add("a", [5])
        engine.step()
        return engine.drafts == {"a": [token] * NUM_DRAFT_TOKENS}

    assert drafts(OTHER)
    pinned.write_text(first.name)
    until(lambda: drafts(GOOD), "not rolled back")
    pinned.unlink()
    until(lambda: drafts(OTHER), "not rolled forward")


class _Failing:
    """Fails at every second call, and gives ids that no engine has at the others."""

    def __init__(self) -> None:
        self.calls = 0

    def draft(self, texts: Sequence[object], most: Sequence[int]) -> list[list[int]]:
        self.calls += 1
        if self.calls % 2:
            raise RuntimeError("out of memory")
        return [[10**6] for _ in texts]

    def close(self) -> None:
        pass


def test_serving_goes_on_without_drafts_where_drafting_fails(
    publish: Publish, make_drafter: MakeDrafter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    failing = _Failing()
    monkeypatch.setattr(drafter._versions, "drafter_of", lambda version: failing)
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])
    for _ in range(4):
        engine.step()
    assert engine.texts["a"] == [5, *[GOOD] * 4]
    assert engine.drafts == {"a": []}
    assert figure(drafter, "failures_total") == 4
    # Once for a version.
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "demo/step-00000001 failed to draft; the teacher writes on without"
    ]


def test_what_the_engine_writes_into_its_arrays_later_changes_no_draft(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    publish(1)
    found = []
    for scribble in (False, True):
        drafter = make_drafter()
        lengths, ids = np.array([4], dtype=np.int32), np.full((1, 64), 7, dtype=np.int32)
        drafter.propose([[7]], lengths, ids)
        if scribble:
            ids[:] = 3
        lengths[0] = 5
        found.append(drafter.propose([[7]], lengths, np.full((1, 64), 7, dtype=np.int32)))
    assert found[0] == found[1]


def test_nothing_is_loaded_between_the_start_and_the_first_step(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    publish(2, shape=always(OTHER))
    time.sleep(0.5)
    current = drafter._registry.current
    assert current is not None
    assert current.manifest.step == 1
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])
    engine.step()
    until(lambda: drafter._registry.current is not current, "not loaded")


def test_serving_goes_on_where_anything_else_fails(
    publish: Publish, make_drafter: MakeDrafter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter()
    engine = FakeEngine(drafter, writes(GOOD))
    engine.add("a", [5])

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(drafter._metrics, "count_drafts", fail)
        for _ in range(3):
            engine.step()
            assert engine.drafts == {"a": []}
    engine.step()
    assert engine.drafts == {"a": [GOOD] * NUM_DRAFT_TOKENS}
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert told == ["a step got no drafts; the teacher writes on without"]
