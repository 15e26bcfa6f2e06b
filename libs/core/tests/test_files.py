import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentforge.core.files import discard, fsync, remove, replacing, sha256_of, sweep, write_atomically


def write(folder: Path) -> None:
    (folder / "new").mkdir(parents=True)
    (folder / "new" / "file").write_text("x")


def fail_half_way(path: Path, folder: bool) -> None:
    with replacing(path) as temporary:
        if folder:
            write(temporary)
        else:
            temporary.write_text("half of")
        raise KeyError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_written_into_a_folder_that_is_made_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwei, größer")
    assert path.read_text(encoding="utf-8") == "zwei, größer"
    assert names(path.parent) == {"b.txt"}


@pytest.mark.parametrize("old", [None, "old"])
def test_a_block_that_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(KeyError):
        fail_half_way(path, folder=False)
    assert (path.read_text() if path.exists() else None) == old
    assert names(tmp_path) == ({"file"} if old else set())


def test_a_folder_that_fails_leaves_nothing_and_one_that_does_not_replaces_the_old(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    (place / "old").mkdir(parents=True)
    with pytest.raises(KeyError):
        fail_half_way(place, folder=True)
    assert (names(tmp_path), names(place)) == ({"folder"}, {"old"})
    with replacing(place) as temporary:
        write(temporary)
        assert names(place) == {"old"}
    assert (names(tmp_path), names(place)) == ({"folder"}, {"new"})


def test_a_folder_that_is_to_be_kept_is_kept(tmp_path: Path) -> None:
    place = tmp_path / "folder"

    def make(content: str) -> None:
        with replacing(place, keep=True) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)

    make("first")
    with pytest.raises(OSError, match="not empty"):
        make("second")
    assert (place / "file").read_text() == "first"
    assert names(tmp_path) == {"folder"}


def test_a_process_that_is_killed_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    program = (
        "import os, sys, signal, pathlib\n"
        "from latentforge.core.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # The temporary name begins with a dot, so that whoever lists the folder passes over it.
    assert all(name.startswith(".file~") for name in names(tmp_path) - {"file"})
    assert len(names(tmp_path)) == 2
    # Whoever writes the file next takes it away.
    write_atomically(path, "new")
    assert names(tmp_path) == {"file"}


def test_what_an_earlier_process_of_the_same_id_left_is_not_taken_along(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    left = tmp_path / f".folder~{os.getpid()}@{socket.gethostname()}"
    (left / "torn").mkdir(parents=True)
    with replacing(place) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == {"folder"}
    assert names(place) == set()


def test_content_and_names_are_on_the_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "folder"
    done: list[str] = []

    def recorded(path: Path) -> None:
        done.append(f"{path.relative_to(tmp_path)}, {'after' if place.exists() else 'before'}")
        fsync(path)

    monkeypatch.setattr("latentforge.core.files.fsync", recorded)
    with replacing(place) as temporary:
        write(temporary)
    hidden = f".folder~{os.getpid()}@{socket.gethostname()}"
    assert done[:-1] == [f"{hidden}{rest}, before" for rest in ("", "/new", "/new/file")]
    assert done[-1] == "., after"


def test_others_may_read_what_was_written_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_a_folder_that_takes_no_files_is_an_error_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "in-a-file", "y")
    assert (tmp_path / "file").read_text() == "x"


def test_a_link_is_removed_without_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "nothing")
    assert names(tmp_path) == {"folder"}
    remove(tmp_path / "folder")
    assert names(tmp_path) == set()


def test_a_sum_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_kept(tmp_path: Path) -> None:
    here = socket.gethostname()
    left = tmp_path / f".step-00000004~{dead_process()}@{here}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    living = tmp_path / f".step-00000008~{os.getppid()}@{here}"
    lately = tmp_path / ".summary.json~1@elsewhere"
    long_ago = tmp_path / ".summary.json~2@elsewhere"
    for path in (living, lately, long_ago, tmp_path / ".hidden", tmp_path / "step-00000004"):
        path.touch()
    os.utime(long_ago, (time.time() - 7200,) * 2)
    with replacing(tmp_path / "ours") as temporary:
        temporary.touch()
        assert set(sweep(tmp_path)) == {left, long_ago}
        assert temporary.exists()
    assert names(tmp_path) == {living.name, lately.name, ".hidden", "step-00000004", "ours"}
    assert sweep(tmp_path / "nothing") == []


def test_a_folder_that_is_written_into_elsewhere_counts_as_touched(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000004~1@elsewhere"
    left.mkdir()
    (left / "file").touch()
    os.utime(left, (time.time() - 7200,) * 2)
    assert sweep(tmp_path) == []
    os.utime(left / "file", (time.time() - 7200,) * 2)
    assert sweep(tmp_path) == [left]


def test_what_is_discarded_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "step-00000004"
    write(place)
    seen: list[set[str]] = []

    def watched(path: Path) -> None:
        seen.append(names(tmp_path))
        remove(path)

    monkeypatch.setattr("latentforge.core.files.remove", watched)
    discard(place)
    assert place.name not in seen[-1]
    assert names(tmp_path) == set()
    discard(place)
