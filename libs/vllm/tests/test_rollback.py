"""A version whose drafts the teacher takes clearly less often goes, and the one before it drafts again."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentforge.core.leases import leased
from latentforge.model.student import Student
from latentforge.vllm import StudentDrafter
from latentforge.vllm.left import LEFT

from .conftest import NUM_DRAFT_TOKENS, FakeEngine, MakeDrafter, always, figure

Publish = Callable[..., Path]
GOOD, OTHER = 40, 41
WINDOW = 20


def served(drafter: StudentDrafter) -> str:
    current = drafter._registry.current
    assert current is not None
    return current.id


def until_served(drafter: StudentDrafter, step: int) -> None:
    deadline = time.monotonic() + 30
    while served(drafter) != f"demo/step-{step:08d}":
        assert time.monotonic() < deadline, f"step {step} is not loaded"
        time.sleep(0.01)


@pytest.fixture
def engine(publish: Publish, make_drafter: MakeDrafter) -> FakeEngine:
    """Three texts; the first version's drafts are taken for three tokens of six."""
    publish(1, shape=always(GOOD))
    engine = FakeEngine(
        make_drafter(latentforge_acceptance_window=WINDOW, latentforge_drafter_slots=3),
        lambda text: GOOD if len(text) % 4 else OTHER,
    )
    for name in "abc":
        engine.add(name, [5, ord(name)])
    return engine


def steps(engine: FakeEngine, num: int) -> None:
    for _ in range(num):
        engine.step()
        # Texts end, and others begin.
        for name, text in engine.texts.items():
            if len(text) > 400:
                engine.texts[name] = [5, ord(name)]
                engine.drafts.pop(name, None)


def nothing(student: Student) -> None:
    """Changes nothing: a student of random weights, whose drafts nobody takes."""


@pytest.mark.parametrize("shape", [always(OTHER + 1), nothing])
def test_a_version_whose_drafts_are_not_taken_is_left_for_the_last_one(
    shape: Callable[[Student], object], engine: FakeEngine, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    place = publish(2, shape=shape)
    until_served(drafter, 2)
    # While it is on trial, the trainer must not remove the way back.
    steps(engine, 1)
    drafter._registry.refresh()
    assert leased(place.parent) == {"step-00000001", "step-00000002"}
    with caplog.at_level(logging.WARNING):
        steps(engine, WINDOW)
    assert served(drafter) == "demo/step-00000001"
    assert set(engine.drafts["a"]) == {GOOD}
    assert [figure(drafter, name) for name in ("rollbacks_total", "swaps_total")] == [1, 3]
    assert figure(drafter, "checkpoint_step", run="demo") == 1
    [bad] = drafter._registry.quarantined
    assert bad.checkpoint == "demo/step-00000002"
    assert "of its drafts the teacher takes 0." in bad.reason
    assert "drafting with demo/step-00000001 again instead of demo/step-00000002" in caplog.text
    # Nor is it taken again.
    drafter._registry.refresh()
    steps(engine, 2)
    assert served(drafter) == "demo/step-00000001"


def test_the_next_version_is_taken_after_a_return_and_judged_by_the_good_one(
    engine: FakeEngine, publish: Publish
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    for step in (2, 3):
        publish(step, shape=always(OTHER + step))
        until_served(drafter, step)
        steps(engine, WINDOW)
        assert served(drafter) == "demo/step-00000001"
    publish(4, shape=always(GOOD), weights=9)
    until_served(drafter, 4)
    steps(engine, 3 * WINDOW)
    assert served(drafter) == "demo/step-00000004"
    assert figure(drafter, "rollbacks_total") == 2
    # It has been tried for long enough, and nothing is kept for it.
    assert drafter._registry.way_back is None


def test_versions_that_come_before_the_last_one_was_judged_are_judged_by_the_last_good_one(
    engine: FakeEngine, publish: Publish
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    for step in (2, 3, 4):
        publish(step, shape=always(OTHER + step))
        until_served(drafter, step)
        # Too few for a window: three drafts a step.
        steps(engine, WINDOW // 6)
    steps(engine, WINDOW)
    steps(engine, 3 * WINDOW)
    assert served(drafter) == "demo/step-00000001"


def test_a_version_as_good_as_the_last_one_stays(engine: FakeEngine, publish: Publish) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    publish(2, shape=always(GOOD), weights=7)
    until_served(drafter, 2)
    steps(engine, 10 * WINDOW)
    assert served(drafter) == "demo/step-00000002"
    assert figure(drafter, "rollbacks_total") == 0
    assert figure(drafter, "acceptance") == pytest.approx(3, abs=0.5)


def test_a_version_that_fails_at_every_step_is_left(
    engine: FakeEngine, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    publish(2, shape=always(GOOD))
    until_served(drafter, 2)
    drafter_of = drafter._versions.drafter_of

    def fail(version: object) -> object:
        if getattr(version, "id", None) == "demo/step-00000002":
            raise RuntimeError("it fails")
        return drafter_of(version)  # type: ignore[arg-type]

    monkeypatch.setattr(drafter._versions, "drafter_of", fail)
    steps(engine, WINDOW)
    assert served(drafter) == "demo/step-00000001"


def test_a_newer_version_that_comes_with_the_fall_is_taken_and_judged_by_the_good_one(
    engine: FakeEngine, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER + 2))
    until_served(drafter, 2)
    registry = drafter._registry
    go_back = registry.go_back

    def late(*args: object) -> None:
        # Loaded between the judgement and the return.
        publish(3, shape=always(OTHER + 3))
        until_served(drafter, 3)
        go_back(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "go_back", late)
    while served(drafter) == "demo/step-00000002":
        steps(engine, 1)
    monkeypatch.undo()
    assert served(drafter) == "demo/step-00000003"
    steps(engine, WINDOW)
    assert served(drafter) == "demo/step-00000001"
    assert {bad.checkpoint for bad in registry.quarantined} == {"demo/step-00000002", "demo/step-00000003"}


def test_a_window_of_none_never_goes_back(publish: Publish, make_drafter: MakeDrafter) -> None:
    publish(1, shape=always(GOOD))
    drafter = make_drafter(latentforge_acceptance_window=0)
    engine = FakeEngine(drafter, lambda text: GOOD)
    engine.add("a", [5])
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER))
    until_served(drafter, 2)
    steps(engine, 4 * WINDOW)
    assert served(drafter) == "demo/step-00000002"


def test_drafts_of_a_version_that_went_say_nothing_of_the_one_that_came(
    publish: Publish, make_drafter: MakeDrafter
) -> None:
    publish(1, shape=always(GOOD))
    # The window ends in the middle of a step, whose other drafts are the bad version's too.
    drafter = make_drafter(latentforge_acceptance_window=WINDOW)
    engine = FakeEngine(drafter, lambda text: GOOD)
    for name in "abc":
        engine.add(name, [5, ord(name)])
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER))
    until_served(drafter, 2)
    while served(drafter) == "demo/step-00000002":
        steps(engine, 1)
    while figure(drafter, "acceptance") == 0:
        steps(engine, 1)
    assert figure(drafter, "acceptance") == NUM_DRAFT_TOKENS


