import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from latentforge.text import line_blocks
from latentforge.text.errors import PackingStoppedError, TextError
from latentforge.text.text_source import TextSource, block_documents

TEXTS = [f"document {i}\nwith é and 東京 " * (i % 7) for i in range(200)]
LINES = "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))


def texts_of(name: Path | str, column: str | None = None) -> list[Any]:
    return [d.text for d in TextSource.of(name, column).documents()]


def write_parquet(path: Path, rows: list[dict[str, Any]], rows_a_group: int = 50) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path


def write_kinds(folder: Path) -> list[Path]:
    data = LINES.encode()
    (folder / "plain.jsonl").write_bytes(data)
    half = len(data) // 2
    # Two members and two frames, as appended files have them; they meet within a line.
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    (folder / "b.jsonl.zst").write_bytes(zstandard.compress(data[:half]) + zstandard.compress(data[half:]))
    write_parquet(folder / "c.parquet", [{"text": text, "id": i} for i, text in enumerate(TEXTS)])
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    for path in write_kinds(tmp_path):
        assert texts_of(path) == TEXTS, path


def test_reading_resumes_behind_any_block(tmp_path: Path) -> None:
    for path in write_kinds(tmp_path):
        source = TextSource.of(path)
        blocks = list(source.blocks(block_bytes=700))
        assert len(blocks) > 10
        assert [b.read for b in blocks] == sorted(b.read for b in blocks)
        assert blocks[-1].read == path.stat().st_size
        for number in (0, 3, len(blocks) - 2, len(blocks) - 1):
            rest = list(source.blocks(blocks[number].end, block_bytes=700))
            # They may be cut otherwise.
            assert b"".join(b.raw.data for b in rest) == b"".join(b.raw.data for b in blocks[number + 1 :])
            assert [b.raw.first for b in rest[:1]] == [b.raw.first for b in blocks[number + 1 : number + 2]]


def test_folders_and_globs_are_read_in_order_and_odd_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name, text in (("z.jsonl", "1"), ("b/y.json", "2"), ("b/x.jsonl", "3"), (".hidden.jsonl", "4"), ("r.md", "5")):
        (tmp_path / "data" / name).write_text(json.dumps({"text": text}) + "\n")
    assert texts_of(tmp_path / "data") == ["3", "2", "1"]
    assert [p.name for p in TextSource.of(tmp_path / "data").passed_over] == ["r.md"]
    assert texts_of(tmp_path / "data" / "*.jsonl") == ["1"]
    assert texts_of(tmp_path / "**" / "*.json*") == ["3", "2", "1"]
    source = TextSource.of(tmp_path / "data")
    blocks = list(source.blocks())
    assert [b.end.file for b in blocks] == [0, 1, 2]
    assert [b.raw.data for b in source.blocks(blocks[0].end)] == [b.raw.data for b in blocks[1:]]
    assert blocks[-1].read == source.num_bytes


@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing-*.jsonl", "empty"])
def test_what_is_not_there_says_what_to_give(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match=r"nothing.*; give a file with|empty holds no .*\.parquet; give files"):
        TextSource.of(tmp_path / name)


@pytest.mark.parametrize("kind", ["a.jsonl.gz", "b.jsonl.zst"])
def test_a_file_that_is_cut_off_is_an_error_and_not_its_end(tmp_path: Path, kind: str) -> None:
    write_kinds(tmp_path)
    path = tmp_path / kind
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TextError, match=rf"{kind}:\d+: cannot be read on from here \(Truncated"):
        texts_of(path)


def test_a_column_is_named_in_lines_and_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"body": "a", "text": "b"}\n{"body": null}\n')
    with pytest.raises(TextError, match=r'd\.jsonl:2: no "body"; expected one JSON object per line with a string'):
        texts_of(tmp_path / "d.jsonl", "body")
    path = write_parquet(tmp_path / "d.parquet", [{"body": "a", "n": 1}])
    assert texts_of(path, "body") == ["a"]
    with pytest.raises(TextError, match=r"no column 'text' or 'messages', but body, n; .*--text-column"):
        texts_of(path)
    with pytest.raises(TextError, match=r'd\.parquet:1: "n" is a JSON int, not a string'):
        texts_of(path, "n")
    (tmp_path / "torn.parquet").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TextError, match=r"torn\.parquet cannot be read as Parquet"):
        texts_of(tmp_path / "torn.parquet")


