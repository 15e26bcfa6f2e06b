import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import RunSummary
from latentforge.trainer.teacher.connection import TeacherLostError
from latentforge.trainer.training.pipeline import run_pipeline, targets_line


def test_data_to_checkpoints_in_one_call(known_teacher: Any, make_run: Any, corpus: Path) -> None:
    run = make_run(port=known_teacher.port)
    summary: Any = run_pipeline(run, corpus)
    assert RunSummary.read(run.folder / "summary.json") == summary
    written = json.loads((run.folder / "summary.json").read_text())
    assert written["format_version"] == 1
    assert set(written["seconds"]) == {"data", "autoencoder", "student"}
    assert {"k", "d", "token_exact", "chunk_exact", "token_exact_noisy", "loss"} <= set(written["ae"])
    assert {"steps", "tokens", "kd_first", "kd_last", "ce_first", "ce_last", "seconds"} <= set(written["student"])
    assert written["student"]["tokens_per_s"] == pytest.approx(
        summary.student.tokens / summary.student.seconds, rel=0.01
    )
    assert 0 <= written["student"]["teacher_wait_seconds"] <= summary.student.seconds
    assert {"model", "revision", "fingerprint", "held_out_nll"} <= set(written["teacher"])
    # As it was resolved, what was left open included.
    assert written["recipe"]["vocab_size"] is None
    assert summary.student.ce_last == summary.curve[-1].ce
    assert len(summary.checkpoints) == 3
    assert summary.unigram_ce > 0
    assert run.status.stage == "finished"
    assert f"of {summary.cache.misses} sequences" in targets_line(summary)
    assert "which holds 2.5 MB; the gateway has saved 1.5 s of teacher time" in targets_line(summary)


def test_a_finished_run_is_not_done_again(known_teacher: Any, make_run: Any, corpus: Path) -> None:
    first = run_pipeline(make_run(port=known_teacher.port), corpus)
    again = make_run(port=9)
    assert run_pipeline(again, corpus) == first
    assert "student: finished before" in make_run.output.getvalue()


def test_the_teacher_is_met_before_any_work(known_teacher: Any, make_run: Any, corpus: Path) -> None:
    known_teacher.can_score = False
    run = make_run(port=known_teacher.port, overrides={"teacher.targets": "score"})
    with pytest.raises(TrainerError, match="cannot score"):
        run_pipeline(run, corpus)
    with pytest.raises(TeacherLostError, match="start it or set GATEWAY_TARGET"):
        run_pipeline(make_run(port=9, patience=0.1), corpus)
    # What it waited for, which `trainer status` says, and no work.
    assert [path.name for path in run.folder.iterdir()] == ["status.json"]


def test_checkpoints_of_an_earlier_run_are_found_before_any_work(
    known_teacher: Any, make_run: Any, corpus: Path
) -> None:
    run = make_run(port=known_teacher.port)
    run_pipeline(run, corpus)
    shutil.rmtree(run.folder)
    with pytest.raises(TrainerError, match=r"an earlier run of this name.* remove both, runs and checkpoints"):
        run_pipeline(make_run(port=known_teacher.port), corpus)
    assert not run.folder.exists()


def test_held_out_documents_of_ones_own(known_teacher: Any, make_run: Any, corpus: Path) -> None:
    run = make_run(port=known_teacher.port)
    run_pipeline(run, corpus, corpus)
    packed = [json.loads((run.folder / "data" / s / "meta.json").read_text()) for s in ("train", "held-out")]
    assert packed[0]["num_documents"] == packed[1]["num_documents"]
