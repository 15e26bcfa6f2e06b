"""Generated text in a folder of kept rows: collected by the real command, learnt from without a gateway."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.cli.main import app
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.lock import RunLock
from latentforge.trainer.targets.choose import met_teacher, target_source
from latentforge.trainer.training.student import train_student

NOBODY = 9
# Room for a byte-level chat.
GENERATE = {"teacher.targets": "generate", "teacher.generate.n": 2, "data.sequence_length": 64}


@pytest.fixture
def collected(
    known_teacher: Any, make_run: Any, recipe_file: Path, packed: PackedData, tmp_path: Path, monkeypatch: Any
) -> Path:
    """A folder of continuations; some are dropped."""
    known_teacher.drop = lambda messages, index: "odd" if index and "self" in messages[0][1] else ""
    monkeypatch.setenv("TOKENIZER_PATH", str(make_run.tokenizer.folder))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    sets = [word for name, value in GENERATE.items() for word in ("--set", f"{name}={value}")]
    words = ["collect", "--data", str(packed.folder), "--out", str(tmp_path / "kept"), "--run", "collected", *sets]
    words += ["--recipe", str(recipe_file), "--gateway", f"127.0.0.1:{known_teacher.port}"]
    for _ in range(2):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    # The second time nobody was asked again.
    assert len(known_teacher.generated) == len({r.chat.messages[0].content for r in known_teacher.generated})
    return tmp_path / "kept"


def test_a_student_learns_the_same_to_the_last_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, collected: Path
) -> None:
    data = split_tail(packed)
    online = make_run("online", port=known_teacher.port, overrides=GENERATE)
    result: Any = train_student(online, *data, autoencoder)
    assert result.generated.dropped > 0
    known_teacher.generated.clear()
    offline = make_run("offline", port=NOBODY, overrides=GENERATE | {"teacher.targets_from": str(collected)})
    same: Any = train_student(offline, *data, autoencoder)
    assert known_teacher.generated == []
    assert same.targets == "generate"
    assert same.curve == result.curve
    assert same.generated.continuations == result.generated.continuations
    ours, theirs = (
        load_file(list_checkpoints(run.settings.checkpoints_dir / run.name)[-1] / "student" / "model.safetensors")
        for run in (online, offline)
    )
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_rows_are_of_the_continuation_and_the_prompt_stands_before(known_teacher: Any, collected: Path) -> None:
    table = pq.read_table(collected / "data").to_pylist()
    assert len(table) > 15
    for row in table:
        first = row["first_position"]
        whole = known_teacher.rows(row["ids"], 4)
        assert len(row["top_ids"]) == len(row["ids"]) - first
        assert row["top_ids"] == whole.ids[first - 1 :].tolist()
        assert row["stopped"] == (row["ids"][-1] == 3)
    assert "text that it wrote itself" in (collected / "README.md").read_text()


def test_a_teacher_that_cannot_write_and_a_run_that_another_has_are_refused(
    known_teacher: Any, make_run: Any, recipe_file: Path, packed: PackedData, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TOKENIZER_PATH", str(make_run.tokenizer.folder))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    words = ["collect", "--data", str(packed.folder), "--out", str(tmp_path / "kept"), "--run", "collected"]
    words += ["--recipe", str(recipe_file), "--gateway", f"127.0.0.1:{known_teacher.port}"]
    lock = RunLock(tmp_path / "runs" / "collected")
    result = CliRunner().invoke(app, words)
    lock.release()
    assert result.exit_code == 1
    assert "is in use" in result.output
    known_teacher.can_generate = False
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "cannot generate, only score" in result.output
    assert known_teacher.generated == []
    assert not (tmp_path / "kept").exists()


def test_several_folders_are_learnt_as_one(make_run: Any, packed: PackedData, collected: Path, tmp_path: Path) -> None:
    def source_of(*folders: Path) -> Any:
        chosen = {"teacher.targets_from": [str(folder) for folder in folders], "student.phase_probability": 0.0}
        run = make_run(port=NOBODY, overrides=GENERATE | chosen)
        with met_teacher(run) as teacher, target_source(run, teacher, *split_tail(packed)) as source:
            source.prepare()
            return source

    def texts(source: Any) -> list[Any]:
        batches = source.training_batches(range(40), None, with_rows=True)
        return [row[valid].tolist() for batch in batches for row, valid in zip(batch.tokens, batch.valid, strict=True)]

    again = shutil.copytree(collected, tmp_path / "again")
    one, two = source_of(collected), source_of(collected, again)
    assert (two.report().continuations, two.report().tokens) == (
        2 * one.report().continuations,
        2 * one.report().tokens,
    )
    assert (two.token_counts == 2 * one.token_counts).all()
    assert {*map(tuple, texts(two))} == {*map(tuple, texts(one))}
    ends = [sum(int(batch.valid.sum()) for batch in source.held_out_batches()) for source in (one, two)]
    assert ends[1] == 2 * ends[0] > 0
    assert one.identity() != two.identity()


def test_another_kind_is_refused(make_run: Any, packed: PackedData, collected: Path) -> None:
    def opened(**changes: Any) -> None:
        run = make_run(port=NOBODY, overrides=GENERATE | {"teacher.targets_from": str(collected)} | changes)
        with met_teacher(run) as teacher, target_source(run, teacher, *split_tail(packed)):
            pass

    with pytest.raises(TrainerError, match="cannot score given text, only generate"):
        opened(**{"teacher.targets": "score"})
