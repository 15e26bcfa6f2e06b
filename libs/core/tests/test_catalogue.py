import json
import os
import shutil
import time
from pathlib import Path

import pytest

from latentforge.core.catalogue import pin_checkpoint, published_checkpoints, unpin_run
from latentforge.core.checkpoints import UnknownCheckpointError, chosen_checkpoint, find_checkpoint, newest_runs
from latentforge.core.manifest import MANIFEST, CheckpointError, Golden, ManifestDraft, TeacherId
from latentforge.core.pins import PINNED, read_pin
from latentforge.core.publishing import publish_checkpoint

DRAFT = ManifestDraft(
    chunk_size=8,
    latent_size=16,
    tokenizer_fingerprint="f" * 64,
    teacher=TeacherId(backend="embedded", model="m", revision="r"),
    metrics={"ce": 1.5},
    golden=Golden(text="a", token_ids=(1,), logprobs=(-1.0,), uniforms=(0.5,), drawn_ids=(2,)),
)


def publish(root: Path, run: str, step: int, created: str | None = None) -> Path:
    def write(folder: Path) -> None:
        for part in ("autoencoder", "student", "tokenizer"):
            (folder / part).mkdir()

    place = publish_checkpoint(root, run, step, DRAFT, write)
    if created is not None:
        say(place, created=created)
    return place


def say(place: Path, **changes: object) -> None:
    content = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps(content | changes))


def test_runs_are_ordered_by_what_manifests_say_and_not_by_their_files(tmp_path: Path) -> None:
    # Copied to another disk, the older ones last.
    for run, created in (
        ("c", "2026-01-03T00:00:00+02:00"),
        ("b", "2026-01-02T23:00:00Z"),
        ("a", "2026-01-01T00:00:00Z"),
    ):
        publish(tmp_path, run, 1, created)
    assert [folder.name for folder in newest_runs(tmp_path)] == ["b", "c", "a"]


def test_a_runs_time_is_that_of_its_last_step_by_number(tmp_path: Path) -> None:
    publish(tmp_path, "a", 10, "2026-01-01T00:00:00Z")
    publish(tmp_path, "a", 9, "2026-01-09T00:00:00Z")
    publish(tmp_path, "b", 1, "2026-01-05T00:00:00Z")
    assert chosen_checkpoint(tmp_path) == tmp_path / "b" / "step-00000001"
    assert chosen_checkpoint(tmp_path, "a") == tmp_path / "a" / "step-00000010"


