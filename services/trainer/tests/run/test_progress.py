import io
import json
from pathlib import Path

from rich.console import Console

from latentforge.trainer.run.progress import StageProgress
from latentforge.trainer.run.status import Status

HELD_OUT = {"ce": 0.25, "acceptance": 0.5, "acceptance_low": 0.375, "acceptance_k0": 0.625}


def run_steps(folder: Path, console: Console, status: Status) -> None:
    with StageProgress(folder, "student", 3, status, console=console) as progress:
        for step in (1, 2, 3):
            progress.step(step, {"ce": 1.5 / step}, 100, note="cache 1/2")
        progress.validation(3, HELD_OUT)


def test_without_a_terminal_lines_say_how_far_it_is(tmp_path: Path) -> None:
    output = io.StringIO()
    status = Status("r")
    run_steps(tmp_path, Console(file=output, width=200), status)
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("student 1/3  ce 1.5000  ")
    assert "tok/s  cache 1/2  eta" in lines[0]
    assert lines[-2].startswith("student 3/3")
    assert lines[-1] == "student 3/3  held-out: ce 0.2500  acceptance 0.5000"
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


def test_a_stage_with_an_unreadable_line_resumes_with_an_empty_curve(tmp_path: Path) -> None:
    run_steps(tmp_path, Console(file=io.StringIO()), Status("r"))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stu')
    status = Status("r")
    with StageProgress(tmp_path, "student", 4, status, first=2, console=Console(file=io.StringIO())):
        assert status.train == []
