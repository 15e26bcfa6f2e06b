import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from latentforge.core.checkpoints import UnknownCheckpointError
from latentforge.core.leases import LEASE_SECONDS, LEASES, leased
from latentforge.core.manifest import MANIFEST, CheckpointError
from latentforge.core.pins import PINNED
from latentforge.core.retention import prune_checkpoints
from latentforge.snapshots import loader
from latentforge.snapshots.loader import QuarantinedError
from latentforge.snapshots.registry import NothingServedError, Registry
from latentforge.snapshots.snapshot import Snapshot, load_snapshot

from .conftest import served

Publish = Callable[..., Path]


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
        patched.setattr("latentforge.snapshots.loader.load_snapshot", fail)
        assert served(registry) == "demo/step-00000001"
        assert registry.problem is not None
        assert "Input/output error" in registry.problem
    assert served(registry) == "demo/step-00000002"
    assert registry.problem is None


@pytest.fixture
def shipped(publish: Publish, checkpoints: Path, tmp_path: Path) -> Path:
    """A fallback run."""
    publish(7, run="shipped")
    (tmp_path / "models").mkdir()
    return (checkpoints / "shipped").rename(tmp_path / "models" / "shipped")


def test_a_fallback_is_served_while_all_that_is_published_is_bad(
    checkpoints: Path, publish: Publish, shipped: Path
) -> None:
    registry = Registry(checkpoints, None, torch.device("cpu"), fallback=shipped)
    cut_short(publish(1))
    assert served(registry) == "shipped/step-00000007"
    assert [bad.checkpoint for bad in registry.quarantined] == ["demo/step-00000001"]
    publish(2)
    assert served(registry) == "demo/step-00000002"


@pytest.mark.parametrize("emptied", ["", "demo", "demo/step-00000001"])
def test_what_was_trained_is_never_given_up_for_the_fallback(
    checkpoints: Path, publish: Publish, shipped: Path, emptied: str
) -> None:
    registry = Registry(checkpoints, None, torch.device("cpu"), fallback=shipped)
    publish(1)
    assert served(registry) == "demo/step-00000001"
    shutil.rmtree(checkpoints / emptied)
    for _ in range(2):
        assert served(registry) == "demo/step-00000001"
    assert len(registry.swaps) == 1


def test_a_checkpoint_is_loaded_beside_the_served_one_for_who_names_it(registry: Registry, publish: Publish) -> None:
    with pytest.raises(NothingServedError, match="the server waits for a first checkpoint"):
        registry.snapshot_for(None)
    publish(1)
    publish(2)
    registry.refresh()
    current = registry.current
    for name in (None, "latentforge", "demo/step-00000002", "demo/2", "demo"):
        assert registry.snapshot_for(name) is current
    assert registry.loaded == [current]
    older = registry.snapshot_for("demo/step-00000001")
    assert older.id == "demo/step-00000001"
    assert registry.snapshot_for("demo/step-00000001") is older
    assert registry.current is current
    assert registry.loaded == [current, older]
    assert (registry.counts.loads, registry.counts.quarantines, registry.num_swaps) == (2, 0, 1)
    assert registry.counts.load_seconds > 0


def test_what_was_loaded_beside_is_served_without_another_load_when_it_is_wanted(
    registry: Registry, publish: Publish
) -> None:
    place = publish(1)
    publish(2)
    registry.refresh()
    older = registry.snapshot_for("demo/step-00000001")
    (place.parent / PINNED).write_text(place.name)
    registry.refresh()
    assert registry.current is older
    assert registry.loaded == [older]
    assert (registry.counts.loads, registry.num_swaps) == (2, 2)


def test_so_many_are_kept_and_the_one_that_was_not_asked_for_longest_goes(checkpoints: Path, publish: Publish) -> None:
    registry = Registry(checkpoints, None, torch.device("cpu"), num_extra=2)
    for step in (1, 2, 3, 4):
        publish(step)
    registry.refresh()
    first, second = registry.snapshot_for("demo/1"), registry.snapshot_for("demo/2")
    assert registry.snapshot_for("demo/1") is first
    third = registry.snapshot_for("demo/3")
    assert registry.loaded[1:] == [first, third]
    assert registry.snapshot_for("demo/2") is not second


