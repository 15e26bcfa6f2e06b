"""A run that learns from kept rows: the same bits as from the gateway, and clear words where rows do not fit."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.text.packing import pack_jsonl
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.kept.folder import KeptFolder
from latentforge.trainer.kept.manifest import MANIFEST, KeptManifest
from latentforge.trainer.kept.table import KeptSequence
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.choose import met_teacher, target_source
from latentforge.trainer.training.student import train_student

# Nobody answers there.
NOBODY = 9


@pytest.fixture
def kept(score: Any, packed: PackedData, tmp_path: Path) -> Path:
    assert score(packed.folder, tmp_path / "kept")[0] == 0
    return tmp_path / "kept"


def weights(run: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(
        list_checkpoints(run.settings.checkpoints_dir / run.name)[-1] / "student" / "model.safetensors"
    )
    return found


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())


def opened(run: Any, train: PackedData, held_out: PackedData) -> list[Any]:
    """All batches of a run."""
    with met_teacher(run) as teacher, target_source(run, teacher, train, held_out) as source:
        model: Any = None
        return list(source.training_batches(range(12), model, with_rows=True))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"teacher.logprob_dtype": "float16", "teacher.share": 0.5},
        {"teacher.top_k": 2, "student.optim.batch_size": 5},
    ],
)
def test_the_students_weights_are_those_of_a_run_with_a_gateway_to_the_last_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, kept: Path, overrides: dict[str, Any]
) -> None:
    data = split_tail(packed)
    online = make_run("online", port=known_teacher.port, overrides=overrides)
    result: Any = train_student(online, *data, autoencoder)
    known_teacher.requests.clear()
    offline = make_run("offline", port=NOBODY, overrides=overrides | {"teacher.targets_from": str(kept)})
    same: Any = train_student(offline, *data, autoencoder)
    assert known_teacher.requests == []
    assert same.curve == result.curve
    assert same.teacher == result.teacher
    assert equal(weights(online), weights(offline))
    # Steps and held-out sequences; with a share, what was not asked about is no row that was looked for.
    asked = result.cache.hits + result.cache.misses
    assert same.kept.found == same.kept.sequences == asked
    assert same.cache is None


def test_rows_of_documents_that_are_hidden_from_one_another_are_the_gateways_too(
    known_teacher: Any, make_run: Any, short_documents: PackedData, autoencoder: Path, score: Any, tmp_path: Path
) -> None:
    masked = {"data.mask_documents": True, "teacher.share": 0.6}
    kept, data = tmp_path / "kept", split_tail(short_documents)
    assert score(short_documents.folder, kept, "--share", "0.6", "--set", "data.mask_documents=true")[0] == 0
    result: Any = train_student(make_run("online", port=known_teacher.port, overrides=masked), *data, autoencoder)
    known_teacher.requests.clear()
    offline = make_run("offline", port=NOBODY, overrides=masked | {"teacher.targets_from": str(kept)})
    same: Any = train_student(offline, *data, autoencoder)
    assert known_teacher.requests == []
    assert same.curve == result.curve
    assert equal(weights(make_run("online")), weights(offline))
    assert same.kept.found == same.kept.sequences == result.cache.hits + result.cache.misses
    assert "are trained without" not in make_run.output.getvalue()


def test_it_resumes_bit_for_bit_also_where_the_folder_has_moved(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, kept: Path, tmp_path: Path
) -> None:
    data = split_tail(packed)
    whole = make_run("whole", port=NOBODY, overrides={"teacher.targets_from": str(kept)})
    result: Any = train_student(whole, *data, autoencoder)
    cut = make_run("cut", port=NOBODY, overrides={"teacher.targets_from": str(kept)}, stop_at=("student", 5))
    with pytest.raises(Interrupted):
        train_student(cut, *data, autoencoder)
    shutil.move(kept, tmp_path / "elsewhere")
    overrides = {"teacher.targets_from": str(tmp_path / "elsewhere")}
    resumed: Any = train_student(make_run("cut", port=NOBODY, overrides=overrides), *data, autoencoder)
    assert resumed.curve == result.curve
    # What was read ahead by the one that was stopped counts once; held-out sequences are read again.
    assert resumed.kept.sequences == result.kept.sequences + 2
    assert equal(weights(whole), weights(cut))


def test_a_failed_sequence_counts_as_it_does_with_the_gateway(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, score: Any, tmp_path: Path
) -> None:
    data, some = split_tail(packed), {"teacher.max_failed_share": 0.5}
    bad = [data[0].sequence(i).tolist() for i in range(0, len(data[0]), 9)]
    known_teacher.poisoned = lambda ids: ids in bad
    assert score(packed.folder, tmp_path / "kept", "--set", "teacher.max_failed_share=0.5")[0] == 0
    online = make_run("online", port=known_teacher.port, overrides=some)
    result: Any = train_student(online, *data, autoencoder)
    offline = make_run("offline", port=NOBODY, overrides=some | {"teacher.targets_from": str(tmp_path / "kept")})
    same: Any = train_student(offline, *data, autoencoder)
    assert same.kept.failed == result.cache.failed > 0
    assert equal(weights(online), weights(offline))


def test_rows_of_a_part_of_the_data_teach_where_they_are(
    known_teacher: Any, make_run: Any, packed: PackedData, score: Any, tmp_path: Path
) -> None:
    assert score(packed.folder, tmp_path / "part", "--share", "0.5")[0] == 0
    run = make_run(port=NOBODY, overrides={"teacher.targets_from": str(tmp_path / "part")})
    folder = KeptFolder(tmp_path / "part")
    data = split_tail(packed)
    with met_teacher(run) as teacher, target_source(run, teacher, *data) as source:
        model: Any = None
        batches = list(source.training_batches(range(12), model, with_rows=True))
        assert len(source.held_out_batches()) == 2
    with_rows = without = 0
    for batch in batches:
        assert batch.kd is not None
        assert batch.valid.any(1).all()
        for tokens, valid, has in zip(batch.tokens, batch.valid, batch.kd.has_row, strict=True):
            text = tokens[valid].numpy()
            if len(text) < 32:
                continue  # shifted: its end was cut off
            assert bool(has.any()) == (text in folder)
            with_rows, without = with_rows + bool(has.any()), without + (not has.any())
    assert with_rows > 2
    assert without > 2
    assert max(float(known_teacher.divergence(b).abs().max()) for b in batches if b.kd.has_row.any()) < 1e-5  # type: ignore[union-attr]
    said = make_run.output.getvalue()
    num = folder.manifest.splits["train"].num_sequences
    assert f"{num} of {len(data[0])} training sequences have kept rows; the others, as number" in said


def test_rows_that_do_not_fit_are_refused_by_name(
    known_teacher: Any, make_run: Any, packed: PackedData, kept: Path, corpus: Path, tmp_path: Path, score: Any
) -> None:
    def refused(match: str, data: tuple[PackedData, PackedData] | None = None, **overrides: Any) -> None:
        values = {"teacher.targets_from": str(kept)} | {k.replace("__", "."): v for k, v in overrides.items()}
        with pytest.raises(TrainerError, match=match):
            opened(make_run(port=NOBODY, overrides=values), *(data or split_tail(packed)))

    refused(r"gives at most 4 entries a row; teacher\.top_k=5 asks for more", teacher__top_k=5)
    refused("can only be scored by a gateway", student__on_policy__share=0.5)
    refused(
        r"kept was made with data\.mask_documents=false, this run has data\.mask_documents=true: .* set it to false",
        data__mask_documents=True,
    )
    refused("teacher.targets='text'", teacher__targets="text", student__objective="chunk-ce")
    refused("cannot generate, only score", teacher__targets="generate", data__sequence_length=64)
    refused("nowhere/manifest.json cannot be read", teacher__targets_from=str(tmp_path / "nowhere"))
    other = tmp_path / "longer"
    pack_jsonl(corpus, other, make_run.tokenizer, sequence_length=64, chunk_size=4, split="train")
    refused(
        r"kept has rows of corpus.jsonl in sequences of 32, but none of the 119 training sequences in .*longer.* "
        "in sequences of 64",
        split_tail(PackedData(other)),
    )
    # Of another tokenizer.
    manifest = KeptManifest.read(kept)
    teacher = manifest.teacher.model_copy(update={"tokenizer_fingerprint": "feedface"})
    (kept / MANIFEST).write_text(manifest.model_copy(update={"teacher": teacher}).model_dump_json())
    refused("of .*kept has the tokenizer fingerprint feedface, the data was packed with")
    (kept / MANIFEST).write_text(manifest.model_dump_json())
    score(packed.folder, tmp_path / "masked", "--set", "data.mask_documents=true")
    refused(
        r"masked was made with data\.mask_documents=true, this run has data\.mask_documents=false: .* set it to true",
        teacher__targets_from=str(tmp_path / "masked"),
    )
    # Coarser than asked for.
    score(packed.folder, tmp_path / "coarse", "--set", "teacher.logprob_dtype=float16")
    refused("holds log-probabilities in float16", teacher__targets_from=str(tmp_path / "coarse"))
    known_teacher.revision = "2"
    score(packed.folder, tmp_path / "second")
    refused("give folders of one teacher", teacher__targets_from=[str(kept), str(tmp_path / "second")])


def test_a_torn_file_is_named_and_so_is_the_way_out(make_run: Any, packed: PackedData, kept: Path) -> None:
    run = make_run(port=NOBODY, overrides={"teacher.targets_from": str(kept)})
    data = split_tail(packed)
    path = next(iter(sorted((kept / "data").glob("train-*"))))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainerError, match=rf"{path.name} cannot be read .*delete it, and run again"):
        opened(run, *data)


def test_no_flipped_bit_changes_a_row_in_silence(packed: PackedData, kept: Path) -> None:
    def rows() -> list[list[Any]]:
        folder = KeptFolder(kept)
        found = [folder.at(file, line) for file in range(len(files)) for line in range(len(folder.lines(file)))]
        return [[s.number, s.ids.tolist(), s.error, *map(str, vars(s.rows).values())] for s in found]

    files = sorted((kept / "data").iterdir())
    expected, path = rows(), files[0]
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for place in random.integers(len(whole), size=30).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(flipped))
        try:
            assert rows() == expected
        except TrainerError:
            found += 1
    # The rest are bytes that nobody reads.
    assert found > 25


def test_sequences_are_looked_for_one_after_another(
    make_run: Any, packed: PackedData, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, sequence = 0, PackedData.sequence

    class Ids(np.ndarray[Any, Any]):
        __hash__ = object.__hash__  # type: ignore[assignment]

    def counted(data: PackedData, index: int) -> Any:
        nonlocal most
        ids = sequence(data, index).view(Ids)
        alive.add(ids)
        most = max(most, len(alive))
        return ids

    monkeypatch.setattr(PackedData, "sequence", counted)
    run = make_run(port=NOBODY, overrides={"teacher.targets_from": str(kept)})
    with met_teacher(run) as teacher, target_source(run, teacher, *split_tail(packed)):
        assert 0 < most < 5


def test_several_folders_are_looked_through(
    known_teacher: Any, make_run: Any, packed: PackedData, score: Any, tmp_path: Path
) -> None:
    score(packed.folder, tmp_path / "some", "--share", "0.4")
    score(packed.folder, tmp_path / "all")
    folders = [str(tmp_path / "some"), str(tmp_path / "all")]
    run = make_run(port=NOBODY, overrides={"teacher.targets_from": folders})
    with met_teacher(run) as teacher, target_source(run, teacher, *split_tail(packed)) as source:
        model: Any = None
        batches = list(source.training_batches(range(12), model, with_rows=True))
    assert all(batch.kd is not None and batch.kd.has_row.any(1).all() for batch in batches)


def test_what_is_read_is_a_few_sequences_at_a_time(
    known_teacher: Any, score: Any, packed: PackedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentforge.trainer.kept.table._POSITIONS_PER_GROUP", 32)
    score(packed.folder, tmp_path / "kept")
    folder = KeptFolder(tmp_path / "kept")
    for i in range(len(packed)):
        assert folder.find(packed.sequence(i)) is not None
    # Folders of other tests.
    gc.collect()
    held = sum(type(thing) is KeptSequence for thing in gc.get_objects())
    assert 0 < held < len(packed) / 4


def test_met_teacher_is_as_the_gateway_said(known_teacher: Any, make_run: Any, kept: Path) -> None:
    online, offline = make_run(port=known_teacher.port), make_run(port=NOBODY)
    recipe = offline.recipe.teacher.model_copy(update={"targets_from": [kept]})
    offline = replace(offline, recipe=offline.recipe.model_copy(update={"teacher": recipe}))
    with met_teacher(online) as theirs, met_teacher(offline) as ours:
        assert ours is not None
        assert theirs is not None
        assert ours.id == theirs.id
        assert ours.kind == theirs.kind == "score"
        assert ours.waiting.waited == 0
