import os
import socket
import time
from pathlib import Path

import pytest

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.disk import check_room
from latentforge.core.leases import LEASE_SECONDS, LEASES, leased, take_lease
from latentforge.core.manifest import Golden, ManifestDraft, TeacherId
from latentforge.core.pins import write_pin
from latentforge.core.publishing import publish_checkpoint
from latentforge.core.retention import prune_checkpoints

TABLE = b"table" * 20_000


def publish(root: Path, step: int, ce: float = 1.0, table: bytes = TABLE) -> Path:
    def write(folder: Path) -> None:
        for part in ("autoencoder", "student", "tokenizer"):
            (folder / part).mkdir()
            (folder / part / "config.json").write_text(part)
        (folder / "autoencoder" / "model.safetensors").write_bytes(table)

    draft = ManifestDraft(
        chunk_size=8,
        latent_size=16,
        tokenizer_fingerprint="f" * 64,
        teacher=TeacherId(backend="embedded", model="m", revision="r"),
        metrics={"held_out_ce": ce},
        golden=Golden(text="a", token_ids=(1,), logprobs=(-1.0,), uniforms=(0.5,), drawn_ids=(2,)),
    )
    return publish_checkpoint(root, "run", step, draft, write)


def steps(root: Path) -> list[int]:
    return [int(place.name[5:]) for place in list_checkpoints(root / "run")]


def test_the_newest_the_best_the_pinned_and_the_leased_are_kept(tmp_path: Path) -> None:
    places = {step: publish(tmp_path, step, ce) for step, ce in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.2))}
    write_pin(tmp_path / "run", places[1].name)
    assert take_lease(places[3])
    assert prune_checkpoints(tmp_path / "run", 1) == [places[4].name]
    assert steps(tmp_path) == [1, 2, 3, 5]
    # One that was taken by a server which died holds nothing for ever.
    (lease,) = (tmp_path / "run" / LEASES).iterdir()
    os.utime(lease, (time.time() - LEASE_SECONDS - 1,) * 2)
    prune_checkpoints(tmp_path / "run", 1)
    assert steps(tmp_path) == [1, 2, 5]
    assert leased(tmp_path / "run") == set()
    assert not lease.exists()
    for place in list_checkpoints(tmp_path / "run"):
        verify_checkpoint(place)


def test_with_a_pin_that_cannot_be_read_nothing_is_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        publish(tmp_path, step)
    (tmp_path / "run" / "pinned").mkdir()
    assert prune_checkpoints(tmp_path / "run", 1) == []
    assert steps(tmp_path) == [1, 2, 3]


def test_a_lease_is_a_file_that_names_step_process_and_machine_and_where_none_can_be_written_there_is_none(
    tmp_path: Path,
) -> None:
    place = publish(tmp_path, 7)
    assert take_lease(place)
    assert take_lease(place)
    assert [p.name for p in (place.parent / LEASES).iterdir()] == [
        f"step-00000007~{os.getpid()}@{socket.gethostname()}"
    ]
    assert leased(place.parent) == {"step-00000007"}
    other = publish(tmp_path / "other", 7)
    (other.parent / LEASES).touch()
    assert not take_lease(other)


def test_an_autoencoder_that_checkpoints_share_is_stored_once_and_each_is_whole(tmp_path: Path) -> None:
    first, second = publish(tmp_path, 1), publish(tmp_path, 2)
    files = [place / "autoencoder" / "model.safetensors" for place in (first, second)]
    assert files[0].samefile(files[1])
    changed = publish(tmp_path, 3, table=TABLE[1:])
    assert not (changed / "autoencoder" / "model.safetensors").samefile(files[0])
    prune_checkpoints(tmp_path / "run", 1)
    assert verify_checkpoint(changed)
    assert {path.name for path in changed.iterdir()} == {"autoencoder", "student", "tokenizer", "manifest.json"}


def test_a_damaged_file_is_not_shared(tmp_path: Path) -> None:
    first = publish(tmp_path, 1)
    (first / "autoencoder" / "model.safetensors").write_bytes(TABLE[::-1])
    verify_checkpoint(publish(tmp_path, 2))


def test_without_links_there_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("latentforge.core.publishing.os.link", refuse)
    places = [publish(tmp_path, step) for step in (1, 2)]
    assert not (places[0] / "autoencoder/model.safetensors").samefile(places[1] / "autoencoder/model.safetensors")
    for place in places:
        verify_checkpoint(place)


def test_room_is_looked_for_on_the_disk_that_a_folder_will_be_on(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "there", 1)
    with pytest.raises(OSError, match=r"1,000,000,000,000\.0 MB are needed and [\d,.]+ MB are free; make room"):
        check_room(tmp_path / "not" / "there", 10**18)
