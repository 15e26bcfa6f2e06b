from typing import Any

import pytest

from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import STATUS, LiveStatus
from latentforge.trainer.targets.choose import met_teacher
from latentforge.trainer.teacher.connection import TeacherLostError


@pytest.mark.parametrize(
    ("can_score", "can_generate", "targets", "expected"),
    [
        (True, True, "auto", "score"),
        (False, True, "auto", "generate"),
        (True, True, "generate", "generate"),
        (False, False, "auto", r"can neither score nor generate; give the gateway another TEACHER_BACKEND"),
        (False, True, "score", r"cannot score given text, only generate; set teacher\.targets to generate"),
        (True, False, "generate", r"cannot generate, only score; set teacher\.targets to score"),
    ],
)
def test_the_source_follows_recipe_and_teacher(
    known_teacher: Any, make_run: Any, can_score: bool, can_generate: bool, targets: str, expected: str
) -> None:
    known_teacher.can_score, known_teacher.can_generate = can_score, can_generate
    run = make_run(port=known_teacher.port, overrides={"teacher.targets": targets})
    if " " in expected:
        with pytest.raises(TrainerError, match=expected), met_teacher(run):
            pass
    else:
        with met_teacher(run) as teacher:
            assert teacher is not None
            assert teacher.kind == expected


def test_without_a_teacher_nobody_is_asked(make_run: Any) -> None:
    run = make_run(port=9, overrides={"student.objective": "chunk-ce", "teacher.targets": "text"})
    with met_teacher(run) as teacher:
        assert teacher is None


def test_a_teacher_that_is_waited_for_is_in_the_status_file(make_run: Any) -> None:
    run = make_run(port=9, patience=0.1)
    with pytest.raises(TeacherLostError), met_teacher(run):
        pass
    said = LiveStatus.read(run.folder / STATUS).waiting_for
    assert said is not None
    assert said.startswith("waiting for the teacher at 127.0.0.1:9 for 0 s")
