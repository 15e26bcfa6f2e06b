import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.cli.main import app


@pytest.fixture
def warm(known_teacher: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TOKENIZER_PATH", str(tokenizer_folder))

    def run(*arguments: str, port: int = known_teacher.port) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["warm", "--gateway", f"127.0.0.1:{port}", *arguments])
        return result.exit_code, result.output

    return run


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    lines = [
        {"text": "".join(chr(97 + i % 23) for i in range(100))},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"text": "b" * 5},
        # Of one token, which has no row.
        {"text": "c"},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def lengths_asked_for(teacher: Any) -> list[int]:
    return [len(sequence) for request in teacher.requests for sequence in request]


def test_documents_are_scored_in_pieces_and_a_rerun_only_hits(
    warm: Any, known_teacher: Any, documents: Path, tokenizer: TextTokenizer
) -> None:
    arguments = (str(documents), "--top-k", "4", "--max-length", "40")
    chat = tokenizer.encode_chats([[{"role": "user", "content": "hi"}]])[0]
    code, output = warm(*arguments)
    assert (code, output.splitlines()[-1]) == (0, "0 sequences were in the cache, 5 were computed")
    # 100 tokens in three pieces, a chat, and a short text.
    assert sorted(lengths_asked_for(known_teacher)) == sorted([40, 40, 20, len(chat), 5])
    code, output = warm(*arguments)
    assert (code, output.splitlines()[-1]) == (0, "5 sequences were in the cache, 0 were computed")


def test_every_piece_begins_with_bos_where_sequences_do(
    warm: Any, known_teacher: Any, documents: Path, bos_tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZER_PATH", str(bos_tokenizer_folder))
    code, output = warm(str(documents), "--top-k", "4", "--max-length", "40")
    assert code == 0, output
    asked = [sequence for request in known_teacher.requests for sequence in request]
    assert {sequence[0] for sequence in asked} == {2}
    # 100 tokens in pieces of 39, and now a text of one token has a row.
    assert {40, 23, 6, 2} <= {len(sequence) for sequence in asked}


def test_a_packed_folder_warms_what_training_asks_for(warm: Any, known_teacher: Any, packed: PackedData) -> None:
    code, output = warm(str(packed.folder), "--top-k", "4")
    assert (code, output.splitlines()[-1]) == (0, f"0 sequences were in the cache, {len(packed)} were computed")
    asked = {tuple(sequence) for request in known_teacher.requests for sequence in request}
    assert asked == {tuple(packed.sequence(i).tolist()) for i in range(len(packed))}


def test_refused_sequences_are_counted_and_the_reason_given(warm: Any, packed: PackedData, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for name in ("meta.json", "documents.bin"):
        (folder / name).write_bytes((packed.folder / name).read_bytes())
    tokens = np.fromfile(packed.folder / "tokens.bin", "<u2")
    tokens[3] = 4000
    tokens.tofile(folder / "tokens.bin")
    code, output = warm(str(folder), "--top-k", "4")
    assert code == 1
    assert "1 were refused" in output
    assert "4000" in output
    assert f"{len(packed) - 1} were computed" in output


def test_data_of_another_tokenizer_and_bad_lines_are_named(
    warm: Any, known_teacher: Any, packed: PackedData, documents: Path, tmp_path: Path
) -> None:
    ours, known_teacher.fingerprint = known_teacher.fingerprint, "theirs"
    for data in (packed.folder, documents):
        code, output = warm(str(data), "--top-k", "4")
        assert code == 1
        assert "theirs" in output
        assert ours in output.replace("\n", "")
    known_teacher.fingerprint = ours
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"words": 1}\n')
    code, output = warm(str(bad), "--top-k", "4")
    assert code == 1
    assert ':2: neither "text" nor "messages"' in output
    code, output = warm(str(tmp_path / "nowhere.jsonl"), "--top-k", "4")
    assert code == 1
    assert "nowhere.jsonl cannot be read" in output


def test_a_teacher_that_cannot_score_has_nothing_to_cache(warm: Any, known_teacher: Any, documents: Path) -> None:
    known_teacher.can_score = False
    code, output = warm(str(documents))
    assert code == 1
    assert "cannot score" in output


def test_without_a_gateway_it_says_so_in_a_line(warm: Any, unused_tcp_port: int, documents: Path) -> None:
    code, output = warm(str(documents), port=unused_tcp_port)
    assert code == 1
    assert f"no teacher-gateway answers at 127.0.0.1:{unused_tcp_port}" in output
    assert "Traceback" not in output
