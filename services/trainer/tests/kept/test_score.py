"""`trainer score`: what it asks, what it leaves, and that it resumes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.kept import score as score_module
from latentforge.trainer.kept.folder import KeptFolder
from latentforge.trainer.kept.manifest import KeptManifest
from latentforge.trainer.kept.table import write_kept
from latentforge.trainer.run.lock import RunLock
from latentforge.trainer.targets.documents import document_texts
from latentforge.trainer.teacher.rows import TeacherRows


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 8 sequences, asked for by 3."""
    monkeypatch.setattr(score_module, "_POSITIONS_PER_FILE", 8 * 32)
    monkeypatch.setattr(score_module, "_POSITIONS_PER_REQUEST", 3 * 32)


def asked(teacher: Any) -> list[tuple[int, ...]]:
    return [tuple(sequence) for request in teacher.requests for sequence in request]


def sequences_of(data: PackedData) -> list[tuple[int, ...]]:
    return [tuple(data.sequence(i).tolist()) for i in range(len(data))]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "data").iterdir())}


@pytest.mark.usefixtures("small_files")
def test_every_sequence_is_asked_once_and_its_rows_are_the_teachers(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path
) -> None:
    code, output = score(packed.folder, tmp_path / "kept")
    assert (code, output.splitlines()[-1]) == (
        0,
        f"{tmp_path / 'kept'}: {len(packed)} sequences of shard 1/1, 0 of them were there",
    )
    assert sorted(asked(known_teacher)) == sorted(sequences_of(packed))
    kept = KeptFolder(tmp_path / "kept")
    train, held_out = split_tail(packed)
    splits = kept.manifest.splits
    assert (splits["train"].num_sequences, splits["validation"].num_sequences) == (len(train), len(held_out))
    assert len(kept) == len(packed)
    for i in range(len(packed)):
        ids = packed.sequence(i)
        found, rows = kept.find(ids), known_teacher.rows(ids.tolist(), 4)
        assert found is not None
        assert found.error is None
        for name, value in vars(rows).items():
            assert np.array_equal(getattr(found.rows, name), value), name  # unmapped_mass is None in both
    assert kept.find(np.arange(32)) is None


