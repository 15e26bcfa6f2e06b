import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from latentforge.core.checkpoint_files import read_manifest, verify_checkpoint
from latentforge.core.checkpoints import chosen_checkpoint, list_checkpoints, newest_runs
from latentforge.core.manifest import MOST_SAMPLES, CheckpointError, Golden, ManifestDraft, TeacherId, TextSample
from latentforge.core.publishing import publish_checkpoint

DRAFT = ManifestDraft(
    chunk_size=8,
    latent_size=16,
    tokenizer_fingerprint="f" * 64,
    teacher=TeacherId(backend="embedded", model="m", revision="r"),
    metrics={"ce": 1.5},
    golden=Golden(text="a", token_ids=(1,), logprobs=(-1.0,), uniforms=(0.5,), drawn_ids=(2,)),
)


def write_parts(folder: Path) -> None:
    for part in ("autoencoder", "student", "tokenizer"):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(part)


def publish(root: Path, step: int, run: str = "run", write: Callable[[Path], None] = write_parts) -> Path:
    return publish_checkpoint(root, run, step, DRAFT, write)


def test_what_is_published_verifies_and_is_named(tmp_path: Path) -> None:
    place = publish(tmp_path, 1200)
    assert place == tmp_path / "run" / "step-00001200"
    manifest = verify_checkpoint(place)
    assert manifest.id == "run/step-00001200"
    assert set(manifest.files) == {f"{p}/config.json" for p in ("autoencoder", "student", "tokenizer")}
    assert manifest.golden == DRAFT.golden


def test_samples_and_averaged_weights_are_in_the_manifest_and_without_any_it_is_as_it_was_before(
    tmp_path: Path,
) -> None:
    place = publish(tmp_path, 1)
    assert not {"samples", "ema"} & json.loads((place / "manifest.json").read_text()).keys()
    assert read_manifest(place).samples == ()
    samples = tuple(TextSample(prompt="def f", text=str(i)) for i in range(MOST_SAMPLES))
    place = publish_checkpoint(
        tmp_path, "run", 2, DRAFT.model_copy(update={"samples": samples, "ema": 0.9}), write_parts
    )
    assert (verify_checkpoint(place).samples, read_manifest(place).ema) == (samples, 0.9)
    with pytest.raises(ValidationError, match="samples"):
        ManifestDraft(**dict(DRAFT) | {"samples": (*samples, samples[0])})


def test_a_failed_publish_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_parts(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        publish(tmp_path, 1, write=fail)
    with pytest.raises(CheckpointError, match="nothing was written for student, tokenizer"):
        publish(tmp_path, 1, write=lambda folder: (folder / "autoencoder").mkdir())
    assert list((tmp_path / "run").iterdir()) == []


def test_nothing_is_visible_before_the_manifest(tmp_path: Path) -> None:
    def look(folder: Path) -> None:
        write_parts(folder)
        assert chosen_checkpoint(tmp_path) is None
        assert list_checkpoints(tmp_path / "run") == []

    publish(tmp_path, 1, write=look)
    assert chosen_checkpoint(tmp_path) is not None


def truncate(place: Path) -> None:
    (place / "student" / "config.json").write_text("stud")


def change(place: Path) -> None:
    (place / "student" / "config.json").write_text("STUDENT")


def remove(place: Path) -> None:
    (place / "student" / "config.json").unlink()


def add(place: Path) -> None:
    (place / "student" / "model.bin").write_text("x")


def drop_manifest(place: Path) -> None:
    (place / "manifest.json").unlink()


def cut_manifest(place: Path) -> None:
    path = place / "manifest.json"
    path.write_text(path.read_text()[:-30])


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (truncate, "has 4 bytes, its manifest says 7"),
        (change, "does not have the sha256"),
        (remove, "config.json is missing"),
        (add, r"student/model\.bin' is not in its manifest"),
        (drop_manifest, "has no manifest.json"),
        (cut_manifest, "is not a manifest"),
    ],
)
def test_a_torn_checkpoint_is_refused(tmp_path: Path, tear: Callable[[Path], None], reason: str) -> None:
    place = publish(tmp_path, 7)
    tear(place)
    with pytest.raises(CheckpointError, match=reason):
        verify_checkpoint(place)


