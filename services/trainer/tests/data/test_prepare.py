import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentforge.text.held_out import SplitSource, held_out_below
from latentforge.text.packing import pack_jsonl
from latentforge.text.text_source import TextSource
from latentforge.trainer.data import prepare
from latentforge.trainer.data.prepare import pack_with_bar, run_data
from latentforge.trainer.data.prompts import choose_prompts
from latentforge.trainer.run.interrupt import Interrupted


def write(path: Path, count: int = 80) -> Path:
    path.write_text("".join(json.dumps({"text": f"document {i} of some words"}) + "\n" for i in range(count)))
    return path


def test_data_is_divided_while_it_is_read_and_never_copied(tmp_path: Path, make_run: Any) -> None:
    run, path = make_run(), write(tmp_path / "d.jsonl")
    train, held_out = run_data(run, path, None)
    assert sorted(p.name for p in (run.folder / "data").iterdir()) == ["held-out", "train"]
    assert train.meta.source == held_out.meta.source == "d.jsonl"
    assert train.source is not None
    assert held_out.source is not None
    texts = {d.text for d in train.source.documents()}, {d.text for d in held_out.source.documents()}
    assert not texts[0] & texts[1]
    assert len(texts[0] | texts[1]) == 80
    assert (train.meta.num_documents, len(texts[0])) > (held_out.meta.num_documents, len(texts[1]))
    # Prompts are made of each side's own documents.
    for data, split, mine in ((train, "train", texts[0]), (held_out, "held-out", texts[1])):
        for prompt in choose_prompts(data, split, run.recipe, run.tokenizer, 200).prompts:  # type: ignore[arg-type]
            begin = prompt.messages[-1][1].removeprefix("Go\n\n")
            assert any(str(text).startswith(begin) for text in mine)
    # The same again: nothing is packed anew.
    before = (run.folder / "data" / "train" / "tokens.bin").stat().st_ino
    assert len(run_data(run, path, None)[0]) == len(train)
    assert (run.folder / "data" / "train" / "tokens.bin").stat().st_ino == before


def test_a_run_that_was_begun_with_two_files_keeps_them(tmp_path: Path, make_run: Any) -> None:
    run, path = make_run(), write(tmp_path / "d.jsonl")
    source = TextSource.of(path)
    below = held_out_below(source.documents(), 6 * 32)
    folder = run.folder / "data"
    folder.mkdir(parents=True)
    for split in ("train", "held-out"):
        side = SplitSource(source, split, below)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": d.text}) + "\n" for d in side.documents()))
        options: dict[str, Any] = {"sequence_length": 32, "chunk_size": 4, "split": split}
        pack_jsonl(folder / f"{split}.jsonl", folder / split, run.tokenizer, **options)
    # Others are packed, so that the run is refused, and not trained on what it had.
    changed = make_run("changed")
    shutil.copytree(folder, changed.folder / "data")
    assert run_data(changed, write(tmp_path / "more.jsonl", 90), None)[0].meta.source == "more.jsonl"
    identities = [data.identity() for data in run_data(run, path, None)]
    assert [i["source_sha256"] for i in identities] == [
        TextSource.of(folder / f"{s}.jsonl").sha256(TextSource.of(folder / f"{s}.jsonl").stamps())
        for s in ("train", "held-out")
    ]
    # Divided while it is read, the tokens are the same.
    old = {split: (folder / split / "tokens.bin").read_bytes() for split in ("train", "held-out")}
    other = make_run("other")
    run_data(other, path, None)
    assert {s: (other.folder / "data" / s / "tokens.bin").read_bytes() for s in old} == old


def test_a_stop_ends_as_an_interrupted_run(tmp_path: Path, make_run: Any) -> None:
    run = replace(make_run(), stop=lambda: True)
    with pytest.raises(Interrupted):
        run_data(run, write(tmp_path / "d.jsonl"), None)


def test_a_column_and_bad_lines_are_the_recipes_choice(tmp_path: Path, make_run: Any) -> None:
    path = tmp_path / "d.jsonl"
    lines = [json.dumps({"body": f"document {i} of some words"}) for i in range(80)]
    path.write_text("\n".join([*lines[:40], "{", *lines[40:]]))
    run = make_run(overrides={"data.text_column": "body"})
    with pytest.raises(ValueError, match=r"d\.jsonl:41: not JSON"):
        run_data(run, path, None)
    run = make_run(overrides={"data.text_column": "body", "data.skip_bad": True})
    train, _ = run_data(run, path, None)
    assert train.meta.num_bad_lines == 1
    assert "1 bad lines of the data skipped" in run.console.file.getvalue()
    # Whether lines may be skipped is no part of what a result depends on.
    assert run.identity("student") == make_run(overrides={"data.text_column": "body"}).identity("student")


def test_lines_say_how_far_packing_is_and_how_long_it_takes(
    tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "d.jsonl")
    (tmp_path / "data" / "notes[red].md").touch()
    run = make_run()
    # Hashing took a minute; a block takes twenty seconds.
    clock = iter([0.0, *(60.0 + 20.0 * i for i in range(1000))])
    monkeypatch.setattr(prepare, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(TextSource.blocks, "__defaults__", (None, 1000))
    source = TextSource.of(tmp_path / "data")
    pack_with_bar(
        source, {"train": tmp_path / "out"}, run.tokenizer, run.recipe.data, chunk_size=4, console=run.console
    )
    first, *others = [line for line in run.console.file.getvalue().splitlines() if line.startswith("packing train ")]
    assert first == "packing train 0/0 MB"
    assert [line.partition("  ")[2] for line in others] == ["eta 21 s", "eta 1 s", "eta 0 s"]
    assert "notes[red].md is passed over" in run.console.file.getvalue()
