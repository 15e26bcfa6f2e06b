import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from latentforge.core.manifest import MANIFEST
from latentforge.core.pins import PINNED
from latentforge.inference.checkpoints.registry import Registry
from latentforge.inference.checkpoints.snapshot import Snapshot

Publish = Callable[..., Path]


@pytest.fixture
def registry(checkpoints: Path) -> Registry:
    return Registry(checkpoints, None, torch.device("cpu"))


def served(registry: Registry) -> str | None:
    registry.refresh()
    return registry.current.id if registry.current else None


def cut_short(place: Path) -> None:
    weights = place / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])


def test_nothing_is_served_from_a_folder_that_does_not_exist(registry: Registry, checkpoints: Path) -> None:
    assert served(registry) is None
    assert registry.waiting_for == f"a first checkpoint in {checkpoints}"


def test_a_fallback_is_served_until_there_is_a_checkpoint(checkpoints: Path, publish: Publish, tmp_path: Path) -> None:
    publish(7, run="shipped")
    shipped = tmp_path / "models" / "shipped"
    shipped.parent.mkdir()
    (checkpoints / "shipped").rename(shipped)
    registry = Registry(checkpoints, None, torch.device("cpu"), fallback=shipped)
    assert served(registry) == "shipped/step-00000007"
    publish(1)
    assert served(registry) == "demo/step-00000001"
    missing = Registry(checkpoints, "other", torch.device("cpu"), fallback=tmp_path / "nothing")
    assert served(missing) is None


def test_the_newest_is_loaded_and_a_newer_one_is_swapped_in(registry: Registry, publish: Publish) -> None:
    publish(1)
    assert served(registry) == "demo/step-00000001"
    publish(2)
    assert served(registry) == "demo/step-00000002"
    assert [(swap.before, swap.after) for swap in registry.swaps] == [
        (None, "demo/step-00000001"),
        ("demo/step-00000001", "demo/step-00000002"),
    ]


@pytest.mark.parametrize(("older", "newer"), [(9, 10), (99, 100)])
def test_steps_are_compared_as_numbers(registry: Registry, publish: Publish, older: int, newer: int) -> None:
    publish(newer)
    publish(older)
    assert served(registry) == f"demo/step-{newer:08d}"


def test_an_unchanged_folder_is_not_loaded_again(registry: Registry, publish: Publish) -> None:
    publish(1)
    registry.refresh()
    first = registry.current
    registry.refresh()
    assert registry.current is first
    assert len(registry.swaps) == 1


def test_a_step_that_is_published_anew_with_other_weights_is_loaded(registry: Registry, publish: Publish) -> None:
    place = publish(5, weights=1)
    registry.refresh()
    first = registry.current
    shutil.rmtree(place)
    publish(5, weights=2)
    registry.refresh()
    assert registry.current is not first
    assert registry.current is not None
    assert first is not None
    assert registry.current.manifest.golden != first.manifest.golden


