import json
from pathlib import Path

import pytest
import torch

from benchmarks.progress import BenchProgress
from benchmarks.trainer.bench import BenchError, TrainerBench
from benchmarks.trainer.english import write_docstrings
from benchmarks.trainer.pretrained import pretrained
from latentforge.text.held_out import Split, split_of


def test_docstrings_are_of_their_split_long_and_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word" + " word" * 60
    for i in range(40):
        (tmp_path / f"m{i}.py").write_text(
            f'"""{i} {long}"""\nx = 1\ndef f():\n    """Shared {long}"""\ndef g():\n    """Short."""\n'
        )
    (tmp_path / "template.py").write_text("def {name}: pass")
    monkeypatch.setattr("benchmarks.trainer.english.stdlib_root", lambda: tmp_path)
    splits: tuple[Split, ...] = ("train", "held-out")
    for split in splits:
        out = tmp_path / split
        write_docstrings(out, split)
        texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
        named = sorted(f"m{i}.py" for i in range(40) if split_of(f"m{i}.py") == split)
        assert named
        own = [f"{name[1:-3]} {long}" for name in named]
        assert texts == [f"{own[0]}\n\nShared {long}", *own[1:]]
    write_docstrings(tmp_path / "few", "train", most_files=3)
    assert len((tmp_path / "few").read_text().splitlines()) == 3


def test_without_the_model_the_command_that_makes_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with BenchProgress(0) as progress:
        bench = TrainerBench(
            repeats=1, report=progress, quick=True, device=torch.device("cpu"), scratch=tmp_path, steps=1
        )
        with pytest.raises(BenchError, match="models/cache/smollm2 is missing; make smollm2 makes it"):
            pretrained(bench)
