import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.demo.preflight import PreflightError, check_disk, check_port, check_text_file, port_owner


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_taken_port_is_refused_with_its_owner_and_the_variable(taken_port: int) -> None:
    with pytest.raises(PreflightError, match=rf"port {taken_port} is taken by .*\(pid {os.getpid()}\).*GATEWAY_PORT=N"):
        check_port("GATEWAY_PORT", taken_port)


def test_a_free_port_is_accepted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_port("GATEWAY_PORT", port)
    assert port_owner(port) is None


def test_too_little_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"GB free, the demo wants 1000000000\.0 GB.*DEMO_MIN_FREE_GB"):
        check_disk(tmp_path, 1e9)


def test_enough_space_is_accepted(tmp_path: Path) -> None:
    check_disk(tmp_path / "new", 0.0)
    assert (tmp_path / "new").is_dir()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match=r"DEMO_FOLDER=.* cannot be used"):
        check_disk(tmp_path / "file", 0.0)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "cannot be read"), (b"", "is empty"), (b"\xff\xfe", "cannot be read")]
)
def test_unreadable_data_is_refused_by_name(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PreflightError, match=rf"DATA={path}.* {reason}"):
        check_text_file("DATA", path)