def test_a_bad_checkpoint_is_quarantined_once_and_the_old_one_serves_on(
    registry: Registry, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    publish(1)
    registry.refresh()
    cut_short(publish(2))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert served(registry) == "demo/step-00000001"
    [bad] = registry.quarantined
    assert bad.checkpoint == "demo/step-00000002"
    assert "bytes, its manifest says" in bad.reason
    assert len([record for record in caplog.records if "quarantined" in record.message]) == 1


def test_a_quarantined_checkpoint_is_tried_again_when_it_changes(registry: Registry, publish: Publish) -> None:
    publish(1)
    place = publish(2)
    weights = place / "student" / "model.safetensors"
    whole = weights.read_bytes()
    cut_short(place)
    assert served(registry) == "demo/step-00000001"
    weights.write_bytes(whole)
    assert served(registry) == "demo/step-00000002"
    assert registry.quarantined == []


def test_a_torn_checkpoint_does_not_hide_the_good_one_before_it(registry: Registry, publish: Publish) -> None:
    publish(1)
    publish(2)
    cut_short(publish(3))
    assert served(registry) == "demo/step-00000002"


def test_a_folder_without_manifest_is_not_looked_at(registry: Registry, publish: Publish) -> None:
    publish(1)
    place = publish(2)
    (place / MANIFEST).rename(place / "manifest.json.partial")
    assert served(registry) == "demo/step-00000001"
    assert registry.quarantined == []


def test_a_student_that_diverged_is_quarantined_and_the_old_one_serves_on(registry: Registry, publish: Publish) -> None:
    publish(1)
    registry.refresh()
    publish(2, spoil=lambda student: student.bias.fill_(torch.nan))
    assert served(registry) == "demo/step-00000001"
    [bad] = registry.quarantined
    assert bad.checkpoint == "demo/step-00000002"
    assert "not finite" in bad.reason


def test_damage_to_the_served_checkpoint_on_disk_does_not_bring_an_older_one_back(
    registry: Registry, publish: Publish
) -> None:
    publish(1)
    place = publish(2)
    registry.refresh()
    cut_short(place)
    for _ in range(2):
        assert served(registry) == "demo/step-00000002"
    assert [bad.checkpoint for bad in registry.quarantined] == ["demo/step-00000002"]


def test_a_pin_brings_a_smaller_step_back_and_its_removal_the_newest(registry: Registry, publish: Publish) -> None:
    place = publish(1)
    publish(2)
    assert served(registry) == "demo/step-00000002"
    pin = place.parent / PINNED
    pin.write_text("step-00000001\n")
    assert served(registry) == "demo/step-00000001"
    publish(3)
    assert served(registry) == "demo/step-00000001"
    pin.unlink()
    assert served(registry) == "demo/step-00000003"


def test_a_pin_to_nothing_is_a_problem_and_changes_nothing(registry: Registry, publish: Publish) -> None:
    place = publish(1)
    registry.refresh()
    (place.parent / PINNED).write_text("step-00000009")
    publish(2)
    assert served(registry) == "demo/step-00000001"
    assert registry.problem is not None
    assert "step-00000009" in registry.problem
    (place.parent / PINNED).unlink()
    assert served(registry) == "demo/step-00000002"
    assert registry.problem is None


def test_a_pin_that_windows_wrote_is_understood_and_one_that_is_no_text_is_a_problem(
    registry: Registry, publish: Publish
) -> None:
    place = publish(1)
    publish(2)
    pin = place.parent / PINNED
    pin.write_bytes("step-00000001\r\n".encode("utf-16"))
    assert served(registry) == "demo/step-00000001"
    pin.write_bytes(b"step-\xe9")
    assert served(registry) == "demo/step-00000001"
    assert registry.problem is not None
    assert str(pin) in registry.problem


def test_a_wrong_pin_of_another_run_does_not_end_the_search(registry: Registry, publish: Publish) -> None:
    now = time.time_ns()
    for age, run in enumerate(["third", "second", "first"]):
        place = publish(1, run=run)
        os.utime(place / MANIFEST, ns=(now, now - (3 - age) * 10**9))
    cut_short(place)
    (place.parent.parent / "second" / PINNED).write_text("step-00000009")
    assert served(registry) == "third/step-00000001"
    assert registry.problem is not None
    assert "step-00000009" in registry.problem


def test_a_folder_that_cannot_be_read_is_passed_over_and_said(
    registry: Registry, publish: Publish, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = checkpoints / "lost+found"
    lost.mkdir(parents=True)
    iterdir = Path.iterdir

    def deny(path: Path) -> Iterator[Path]:
        if path == lost:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", deny)
    assert served(registry) is None
    assert registry.waiting_for.startswith(f"a first checkpoint in {checkpoints}; passed over: ")
    publish(1)
    assert served(registry) == "demo/step-00000001"
    assert registry.problem == f"passed over: [Errno 13] Permission denied: '{lost}'"


def test_a_quarantined_checkpoint_that_cannot_be_looked_at_does_not_end_the_search(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    bad = publish(2, run="other")
    cut_short(bad)
    assert served(registry) == "demo/step-00000001"
    publish(3)
    is_dir, iterdir = Path.is_dir, Path.iterdir

    # What a run's folder of mode 000 does.
    def look(path: Path) -> bool:
        if path.parent == bad.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    def entries(path: Path) -> Iterator[Path]:
        if path == bad.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "is_dir", look)
    monkeypatch.setattr(Path, "iterdir", entries)
    assert served(registry) == "demo/step-00000003"
    assert registry.problem is not None
    assert f"passed over: [Errno 13] Permission denied: '{bad}'" in registry.problem
    assert [found.checkpoint for found in registry.quarantined] == ["other/step-00000002"]


def test_a_pin_to_a_bad_checkpoint_serves_nothing_else_to_a_new_server(registry: Registry, publish: Publish) -> None:
    publish(2)
    place = publish(1)
    cut_short(place)
    (place.parent / PINNED).write_text(place.name)
    assert served(registry) is None
    assert "bytes, its manifest says" in registry.waiting_for


def test_without_a_run_the_last_publisher_is_followed_and_with_one_only_that(
    registry: Registry, publish: Publish, checkpoints: Path
) -> None:
    old = publish(900, run="first")
    os.utime(old / MANIFEST, ns=(time.time_ns(), time.time_ns() - 10**9))
    publish(1, run="second")
    assert served(registry) == "second/step-00000001"
    assert served(Registry(checkpoints, "first", torch.device("cpu"))) == "first/step-00000900"


def test_a_new_run_that_is_all_bad_leaves_the_other_run_served(registry: Registry, publish: Publish) -> None:
    old = publish(900, run="first")
    os.utime(old / MANIFEST, ns=(time.time_ns(), time.time_ns() - 10**9))
    cut_short(publish(1, run="second"))
    assert served(registry) == "first/step-00000900"


def test_a_checkpoint_that_cannot_be_read_now_is_tried_again(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    registry.refresh()
    publish(2)

    def fail(*_: object) -> Snapshot:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("latentforge.inference.checkpoints.registry.load_snapshot", fail)
        assert served(registry) == "demo/step-00000001"
        assert registry.problem is not None
        assert "Input/output error" in registry.problem
    assert served(registry) == "demo/step-00000002"
    assert registry.problem is None
