import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from latentforge.core.checkpoint_files import CheckpointFiles, read_manifest
from latentforge.model.checkpoint import load_checkpoint
from latentforge.model.io import load_token_level
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.training.samples import Sampler
from latentforge.trainer.training.student import train_student, train_token_level


def checkpoints(run: Any) -> list[Path]:
    return sorted((run.settings.checkpoints_dir / run.name).glob("step-*"))


def test_every_checkpoint_has_what_its_student_writes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    prompts = ["def ", "import os"]
    run = make_run(port=known_teacher.port, overrides={"student.sample_prompts": prompts, "student.sample_tokens": 6})
    train_student(run, *split_tail(packed), autoencoder)
    places = checkpoints(run)
    assert len(places) == 3
    for place in places:
        samples = read_manifest(place).samples
        assert [sample.prompt for sample in samples] == prompts
        # By whoever loads it, from another process's weights: the same.
        loaded = load_checkpoint(CheckpointFiles(place))
        assert Sampler(run, [], loaded.model.max_tokens).draw(loaded.model) == samples
        card = ModelCard((place / "README.md").read_text(encoding="utf-8"))
        assert "## Samples" in card.text
        assert "    import os" in card.text
    assert len({read_manifest(place).samples for place in places}) > 1
    assert "sample 'import os' -> " in make_run.output.getvalue()


def test_prompts_are_the_beginnings_of_held_out_text_unless_the_recipe_has_some(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.samples": 3})
    rows = [packed.sequence(i).tolist() for i in (0, 0, 1, 2, 3)]
    pads = [run.tokenizer.pad_id] * 32
    model = train_and_load(run, packed)
    samples = Sampler(run, [pads, *rows], model.max_tokens).draw(model)
    assert len(samples) == 3
    for sample, row in zip(samples, (rows[0], rows[2], rows[3]), strict=True):
        assert run.tokenizer.decode(row, skip_special=True).startswith(sample.prompt)
        assert sample.prompt
    none = make_run(overrides={"student.samples": 0})
    assert Sampler(none, rows, 32).draw(model) == ()


def train_and_load(run: Any, packed: PackedData) -> Any:
    train_token_level(run, *split_tail(packed))
    return load_token_level(run.folder / "token-level")


def test_samples_change_nothing_of_the_training(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    weights, states = [], []
    for samples in (0, 4):
        run = make_run(f"s{samples}", port=known_teacher.port, overrides={"student.samples": samples})
        train_student(run, *split_tail(packed), autoencoder)
        weights.append((checkpoints(run)[-1] / "student" / "model.safetensors").read_bytes())
        states.append(torch.get_rng_state())
        said = json.loads((checkpoints(run)[-1] / "manifest.json").read_text())
        assert len(said.get("samples", [])) == min(samples, 2)
    assert weights[0] == weights[1]
    assert states[0].equal(states[1])


@pytest.mark.parametrize(("prompt", "num"), [("", "0 tokens"), ("x" * 200, "tokens; give from 1 to 24")])
def test_a_prompt_that_leaves_no_room_is_refused_before_any_step(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, prompt: str, num: str
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.sample_prompts": [prompt]})
    with pytest.raises(TrainerError, match=f"student.sample_prompts: .*{num}"):
        train_student(run, *split_tail(packed), autoencoder)
    assert not (run.folder / "metrics.jsonl").read_text()