def test_none_is_kept_where_none_may_be(checkpoints: Path, publish: Publish) -> None:
    registry = Registry(checkpoints, None, torch.device("cpu"), num_extra=0, extra_setting="LATENTFORGE_EXTRA")
    publish(1)
    publish(2)
    registry.refresh()
    assert registry.snapshot_for("demo").id == "demo/step-00000002"
    with pytest.raises(UnknownCheckpointError, match=r"LATENTFORGE_EXTRA=0 keeps nothing"):
        registry.snapshot_for("demo/1")


NOBODY = (
    "",
    "/",
    "demo/",
    "demo/9",
    "demo/step-1",
    "demo/step-00000001/",
    "demo/step-00000001\n",
    "demo/²",
    "demo/../demo/1",
    "../demo/1",
    "..",
    "/etc/passwd",
    "nobody",
    "nobody/1",
    "a\0b",
    "x" * 300,
    "x" * 300 + "/1",
    "\ud800/1",
)


@pytest.mark.parametrize("name", NOBODY, ids=repr)
def test_a_name_that_nothing_has_is_refused_with_what_there_is(registry: Registry, publish: Publish, name: str) -> None:
    publish(1)
    publish(2)
    registry.refresh()
    with pytest.raises(UnknownCheckpointError, match="step-00000002"):
        registry.snapshot_for(name)
    assert registry.quarantined == []


