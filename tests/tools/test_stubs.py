from pathlib import Path

import pytest

from tools import stubs


def test_stubs_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert stubs.main(check=True) == 0, capsys.readouterr().err


def test_a_changed_a_missing_and_a_leftover_stub_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    for folder in (kept, fresh):
        (folder / stubs.API).mkdir(parents=True)
        (folder / stubs.API / "same_pb2.py").write_text("1")
        (folder / stubs.API / "changed_pb2.py").write_text(folder.name)
    (fresh / stubs.API / "missing_pb2.pyi").write_text("1")
    (kept / stubs.API / "leftover_pb2_grpc.py").write_text("1")
    monkeypatch.setattr(stubs, "PROTO", kept)
    assert stubs.stale(fresh) == ["changed_pb2.py", "leftover_pb2_grpc.py", "missing_pb2.pyi"]