@pytest.mark.usefixtures("small_files")
def test_the_files_are_read_in_three_lines_without_us(score: Any, packed: PackedData, tmp_path: Path) -> None:
    score(packed.folder, tmp_path / "kept")
    card = (tmp_path / "kept" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"FOLDER/data"', repr(str(tmp_path / "kept" / "data")))
    assert len(code.strip().splitlines()) == 3
    found: dict[str, Any] = {}
    exec(code, found)
    table = pq.read_table(tmp_path / "kept" / "data")
    assert table.num_rows == len(packed)
    assert found["row"] == table.slice(0, 1).to_pylist()[0]
    lines = {tuple(row["ids"]): row for row in table.to_pylist()}
    ids = packed.sequence(3).tolist()
    row = lines[tuple(ids)]
    assert row["first_position"] == 1
    assert row["top_ids"][0] == [(7 * ids[0] + 3 + 11 * rank) % 260 for rank in range(4)]
    assert np.exp(row["top_logprobs"][0]) == pytest.approx([0.5, 0.2, 0.1, 0.05], abs=1e-6)
    assert row["tail_mass"][0] == pytest.approx(0.15, abs=1e-6)
    assert len(row["realised_logprobs"]) == len(row["top_ids"]) == 31
    assert row["error"] is None
    # The hub's front matter names the files of each split.
    assert "path: data/train-*.parquet" in card
    assert "path: data/validation-*.parquet" in card
    assert "closed-form" in card


@pytest.mark.usefixtures("small_files")
def test_killed_at_any_file_the_same_command_resumes_and_ends_with_the_same_files(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    score(packed.folder, tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    assert len(whole) > 8
    written = 0

    def killed_at_third(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written % 3 == 0:
            raise Killed
        write_kept(*arguments)

    monkeypatch.setattr(score_module, "write_kept", killed_at_third)
    kills = 0
    while True:
        known_teacher.requests.clear()
        before = {p.name for p in (tmp_path / "cut").glob("data/*")}
        try:
            code, output = score(packed.folder, tmp_path / "cut")
        except Killed:
            kills += 1
            continue
        break
    assert kills > 2
    assert code == 0
    assert files_of(tmp_path / "cut") == whole
    # What is there is not asked for again. The last request of a killed run may arrive after the list was cleared; it
    # is for sequences that no file holds, which the next run asks for too.
    missing = len(whole) - len(before)
    again = set(asked(known_teacher))
    assert len(again) <= missing * 8
    assert f"{len(packed) - len(again)} of them were there" in output
    assert not list((tmp_path / "cut").rglob(".*"))


@pytest.mark.usefixtures("small_files")
def test_shards_make_the_whole_and_a_missing_one_is_named(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path
) -> None:
    score(packed.folder, tmp_path / "whole")
    for shard in ("1/3", "3/3"):
        assert score(packed.folder, tmp_path / "kept", "--shard", shard)[0] == 0
    with pytest.raises(ValueError, match=r"is not whole: \d+ of \d+ files are missing, with the sequences train 8–15 "):
        KeptFolder(tmp_path / "kept")
    known_teacher.requests.clear()
    code, _ = score(packed.folder, tmp_path / "kept", "--shard", "2/3")
    assert code == 0
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "whole")
    for wrong in ("0/3", "4/3", "x", "1"):
        code, output = score(packed.folder, tmp_path / "kept", "--shard", wrong)
        assert code == 2
        assert "give one of n parts as i/n" in output


def test_several_gateways_share_the_work(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_POSITIONS_PER_REQUEST", 2 * 32)
    target = f"127.0.0.1:{known_teacher.port}"
    links: list[Any] = []

    def spied(link: Any, *arguments: Any) -> Any:
        rows = TeacherRows(link, *arguments)
        links.append(rows)
        return rows

    monkeypatch.setattr(score_module, "TeacherRows", spied)
    code, _ = score(packed.folder, tmp_path / "kept", "--gateway", f"{target},{target}")
    assert code == 0
    assert [rows.cache.sequences > len(packed) // 4 for rows in links] == [True, True]
    assert len(KeptFolder(tmp_path / "kept")) == len(packed)


def test_of_a_share_the_chosen_are_kept_and_all_held_out_ones(score: Any, packed: PackedData, tmp_path: Path) -> None:
    assert score(packed.folder, tmp_path / "kept", "--share", "0.3")[0] == 0
    kept = KeptFolder(tmp_path / "kept")
    train, held_out = split_tail(packed)
    assert 0 < kept.manifest.splits["train"].num_sequences < 0.6 * len(train)
    assert kept.manifest.splits["validation"].num_sequences == len(held_out)


def test_what_fails_for_good_is_kept_with_its_reason(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path
) -> None:
    bad = packed.sequence(5).tolist()
    known_teacher.poisoned = lambda ids: ids == bad
    code, output = score(packed.folder, tmp_path / "kept")
    assert code == 0
    assert "1 failed and have no rows" in output
    found = KeptFolder(tmp_path / "kept").find(packed.sequence(5))
    assert found is not None
    assert (len(found.rows), found.error) == (0, "INTERNAL: the teacher failed: nan")
    known_teacher.poisoned = lambda ids: True
    code, output = score(packed.folder, tmp_path / "all")
    assert code == 1
    assert re.search(r"the teacher fails on (\d+) of \1 sequences", output)


def test_another_teacher_or_other_data_in_the_folder_is_refused_by_field(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path
) -> None:
    score(packed.folder, tmp_path / "kept")
    before = files_of(tmp_path / "kept")
    known_teacher.revision = "2"
    code, output = score(packed.folder, tmp_path / "kept")
    assert code == 1
    assert "was begun with teacher.revision = '1', now it is '2'" in output
    known_teacher.revision = "1"
    code, output = score(packed.folder, tmp_path / "kept", "--top-k", "3")
    assert code == 1
    assert "was begun with top_k = 4, now it is 3" in output
    assert files_of(tmp_path / "kept") == before


def test_documents_that_are_hidden_from_one_another_are_lines_of_their_own(
    score: Any, short_documents: PackedData, make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = ("--set", "data.mask_documents=true")
    # Several files of eight sequences, and requests that end within one.
    monkeypatch.setattr(score_module, "_POSITIONS_PER_FILE", 8 * 32)
    monkeypatch.setattr(score_module, "_POSITIONS_PER_REQUEST", 50)
    code, output = score(short_documents.folder, tmp_path / "kept", *masked)
    assert code == 0, output
    assert f"{len(short_documents)} sequences of shard 1/1, 0 of them were there" in output
    manifest = KeptManifest.read(tmp_path / "kept")
    assert manifest.mask_documents
    run = make_run(overrides={"data.mask_documents": True})
    for split, part in zip(("train", "validation"), split_tail(short_documents), strict=True):
        files = sorted((tmp_path / "kept" / "data").glob(f"{split}-*"))
        lines = [line for path in files for line in pq.read_table(path).to_pylist()]
        texts = [
            (index, place, text.tolist())
            for index in range(len(part))
            for place, text in enumerate(document_texts(run, part, index))
        ]
        assert [(line["sequence"], line["place"], line["ids"]) for line in lines] == texts
        # The teacher was asked about each alone, and the rows are for all tokens but its first.
        assert [len(line["top_ids"]) for line in lines] == [len(ids) - 1 for _, _, ids in texts]
    before = files_of(tmp_path / "kept")
    again = f"{len(short_documents)} sequences of shard 1/1, {len(short_documents)} of them were there"
    assert again in score(short_documents.folder, tmp_path / "kept", *masked)[1]
    code, output = score(short_documents.folder, tmp_path / "kept")
    assert code == 1
    assert "was begun with mask_documents = True, now it is False" in output
    assert files_of(tmp_path / "kept") == before


def test_a_lost_gateway_ends_it_with_what_is_whole(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path, unused_tcp_port: int
) -> None:
    code, output = score(packed.folder, tmp_path / "kept", port=unused_tcp_port)
    assert code == 1
    assert "no teacher-gateway answers" in output
    assert not (tmp_path / "kept").exists()


def test_a_jsonl_file_is_packed_as_a_run_packs_it(score: Any, corpus: Path, make_run: Any, tmp_path: Path) -> None:
    code, _ = score(corpus, tmp_path / "kept", "--run", "scored")
    assert code == 0
    manifest = KeptManifest.read(tmp_path / "kept")
    kept = KeptFolder(tmp_path / "kept")
    for split, name in (("train", "train"), ("validation", "held-out")):
        data = PackedData(make_run("scored").folder / "data" / name)
        assert manifest.splits[split].num_sequences == len(data)  # type: ignore[index]
        assert all(data.sequence(i) in kept for i in range(len(data)))
    code, output = score(corpus, tmp_path / "kept", "--shard", "1/2")
    assert code == 2
    assert "packed data" in output
    # A folder of documents is not packed data either.
    (tmp_path / "documents").mkdir()
    shutil.copy(corpus, tmp_path / "documents")
    assert score(tmp_path / "documents", tmp_path / "kept", "--shard", "1/2")[0] == 2
    # What it packs is the run's, and another process has the run.
    lock = RunLock(tmp_path / "runs" / "scored")
    code, output = score(corpus, tmp_path / "other", "--run", "scored")
    lock.release()
    assert code == 1
    assert not (tmp_path / "other").exists()


def test_a_folder_of_something_else_is_left_alone(score: Any, packed: PackedData, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    code, output = score(packed.folder, tmp_path / "mine")
    assert code == 1
    assert "is not empty (README.md); give another --out" in output
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
    # A card that was written in stays so.
    score(packed.folder, tmp_path / "kept")
    (tmp_path / "kept" / "README.md").write_text("more")
    assert score(packed.folder, tmp_path / "kept")[0] == 0
    assert (tmp_path / "kept" / "README.md").read_text() == "more"


def test_a_teacher_that_begins_with_bos_is_warned_of(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path
) -> None:
    known_teacher.bos_id = 2
    code, output = score(packed.folder, tmp_path / "kept")
    assert code == 0
    assert "begins every sequence with its bos (id 2)" in output
    known_teacher.can_score = False
    code, output = score(packed.folder, tmp_path / "other")
    assert code == 1
    assert "cannot score given text, only generate" in output


@pytest.mark.usefixtures("small_files")
def test_killed_by_the_system_it_resumes_and_ends_with_the_same_files(
    known_teacher: Any, score: Any, packed: PackedData, recipe_file: Path, tmp_path: Path
) -> None:
    score(packed.folder, tmp_path / "whole")
    whole, cut = files_of(tmp_path / "whole"), tmp_path / "cut" / "data"
    assert len(whole) > 8
    worker = (
        "from latentforge.trainer.kept import score as s; s._POSITIONS_PER_FILE = 256; s._POSITIONS_PER_REQUEST = 96;"
        "from latentforge.trainer.cli.main import app; app()"
    )
    words = ["score", str(packed.folder), "--recipe", str(recipe_file), "--out", str(tmp_path / "cut")]
    environment = os.environ | {"GATEWAY_TARGET": f"127.0.0.1:{known_teacher.port}"}
    process = subprocess.Popen(
        [sys.executable, "-c", worker, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(cut.glob("*.parquet"))) < 2:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in cut.glob("*.parquet")}
    assert 2 <= len(before) < len(whole)
    assert score(packed.folder, tmp_path / "cut")[0] == 0
    assert files_of(tmp_path / "cut") == whole
    # What was whole is not written again.
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_manifest_says_how_and_of_whom(
    score: Any, packed: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["trainer", "score", "my data"])
    score(packed.folder, tmp_path / "kept")
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["teacher"]["model"] == "closed-form"
    assert manifest["teacher"]["tokenizer_fingerprint"] == packed.meta.tokenizer_fingerprint
    assert manifest["splits"]["train"]["data"]["source_sha256"] == packed.meta.source_sha256
    assert manifest["made"]["command"] == "trainer score 'my data'"
    assert pq.ParquetFile(next((tmp_path / "kept" / "data").iterdir())).schema_arrow.names[0] == "sequence"
