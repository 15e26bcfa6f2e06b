import io
import json
import math
import os
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from latentforge.core.manifest import TextSample
from latentforge.trainer.results import LiveStatus, read_progress
from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.run.sinks.live import write_status
from latentforge.trainer.run.status import Status

HELD_OUT = {"ce": 0.25, "acceptance": 0.5, "acceptance_low": 0.375, "acceptance_k0": 0.625}

SAMPLES = [TextSample(prompt="def f", text="(x):\n    return [red]1[/red]"), TextSample(prompt="", text="")]


def run_steps(folder: Path, console: Console, status: Status) -> None:
    with StageProgress(folder, "student", 3, status, console=console) as progress:
        for step in (1, 2, 3):
            progress.step(step, {"ce": 1.5 / step}, 100, note="cache 1/2")
        progress.validation(3, HELD_OUT)
        progress.published(3, "r/step-00000003", SAMPLES)


def test_without_a_terminal_lines_say_how_far_it_is(tmp_path: Path) -> None:
    output = io.StringIO()
    status = Status("r")
    run_steps(tmp_path, Console(file=output, width=200), status)
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("student 1/3  ce 1.5000  ")
    assert "tok/s  cache 1/2  eta" in lines[0]
    assert lines[-5].startswith("student 3/3")
    assert lines[-4:] == [
        "student 3/3  held-out: ce 0.2500  acceptance 0.5000  acceptance_low 0.3750",
        "published r/step-00000003",
        r"  sample 'def f' -> '(x):\n    return [red]1[/red]'",
        "  sample '' -> ''",
    ]
    assert (status.stage, status.step, status.of) == ("student", 3, 3)
    assert status.losses == {"ce": 0.5}


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    output = io.StringIO()
    run_steps(tmp_path, Console(file=output, width=200, force_terminal=True), Status("r"))
    assert "3/3" in output.getvalue()
    assert "━" in output.getvalue()


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["kind"]) for r in records] == [(1, "train"), (2, "train"), (3, "train"), (3, "held_out")]
    assert list((tmp_path / "tensorboard" / "student").glob("events.out.*"))


def test_the_status_has_the_curves_and_the_speed(tmp_path: Path) -> None:
    status = Status("r")
    run_steps(tmp_path, Console(file=io.StringIO()), status)
    assert [point["step"] for point in status.train] == [1, 2, 3]
    assert [point["ce"] for point in status.train] == [1.5, 0.75, 0.5]
    assert all(point["tokens_per_s"] > 0 for point in status.train)
    assert status.held_out == [{"step": 3, **HELD_OUT}]
    assert status.tokens_per_s == status.train[-1]["tokens_per_s"]
    assert status.teacher_wait_seconds is None


def test_a_resumed_stage_has_the_curves_from_before_and_none_of_what_is_done_again(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"stage": "autoencoder", "step": 1, "kind": "train", "time": 0.0, "ce": 9.0}) + "\n")
    status = Status("r")
    with StageProgress(tmp_path, "student", 4, status, first=2, console=Console(file=io.StringIO())) as progress:
        assert [point["ce"] for point in status.train] == [1.5, 0.75]
        assert status.train[0]["tokens_per_s"] > 0
        assert status.held_out == []
        progress.step(3, {"ce": 0.6}, 100)
    assert [point["ce"] for point in status.train] == [1.5, 0.75, 0.6]


def test_a_stage_resumes_with_all_that_a_kill_left_of_its_curve(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stu')
    for _ in range(2):
        status = Status("r")
        with StageProgress(tmp_path, "student", 4, status, first=2, console=Console(file=io.StringIO())) as progress:
            assert [point["ce"] for point in status.train] == [1.5, 0.75]
            progress.step(3, {"ce": 0.6}, 100)
    assert [p.figures["ce"] for p in read_progress(tmp_path) if p.kind == "train"] == [1.5, 0.75, 0.5, 0.6, 0.6]


def test_samples_are_text_in_tensorboard(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    board = EventAccumulator(str(tmp_path / "tensorboard" / "student"))
    board.Reload()
    assert set(board.Tags()["scalars"]) >= {"train/ce", "train/tok_per_s", "held_out/ce"}
    assert board.Tags()["tensors"] == ["samples/0/text_summary", "samples/1/text_summary"]
    (event,) = board.Tensors("samples/0/text_summary")
    assert event.step == 3
    text = event.tensor_proto.string_val[0].decode()
    assert text == "**prompt**\n\n    def f\n\n**text**\n\n    (x):\n        return [red]1[/red]"


def test_the_status_is_in_a_file_that_outlives_the_process(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    live = LiveStatus.read(tmp_path / "status.json")
    assert (live.run, live.stage, live.step, live.of, live.pid) == ("r", "student", 3, 3, os.getpid())
    assert (live.losses, live.held_out_figures, live.tokens) == ({"ce": 0.5}, HELD_OUT, {"student": 300})
    assert (live.checkpoints_published, live.last_published) == (1, "r/step-00000003")
    assert (live.done, live.error) == (False, None)


def test_a_figure_that_is_not_finite_ends_nothing(tmp_path: Path) -> None:
    status = Status("r")
    with StageProgress(tmp_path, "student", 3, status, console=Console(file=io.StringIO())) as progress:
        progress.validation(0, {"ce": math.nan, "kd": 1.0})
        progress.validation(1, {"ce": math.nan, "kd": 2.0, "worth_copy": 0.5})
        progress.validation(2, {"ce": 3.0, "kd": math.nan})
    # What this validation did not measure holds; what it measured as no number is gone.
    assert LiveStatus.read(tmp_path / "status.json").held_out_figures == {"ce": 3.0, "worth_copy": 0.5}


def test_a_status_file_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    write_status(tmp_path / "file", Status("r"))
    assert "status.json cannot be written" in caplog.text


def test_the_wait_for_the_teacher_is_kept_step_by_step(tmp_path: Path) -> None:
    with StageProgress(tmp_path, "student", 2, Status("r"), console=Console(file=io.StringIO())) as progress:
        for step, waited in ((1, 1.5), (2, 1.75)):
            progress.teacher_waited(waited)
            progress.step(step, {"ce": 1.0}, 10)
    assert [p.figures["teacher_wait_seconds"] for p in read_progress(tmp_path)] == [1.5, 0.25]


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    output, status = io.StringIO(), Status("r")
    run_steps(tmp_path, Console(file=output, width=200), status)
    assert output.getvalue().count("warning: MetricsFile cannot be written ([Errno 28] No space left on device)") == 1
    assert "published r/step-00000003" in output.getvalue()
    assert status.step == 3
