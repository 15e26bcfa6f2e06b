"""What is published under load, and that each bad one is one to those who serve it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.drafter import swaps as module
from benchmarks.drafter.engines import WrittenTexts
from benchmarks.drafter.republishing import CHANGES, SPOILS, republished
from benchmarks.drafter.swaps import SwapPublisher, swaps
from latentforge.core.checkpoint_files import read_manifest, verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.core.manifest import CheckpointError
from latentforge.snapshots.snapshot import load_snapshot

STUDENT = Path("models/stdlib-student")


@pytest.fixture
def shipped() -> Path:
    [place] = list_checkpoints(STUDENT)
    return place


def test_a_checkpoint_is_published_again_as_a_newer_one(shipped: Path, tmp_path: Path) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    first = republished(shipped, root, scratch)
    # A server's.
    (first.parent / "leases").mkdir()
    second = republished(first, root, scratch)
    manifests = [verify_checkpoint(place) for place in (first, second)]
    assert manifests[0].step == read_manifest(shipped).step
    assert manifests[1].step == manifests[0].step + 1
    assert list_checkpoints(first.parent) == [first, second]
    assert manifests[1].golden == read_manifest(shipped).golden


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        republished(STUDENT, tmp_path / "root", tmp_path / "scratch")


@pytest.mark.parametrize("kind", [*CHANGES, *SPOILS])
def test_a_bad_one_is_refused_by_its_checks(shipped: Path, tmp_path: Path, kind: str) -> None:
    given: dict[str, Any] = {"change": CHANGES[kind]} if kind in CHANGES else {"spoil": SPOILS[kind]}
    place = republished(shipped, tmp_path / "root", tmp_path / "scratch", **given)
    with pytest.raises(CheckpointError):
        load_snapshot(place, torch.device("cpu"))


class Writer:
    """Writes what it is told to, and says that the newest checkpoint drafted."""

    def __init__(self, run: Path, usable: Callable[[Path], bool], texts: Sequence[Sequence[int]]) -> None:
        self._run, self._usable, self._texts = run, usable, texts

    def write(self, ids: Any, new_tokens: int, *, with_top: bool = False) -> WrittenTexts:
        if with_top:
            return WrittenTexts([[0]], 1.0, [], [[[7, -0.1], [8, -3.0]]])
        places = sorted(self._run.iterdir()) if self._run.is_dir() else []
        newest = [f"{place.parent.name}/{place.name}" for place in places if self._usable(place)][-1:]
        return WrittenTexts([list(text) for text in self._texts], 1.0, [], [], newest)


def found(shipped: Path, tmp_path: Path, usable: Callable[[Path], bool], drafted: Sequence[Sequence[int]]) -> Any:
    run = tmp_path / "root" / read_manifest(shipped).run
    publisher = SwapPublisher(shipped, tmp_path / "root", tmp_path / "scratch", 8)
    alone: Any = Writer(run, lambda place: False, [[7, 8], [7, 9]])
    engine: Any = Writer(run, usable, drafted)
    return swaps(engine, alone, [[1], [2]], 2, publisher, "float32")


def is_whole(place: Path) -> bool:
    try:
        verify_checkpoint(place)
    except CheckpointError:
        return False
    return True


def test_bad_ones_that_draft_and_wrong_texts_are_counted(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_APART", 0.05)
    # Files and hashes of two kinds are sound.
    careless = found(shipped, tmp_path, is_whole, [[7, 8], [8, 9]])
    assert careless.published == 8
    assert sorted(careless.bad.values()) == sorted([*CHANGES, *SPOILS])
    assert {careless.bad[name] for name in careless.bad_used} <= set(CHANGES)
    assert careless.wrong == careless.texts // 2 > 0


def test_a_drafter_that_does_not_take_the_last_one_is_told(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_APART", 0.01)
    monkeypatch.setattr(module, "_TAKEN_WITHIN", 0.2)
    with pytest.raises(TimeoutError, match="drafts still"):
        found(shipped, tmp_path, lambda place: place.name.endswith("0"), [[7, 8], [7, 9]])