def test_chats_in_parquet_have_the_fields_of_each_message(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "a", "name": None}, {"role": "assistant", "content": "b", "name": "c"}]
    path = write_parquet(tmp_path / "d.parquet", [{"messages": chat}, {"messages": chat[:1]}])
    assert [d.messages for d in TextSource.of(path).documents()] == [chat, chat[:1]]


def test_a_line_longer_than_any_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_blocks, "MAX_LINE_BYTES", 5000)
    long = json.dumps({"text": "x" * 20_000})
    for number, rest in enumerate(('{"text": "a"}\n{"text": "b"}\n', "")):
        path = tmp_path / f"{number}.jsonl"
        path.write_text('{"text": "first"}\n' + long + ("\n" if rest else "") + rest)
        source = TextSource.of(path)
        blocks = list(source.blocks(block_bytes=64))
        [fault] = [b for b in blocks if b.raw.fault]
        bad: list[TextError] = []
        found = [d.text for b in blocks for d in block_documents(b.name, b.raw, None, bad.append)]
        assert found == ["first", *(["a", "b"] if rest else [])]
        assert len(bad) == 1
        assert re.fullmatch(rf"{path}:2: a line of 20,01\d bytes, more than 5,000", str(bad[0]))
        with pytest.raises(TextError, match="a line of 20"):
            list(block_documents(fault.name, fault.raw, None, None))
        after = list(source.blocks(fault.end, block_bytes=64))
        assert [b.raw.data for b in after] == [b.raw.data for b in blocks if b.raw.first > 2]
        assert [b.raw.first for b in after] == [b.raw.first for b in blocks if b.raw.first > 2]


def test_a_lines_length_alone_says_whether_it_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_blocks, "MAX_LINE_BYTES", 500)
    path = tmp_path / "d.jsonl"
    for before in range(70):
        # Wherever in a block it begins, one of 500 bytes is read and one of 501 is not.
        path.write_bytes(b"x" * before + b"\n" + b"y" * 499 + b"\n" + b"z" * 500 + b"\n" + b"last\n")
        blocks = list(TextSource.of(path).blocks(block_bytes=64))
        assert [b.raw.first for b in blocks if b.raw.fault] == [3]
        assert b"".join(b.raw.data for b in blocks) == b"x" * before + b"\n" + b"y" * 499 + b"\nlast\n"


def test_a_file_is_hashed_again_when_it_has_changed_only(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(LINES)
    source = TextSource.of(path)
    stamps = source.stamps()
    [(size, changed, digest)] = stamps.values()
    # A hash that is not its own shows that it was not made again.
    known = {str(path): (size, changed, "known")}
    assert source.sha256(source.stamps(known)) == "known"
    assert source.sha256(stamps) == digest
    path.write_text(LINES + LINES)
    assert source.stamps(known)[str(path)][2] not in ("known", digest)
    with pytest.raises(PackingStoppedError):
        source.stamps(stop=lambda: True)


def test_a_hub_data_set_is_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "set"
    (folder / "data").mkdir(parents=True)
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows[:120])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[120:])
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", rows[:3])
    source = TextSource.of(f"hub:{folder}")
    assert [d.text for d in source.documents()] == TEXTS
    blocks = list(source.blocks(block_bytes=700))
    rest = list(source.blocks(blocks[3].end, block_bytes=700))
    assert [b.raw.data for b in rest] == [b.raw.data for b in blocks[4:]]
    assert texts_of(f"hub:{folder}::test") == TEXTS[:3]
    assert source.num_bytes is None
    first = source.sha256({})
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows[121:])
    assert TextSource.of(f"hub:{folder}").sha256({}) != first
    with pytest.raises(TextError, match=r"hub:.*:nothing is unavailable"):
        texts_of(f"hub:{folder}::nothing")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TextError, match=r"hub:owner/name::train is unavailable .* download it, and give the files"):
        texts_of("hub:owner/name")
    with pytest.raises(TextError, match="give hub:OWNER/NAME"):
        TextSource.of("hub:a:b:c:d")


def test_datasets_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(TextError, match=r"pip install 'latentforge-trainer\[hub\]'"):
        texts_of(f"hub:{tmp_path}")
