"""A disk that refuses states for a while: the run goes on, says so, and nothing is lost once it is back."""

import resource
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.run.events import Event
from latentforge.trainer.training.autoencoder import train_autoencoder
from latentforge.trainer.training.student import train_student

TEXT = {"teacher.targets": "text", "student.objective": "chunk-ce"}


# Bytes: an optimizer's state is larger, a checkpoint's files are smaller.
MOST = 64_000


class FullDisk:
    """Lets no file of this process grow as large as an optimizer's state while a stage is at certain steps."""

    def __init__(self, stage: str, steps: range) -> None:
        self._stage, self._steps = stage, steps
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def take(self, event: Event) -> None:
        if event.kind == "train":
            is_full = event.stage == self._stage and event.step in self._steps
            soft = MOST if is_full else self._before[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, self._before[1]))

    def close(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.fixture
def trained(make_run: Any, packed: PackedData, autoencoder: Path) -> Iterator[Callable[..., Any]]:
    """Trains a student, or an autoencoder, beside a disk that is full at some steps; gives its run."""
    disks = [FullDisk("none", range(0))]
    data = split_tail(packed)

    def trained(stage: str, name: str, full: range = range(0), raises: Any = None, stop_at: Any = None) -> Any:
        disks.append(FullDisk(stage, full))
        run = replace(make_run(name, overrides=TEXT, stop_at=stop_at), sinks=(disks[-1],))
        with nullcontext() if raises is None else pytest.raises(OSError, match=raises):
            train_autoencoder(run, *data) if stage == "autoencoder" else train_student(run, *data, autoencoder)
        disks[-1].close()
        return run

    yield trained
    disks[0].close()


def states(run: Any, stage: str) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run.folder / "state" / stage).glob("step-*"))


def published(run: Any) -> list[int]:
    return [read_manifest(place).step for place in list_checkpoints(run.settings.checkpoints_dir / run.name)]


def weights(run: Any, stage: str) -> dict[str, torch.Tensor]:
    return dict(load_file(run.folder / "state" / stage / "step-00000012" / "model.safetensors"))


def assert_same(one: Any, other: Any, stage: str) -> None:
    ours, theirs = weights(one, stage), weights(other, stage)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_student_goes_on_and_is_saved_and_published_once_there_is_room(
    trained: Callable[..., Any], make_run: Any
) -> None:
    plain = trained("student", "plain")
    assert (published(plain), plain.status.counts) == ([1, 6, 12], {})
    run = trained("student", "full", range(5, 7))
    assert "warning: the state of step 6 cannot be saved" in make_run.output.getvalue()
    assert run.status.counts == {"failed_saves": 1}
    # What is not saved is not published; the next save is that of step 8.
    assert published(run) == [1, 8, 12]
    assert states(run, "student") == [8, 12]
    assert not list(run.folder.rglob(".*"))
    assert_same(plain, run, "student")


def test_a_run_that_cannot_be_saved_where_it_ends_or_stops_is_an_error_and_resumes(
    trained: Callable[..., Any],
) -> None:
    plain = trained("student", "plain")
    for name, full, stop_at in (("stopped", range(5, 8), ("student", 7)), ("ended", range(9, 13), None)):
        run = trained("student", name, full, "File too large", stop_at)
        assert states(run, "student")[-1] == (4 if stop_at else 8)
        assert published(run) == ([1] if stop_at else [1, 6])
        assert_same(plain, trained("student", name), "student")
        assert published(run)[-1] == 12


def test_an_autoencoder_goes_on_likewise(trained: Callable[..., Any], make_run: Any) -> None:
    plain = trained("autoencoder", "plain")
    run = trained("autoencoder", "full", range(5, 9))
    assert "warning: the state of step 8 cannot be saved" in make_run.output.getvalue()
    assert run.status.counts == {"failed_saves": 1}
    assert states(run, "autoencoder") == [4, 12]
    assert_same(plain, run, "autoencoder")
    ended = trained("autoencoder", "ended", range(9, 13), "File too large")
    assert states(ended, "autoencoder") == [4, 8]
    assert_same(plain, trained("autoencoder", "ended"), "autoencoder")