def test_one_that_failed_its_checks_is_refused_with_the_reason_and_tried_once(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(publish(1))
    publish(2)
    registry.refresh()
    for _ in range(2):
        with pytest.raises(QuarantinedError, match="bytes, its manifest says"):
            registry.snapshot_for("demo/1")
    assert registry.counts.quarantines == 1
    assert [bad.checkpoint for bad in registry.quarantined] == ["demo/step-00000001"]


def test_a_runs_name_stands_for_what_would_be_served_of_it(registry: Registry, publish: Publish) -> None:
    publish(1, run="other")
    publish(2, run="other")
    cut_short(publish(3, run="other"))
    publish(1)
    registry.refresh()
    assert registry.snapshot_for("other").id == "other/step-00000002"
    (registry.root / "other" / PINNED).write_text("step-00000001")
    assert registry.snapshot_for("other").id == "other/step-00000001"
    (registry.root / "other" / PINNED).write_text("step-00000009")
    with pytest.raises(CheckpointError, match="names 'step-00000009'"):
        registry.snapshot_for("other")
    cut_short(registry.root / "other" / "step-00000002")
    (registry.root / "other" / PINNED).write_text("step-00000002")
    with pytest.raises(QuarantinedError):
        registry.snapshot_for("other")


def test_where_one_run_is_served_others_are_not_and_the_fallback_can_be_named(
    checkpoints: Path, publish: Publish, shipped: Path
) -> None:
    publish(1, run="other")
    publish(1)
    registry = Registry(checkpoints, "demo", torch.device("cpu"), fallback=shipped)
    registry.refresh()
    assert registry.snapshot_for("demo").id == "demo/step-00000001"
    for name in ("other", "other/1"):
        with pytest.raises(UnknownCheckpointError, match="not of the run 'demo', the only one that is served here"):
            registry.snapshot_for(name)
    assert registry.snapshot_for("shipped").id == "shipped/step-00000007"
    assert registry.snapshot_for("shipped/7") is registry.snapshot_for("shipped/step-00000007")


def test_requests_for_one_checkpoint_at_once_load_it_once(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(1)
    publish(2)
    registry.refresh()
    loads = 0
    everybody_asks = threading.Barrier(9)

    def slow(*arguments: Any) -> Snapshot:
        nonlocal loads
        loads += 1
        everybody_asks.wait(60)
        return load_snapshot(*arguments)

    monkeypatch.setattr(loader, "load_snapshot", slow)
    with ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> Snapshot:
            everybody_asks.wait(60)
            return registry.snapshot_for("demo/1")

        first = pool.submit(registry.snapshot_for, "demo/1")
        others = [pool.submit(ask, number) for number in range(7)]
        everybody_asks.wait(60)
        found = [future.result(60) for future in (first, *others)]
    assert loads == 1
    assert len({id(snapshot) for snapshot in found}) == 1


def test_one_that_is_published_anew_is_loaded_anew_and_one_that_is_gone_is_unknown(
    registry: Registry, publish: Publish
) -> None:
    place = publish(1)
    publish(2)
    registry.refresh()
    before = registry.snapshot_for("demo/1")
    shutil.rmtree(place)
    registry.refresh()
    assert registry.loaded == [registry.current]
    with pytest.raises(UnknownCheckpointError):
        registry.snapshot_for("demo/1")
    publish(1, weights=5)
    after = registry.snapshot_for("demo/1")
    assert after.digest != before.digest


def test_what_is_served_or_kept_is_on_lease_and_stays(registry: Registry, publish: Publish, checkpoints: Path) -> None:
    first, second = publish(1), publish(2)
    assert served(registry) == "demo/step-00000002"
    assert leased(checkpoints / "demo") == {second.name}
    registry.snapshot_for("demo/step-00000001")
    publish(3)
    publish(4)
    (checkpoints / "demo" / PINNED).write_text(second.name)
    assert served(registry) == "demo/step-00000002"
    (checkpoints / "demo" / PINNED).unlink()
    assert prune_checkpoints(checkpoints / "demo", 1) == ["step-00000003"]
    assert first.is_dir()
    # A server that lives renews its leases; one that died lets go of them in time.
    (lease,) = (checkpoints / "demo" / LEASES).glob(f"{first.name}~*")
    old = time.time() - LEASE_SECONDS / 2
    os.utime(lease, (old, old))
    registry.refresh()
    assert lease.stat().st_mtime > old + 1


def test_a_snapshot_that_was_served_before_is_served_again_instead_of_a_bad_one(
    registry: Registry, publish: Publish
) -> None:
    for step in (1, 2):
        publish(step)
        registry.refresh()
        if step == 1:
            first = registry.current
    bad = registry.current
    assert first is not None
    assert bad is not None
    registry.go_back(bad, first, "nobody wants it")
    assert registry.current is first
    assert [(b.checkpoint, b.reason) for b in registry.quarantined] == [(bad.id, "nobody wants it")]
    # The bad one is not taken again, and the good one not loaded anew; the next one is.
    assert served(registry) == first.id
    assert registry.current is first
    publish(3)
    assert served(registry) == "demo/step-00000003"


def test_what_came_after_a_bad_snapshot_is_not_given_up_for_it(registry: Registry, publish: Publish) -> None:
    snapshots = []
    for step in (1, 2, 3):
        publish(step)
        registry.refresh()
        assert registry.current is not None
        snapshots.append(registry.current)
    registry.go_back(snapshots[1], snapshots[0], "nobody wants it")
    assert registry.current is snapshots[2]
    assert [b.checkpoint for b in registry.quarantined] == [snapshots[1].id]


def test_a_bad_snapshot_is_taken_again_once_its_files_are_others(registry: Registry, publish: Publish) -> None:
    publish(1)
    registry.refresh()
    first, place = registry.current, publish(2)
    registry.refresh()
    assert first is not None
    assert registry.current is not None
    registry.go_back(registry.current, first, "nobody wants it")
    shutil.rmtree(place)
    publish(2, weights=5)
    assert served(registry) == "demo/step-00000002"


def test_the_way_back_is_kept_on_lease(registry: Registry, publish: Publish) -> None:
    first = publish(1)
    registry.refresh()
    registry.way_back = registry.current
    publish(2)
    registry.refresh()
    shutil.rmtree(first.parent / LEASES)
    registry.refresh()
    assert leased(first.parent) == {"step-00000001", "step-00000002"}


def test_a_snapshot_that_does_not_fit_its_use_is_quarantined_with_what_the_user_says(
    checkpoints: Path, publish: Publish
) -> None:
    def only_the_first(snapshot: Snapshot) -> None:
        if snapshot.manifest.step != 1:
            raise CheckpointError(f"{snapshot.id} is not the first")

    registry = Registry(checkpoints, None, torch.device("cpu"), check=only_the_first)
    publish(1)
    publish(2)
    assert served(registry) == "demo/step-00000001"
    assert [b.reason for b in registry.quarantined] == ["demo/step-00000002 is not the first"]
    assert registry.counts.quarantines == 1