def test_a_version_that_went_is_not_taken_after_a_restart(
    engine: FakeEngine, publish: Publish, make_drafter: MakeDrafter, checkpoints: Path
) -> None:
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER))
    until_served(engine._drafter, 2)
    steps(engine, WINDOW)
    assert served(engine._drafter) == "demo/step-00000001"
    engine._drafter.close()

    restarted = make_drafter()
    assert served(restarted) == "demo/step-00000001"
    [bad] = restarted._registry.quarantined
    assert "demo/step-00000002 was left before: of its drafts the teacher takes 0." in bad.reason
    # Whoever never goes back takes it, as does whoever removes the record.
    assert served(make_drafter(latentforge_acceptance_window=0)) == "demo/step-00000002"
    (checkpoints / "demo" / LEFT / "step-00000002").unlink()
    assert served(make_drafter()) == "demo/step-00000002"


def test_another_checkpoint_of_the_same_step_is_taken(
    engine: FakeEngine, publish: Publish, make_drafter: MakeDrafter
) -> None:
    steps(engine, WINDOW)
    place = publish(2, shape=always(OTHER))
    until_served(engine._drafter, 2)
    steps(engine, WINDOW)
    engine._drafter.close()
    shutil.rmtree(place)
    publish(2, shape=always(GOOD))
    assert served(make_drafter()) == "demo/step-00000002"


def test_a_folder_that_cannot_be_written_has_no_record_and_goes_back_all_the_same(
    engine: FakeEngine, publish: Publish, checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER))
    (checkpoints / "demo" / LEFT).write_text("no folder")
    until_served(engine._drafter, 2)
    steps(engine, WINDOW)
    assert served(engine._drafter) == "demo/step-00000001"
    assert "demo/step-00000002 is taken again after a restart" in caplog.text


def test_a_version_is_on_trial_until_it_was_written_with_at_a_load_that_is_known(
    engine: FakeEngine, publish: Publish
) -> None:
    drafter = engine._drafter
    steps(engine, WINDOW)
    publish(2, shape=always(OTHER + 1))
    until_served(drafter, 2)
    # One text at once, where there were three: nobody knows what the last version would have done.
    for name in "bc":
        engine.finish(name)
    steps(engine, 6 * WINDOW)
    assert served(drafter) == "demo/step-00000002"
    for name in "bc":
        engine.add(name, [5, ord(name)])
    steps(engine, WINDOW)
    assert served(drafter) == "demo/step-00000001"