def test_a_moved_checkpoint_is_refused(tmp_path: Path) -> None:
    place = publish(tmp_path, 7)
    moved = shutil.move(place, place.with_name("step-00000008"))
    with pytest.raises(CheckpointError, match="belongs in step-00000007/"):
        read_manifest(Path(moved))


@pytest.mark.parametrize("version", [4, 6])
def test_an_older_or_newer_format_is_refused_whatever_else_is_wrong(tmp_path: Path, version: int) -> None:
    place = publish(tmp_path, 7)
    content = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(content | {"format_version": version, "stranger": 1}))
    message = f"format_version is {version}, but this version reads only 5; train and publish the student anew"
    with pytest.raises(CheckpointError, match=message):
        read_manifest(place)


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        publish(tmp_path, step)
    assert [read_manifest(p).step for p in list_checkpoints(tmp_path / "run")] == [5, 99_999_999, 100_000_000]
    chosen = chosen_checkpoint(tmp_path)
    assert chosen is not None
    assert chosen.name == "step-100000000"


def test_the_run_that_published_last_is_chosen(tmp_path: Path) -> None:
    publish(tmp_path, 9, run="b")
    publish(tmp_path, 3, run="a")
    assert chosen_checkpoint(tmp_path) == tmp_path / "a" / "step-00000003"
    assert chosen_checkpoint(tmp_path, "b") == tmp_path / "b" / "step-00000009"
    assert chosen_checkpoint(tmp_path / "absent") is None


def test_a_pin_rolls_back_and_a_wrong_pin_is_named(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    pin = tmp_path / "run" / "pinned"
    pin.write_text("step-00000001\n")
    assert chosen_checkpoint(tmp_path) == tmp_path / "run" / "step-00000001"
    pin.write_text("step-00000009\n")
    with pytest.raises(CheckpointError, match="'step-00000009'"):
        chosen_checkpoint(tmp_path)
    pin.write_text("../../etc")
    with pytest.raises(CheckpointError, match="which is no checkpoint"):
        chosen_checkpoint(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_pin_may_be_written_by_any_editor(tmp_path: Path, encoding: str) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "run" / "pinned").write_bytes("step-00000001\r\n".encode(encoding))
    assert chosen_checkpoint(tmp_path) == tmp_path / "run" / "step-00000001"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"step-\xe9", b"\x89PNG"])
def test_a_pin_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    publish(tmp_path, 1)
    pin = tmp_path / "run" / "pinned"
    pin.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{pin} cannot be read: .*; write a folder's name, like step-"):
        chosen_checkpoint(tmp_path)


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder unreadable, for root too."""
    denied: set[Path] = set()
    iterdir, stat = Path.iterdir, Path.stat

    def check(path: Path) -> None:
        if path in denied:
            raise PermissionError(13, "Permission denied", str(path))

    def checked_iterdir(path: Path) -> Iterator[Path]:
        check(path)
        return iterdir(path)

    def checked_stat(path: Path, **options: bool) -> os.stat_result:
        check(path.parent)
        return stat(path, **options)

    monkeypatch.setattr(Path, "iterdir", checked_iterdir)
    monkeypatch.setattr(Path, "stat", checked_stat)
    return denied.add


def test_a_folder_that_cannot_be_read_is_passed_over_and_told(tmp_path: Path, deny: Callable[[Path], None]) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    (tmp_path / "lost+found").mkdir()
    deny(tmp_path / "lost+found")
    deny(tmp_path / "run" / "step-00000002")
    told: list[Any] = []
    assert newest_runs(tmp_path, told.append) == [tmp_path / "run"]
    assert chosen_checkpoint(tmp_path, on_error=told.append) == tmp_path / "run" / "step-00000001"
    assert chosen_checkpoint(tmp_path) == tmp_path / "run" / "step-00000001"
    assert {str(error.filename) for error in told} == {
        str(tmp_path / "lost+found"),
        str(tmp_path / "run" / "step-00000002"),
    }
    with pytest.raises(PermissionError):
        list_checkpoints(tmp_path / "lost+found")


def test_publishing_a_step_again_keeps_what_is_there(tmp_path: Path) -> None:
    place = publish(tmp_path, 4)
    before = (place / "manifest.json").read_bytes()
    assert publish(tmp_path, 4) == place
    assert (place / "manifest.json").read_bytes() == before
    change(place)
    with pytest.raises(CheckpointError):
        publish(tmp_path, 4)
