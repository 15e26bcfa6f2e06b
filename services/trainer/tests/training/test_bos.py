"""Sequences that begin with the tokenizer's bos, from the data to the published checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from latentforge.core.checkpoint_files import read_manifest
from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.training.pipeline import run_pipeline

BOS = 2
ON_POLICY = {
    "student.on_policy.share": 0.5,
    "student.on_policy.begin": 0.0,
    "student.on_policy.prompt_tokens": 6,
    "student.on_policy.max_tokens": 10,
}


def test_whatever_the_teacher_is_asked_begins_with_bos_and_so_does_the_golden_text(
    known_teacher: Any, make_run: Any, corpus: Path, bos_tokenizer_folder: Path
) -> None:
    make_run.tokenizer = TextTokenizer(bos_tokenizer_folder)
    run = make_run(port=known_teacher.port, overrides=ON_POLICY)
    run_pipeline(run, corpus)
    asked = [sequence for request in known_teacher.requests for sequence in request]
    # Of the data and of what the student wrote.
    assert len({len(sequence) for sequence in asked}) > 1
    assert {sequence[0] for sequence in asked} == {BOS}
    assert {PackedData(run.folder / "data" / split).meta.bos_id for split in ("train", "held-out")} == {BOS}
    for place in list_checkpoints(run.settings.checkpoints_dir / run.name):
        manifest = read_manifest(place)
        assert manifest.bos_id == BOS
        assert manifest.golden.token_ids == (BOS, *run.tokenizer.encode(manifest.golden.text))
        assert TextTokenizer(place / "tokenizer").bos_id == BOS


@pytest.mark.parametrize("bos", [False, True])
def test_a_choice_of_the_run_goes_with_its_checkpoints(
    known_teacher: Any, make_run: Any, corpus: Path, bos_tokenizer_folder: Path, tmp_path: Path, bos: bool
) -> None:
    folder = bos_tokenizer_folder
    if bos:
        folder = tmp_path / "without"
        folder.mkdir()
        (folder / "tokenizer.json").write_bytes((bos_tokenizer_folder / "tokenizer.json").read_bytes())
        named = '{"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}'
        (folder / "tokenizer_config.json").write_text(named)
    assert (TextTokenizer(folder).bos_id is None) == bos
    make_run.tokenizer = TextTokenizer(folder, bos=bos)
    run = make_run(port=known_teacher.port)
    run_pipeline(run, corpus)
    place = list_checkpoints(run.settings.checkpoints_dir / run.name)[-1]
    assert read_manifest(place).bos_id == (BOS if bos else None)
    assert TextTokenizer(place / "tokenizer").bos_id == (BOS if bos else None)


def test_a_teacher_that_begins_with_what_the_data_have_not_is_warned_of(
    known_teacher: Any, make_run: Any, corpus: Path
) -> None:
    known_teacher.bos_id = BOS
    run_pipeline(make_run(port=known_teacher.port), corpus)
    assert "begins every sequence with its bos (id 2), and the data's sequences do not" in make_run.output.getvalue()