def test_runs_that_are_equally_new_have_an_order_all_the_same(tmp_path: Path) -> None:
    for run in ("b", "c", "a"):
        publish(tmp_path, run, 1, "2026-01-01T00:00:00Z")
    assert [folder.name for folder in newest_runs(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize("ahead", [0, 200])
def test_a_clock_that_is_a_little_ahead_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    publish(tmp_path, "a", 1)
    publish(tmp_path, "b", 1)
    now = time.time() - ahead
    monkeypatch.setattr(time, "time", lambda: now)
    told: list[Exception] = []
    assert {folder.name for folder in newest_runs(tmp_path, told.append)} == {"a", "b"}
    assert told == []


@pytest.mark.parametrize("file_time", ["past", "future"])
def test_a_time_that_is_yet_to_come_is_told_and_counts_as_now_at_most(tmp_path: Path, file_time: str) -> None:
    ahead = publish(tmp_path, "ahead", 1, "2999-01-01T00:00:00Z")
    publish(tmp_path, "true", 1)
    seconds = time.time() + (-3600 if file_time == "past" else 10**6)
    os.utime(ahead / MANIFEST, (seconds, seconds))
    told: list[Exception] = []
    newest = newest_runs(tmp_path, told.append)[0].name
    assert newest == ("true" if file_time == "past" else "ahead")
    [error] = told
    assert f"{ahead / MANIFEST} says that it was created at a time that is yet to come" in str(error)
    # It stays so only until somebody publishes: nobody is hidden for ever.
    time.sleep(0.01)
    publish(tmp_path, "later", 1)
    os.utime(ahead / MANIFEST, (seconds - 2 * 10**6, seconds - 2 * 10**6))
    assert newest_runs(tmp_path, told.append)[0].name == "later"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"created": 5}', b'{"created": "x"}', b"\xff", b"[" * 10**5])
def test_a_manifest_that_says_no_time_counts_as_its_file(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path, "a", 1, "2026-01-01T00:00:00Z")
    place = publish(tmp_path, "b", 1)
    (place / MANIFEST).write_bytes(content)
    assert [folder.name for folder in newest_runs(tmp_path)] == ["b", "a"]


def test_all_that_is_published_is_listed_newest_first(tmp_path: Path) -> None:
    publish(tmp_path, "old", 5, "2026-01-01T00:00:00Z")
    publish(tmp_path, "new", 2)
    bad = publish(tmp_path, "new", 1)
    (bad / MANIFEST).write_text("{")
    listed = published_checkpoints(tmp_path)
    assert [one.id for one in listed] == ["new/step-00000002", "new/step-00000001", "old/step-00000005"]
    assert [one.is_wanted for one in listed] == [True, False, False]
    assert [one.is_wanted for one in published_checkpoints(tmp_path, followed="old")] == [False, False, True]
    assert [one.manifest is None for one in listed] == [False, True, False]
    assert listed[0].manifest is not None
    assert listed[0].manifest.metrics == {"ce": 1.5}
    assert listed[1].problem is not None
    assert "is not a manifest" in listed[1].problem
    assert published_checkpoints(tmp_path / "absent") == []


def test_a_pin_changes_what_is_wanted_until_it_is_taken_away(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        publish(tmp_path, "run", step)
    assert pin_checkpoint(tmp_path, "run/step-00000001") == tmp_path / "run" / "step-00000001"
    assert (tmp_path / "run" / PINNED).read_text() == "step-00000001\n"
    assert pin_checkpoint(tmp_path, "run/2") == tmp_path / "run" / "step-00000002"
    assert chosen_checkpoint(tmp_path) == tmp_path / "run" / "step-00000002"
    assert [(one.is_pinned, one.is_wanted) for one in published_checkpoints(tmp_path)] == [
        (False, False),
        (True, True),
        (False, False),
    ]
    assert unpin_run(tmp_path, "run")
    assert not unpin_run(tmp_path, "run")
    assert chosen_checkpoint(tmp_path) == tmp_path / "run" / "step-00000003"


def test_what_cannot_be_pinned_is_named_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(UnknownCheckpointError, match=r"no checkpoint is published as 'run/1'; .* has none"):
        pin_checkpoint(tmp_path, "run/1")
    publish(tmp_path, "run", 1)
    with pytest.raises(UnknownCheckpointError, match="run 'run' has no 'step-00000009'; it has step-00000001"):
        pin_checkpoint(tmp_path, "run/9")
    with pytest.raises(UnknownCheckpointError, match="as 'other/1'; published are run/step-00000001"):
        pin_checkpoint(tmp_path, "other/1")
    with pytest.raises(UnknownCheckpointError, match="as 'run'; published are"):
        pin_checkpoint(tmp_path, "run")
    with pytest.raises(UnknownCheckpointError, match="there is no run 'other'; there are run"):
        unpin_run(tmp_path, "other")
    for name in ("../run", "", "."):
        with pytest.raises(UnknownCheckpointError):
            unpin_run(tmp_path / "run", name)
    say(publish(tmp_path, "run", 2), format_version=4)
    with pytest.raises(CheckpointError, match="format_version is 4"):
        pin_checkpoint(tmp_path, "run/2")
    assert read_pin(tmp_path / "run") is None


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to("step-00000001")


@pytest.mark.parametrize("make", [make_folder, make_link, os.mkfifo])
def test_what_stands_for_a_pin_and_is_none_is_named_and_nothing_is_wanted(tmp_path: Path, make: object) -> None:
    publish(tmp_path, "run", 1)
    publish(tmp_path, "run", 2)
    assert callable(make)
    make(tmp_path / "run" / PINNED)
    with pytest.raises(CheckpointError, match="is not a file; write a folder's name, like step-"):
        chosen_checkpoint(tmp_path)
    listed = published_checkpoints(tmp_path)
    assert not any(one.is_wanted for one in listed)
    assert listed[0].problem is not None
    assert "is not a file" in listed[0].problem


def test_a_folder_in_a_pins_place_is_left_to_its_owner(tmp_path: Path) -> None:
    publish(tmp_path, "run", 1)
    (tmp_path / "run" / PINNED).mkdir()
    with pytest.raises(CheckpointError, match="is a folder; remove it"):
        pin_checkpoint(tmp_path, "run/1")
    assert (tmp_path / "run" / PINNED).is_dir()


def test_a_link_to_a_run_is_not_found_by_its_name(tmp_path: Path) -> None:
    publish(tmp_path, "run", 1)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert find_checkpoint(tmp_path, "run/1") == tmp_path / "run" / "step-00000001"
    with pytest.raises(UnknownCheckpointError):
        find_checkpoint(tmp_path, "link/1")
    with pytest.raises(CheckpointError, match="is a symbolic link"):
        chosen_checkpoint(tmp_path, "link")
    shutil.rmtree(tmp_path / "run")
    assert published_checkpoints(tmp_path) == []
