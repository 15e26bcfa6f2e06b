import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentforge.core.checkpoint_files import verify_checkpoint
from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.golden import check_golden
from latentforge.model.io import load_autoencoder, load_student
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.teacher.connection import TeacherChangedError, TeacherLostError
from latentforge.trainer.training.student import train_student
from latentforge.trainer.training.validation import unigram_ce

FIGURES = {"ce", "kd", "mse", "acceptance", "acceptance_low", "mean_accepted", "mean_accepted_low"}
FIGURES |= {"greedy_agreement", "greedy_accepted", *(f"acceptance_k{k}" for k in range(4))}


def published(run: Any) -> list[Path]:
    return list_checkpoints(run.settings.checkpoints_dir / run.name)


# A writer whose state is carried over the text, and nothing but what it writes; texts of other lengths.
RECURRENT = {
    "student.model.chunk_decoder.kind": "recurrent",
    "student.model.logit_features.kind": "none",
    "data.mask_documents": True,
}


TOKENS = {"student.model.positions": "tokens"}
SPLIT = TOKENS | {
    "student.model.num_layers": 2,
    "student.model.chunk_decoder.kind": "split",
    "student.model.logit_features.kind": "none",
}


@pytest.mark.parametrize(
    "overrides", [{}, RECURRENT, TOKENS, SPLIT], ids=["gru", "recurrent", "token-positions", "split"]
)
def test_resume_equals_no_interruption_bit_for_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, overrides: dict[str, Any]
) -> None:
    data = split_tail(packed)
    whole = make_run("whole", port=known_teacher.port, overrides=overrides)
    result: Any = train_student(whole, *data, autoencoder)
    cut = make_run("cut", port=known_teacher.port, stop_at=("student", 5), overrides=overrides)
    with pytest.raises(Interrupted):
        train_student(cut, *data, autoencoder)
    saved = max((cut.folder / "state" / "student").glob("step-*"))
    assert 0 < int(saved.name[5:]) < 12
    assert published(cut)[-1].name == saved.name
    resumed = train_student(make_run("cut", port=known_teacher.port, overrides=overrides), *data, autoencoder)
    ours, theirs = (load_file(published(run)[-1] / "student" / "model.safetensors") for run in (whole, cut))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name
    assert resumed.curve == result.curve
    assert [c.step for c in result.curve] == [0, 4, 8, 12]


def test_checkpoints_are_published_whole_with_a_golden_text(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    run = make_run(port=known_teacher.port)
    result: Any = train_student(run, *split_tail(packed), autoencoder)
    places = published(run)
    assert result.checkpoints == [f"tiny/{p.name}" for p in places]
    assert len(places) == 3
    for place in places:
        manifest = verify_checkpoint(place)
        assert (manifest.chunk_size, manifest.latent_size) == (4, 16)
        assert manifest.tokenizer_fingerprint == run.tokenizer.fingerprint
        assert manifest.teacher.model_dump() == {"backend": "known", "model": "closed-form", "revision": "1"}
        model = LatentModel(load_autoencoder(place / "autoencoder"), load_student(place / "student"))
        golden = manifest.golden
        held_out = split_tail(packed)[1].sequence(0).tolist()
        assert run.tokenizer.decode(held_out, skip_special=True).startswith(golden.text)
        assert golden.token_ids == tuple(run.tokenizer.encode(golden.text))
        assert 6 <= len(golden.token_ids) <= 12
        check_golden(model.eval(), golden)
        assert {p.name for p in (place / "tokenizer").iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
    parts = {f"worth_{part}" for part in ("backbone", "latent", "copy", "window")}
    assert {f"held_out_{name}" for name in FIGURES | parts} == set(verify_checkpoint(places[-1]).metrics)
    last = result.curve[-1]
    assert last.acceptance_low < last.acceptance < 1
    assert last.mean_accepted < 4 * last.acceptance
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert {*next(line for line in lines if line["kind"] == "held_out" and line["stage"] == "student")} >= FIGURES


def test_checkpoints_of_an_earlier_run_of_the_name_are_not_taken_for_its_own(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data, run = split_tail(packed), make_run(port=known_teacher.port)
    train_student(run, *data, autoencoder)
    before = [place.name for place in published(run)]
    shutil.rmtree(run.folder)
    folder = run.settings.checkpoints_dir / run.name
    other = make_run(port=known_teacher.port, overrides={"seed": 7})
    with pytest.raises(TrainerError, match=rf"{folder} holds checkpoints of an earlier run .*--fresh .*--run NAME"):
        train_student(other, *data, autoencoder)
    assert [place.name for place in published(run)] == before
    # One of another name is not in their way, nor is a folder in which nothing is published.
    train_student(make_run("other", port=known_teacher.port), *data, autoencoder)
    shutil.rmtree(folder)
    folder.mkdir()
    train_student(other, *data, autoencoder)


def test_a_crash_while_publishing_leaves_nothing_visible(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("latentforge.trainer.training.publish.shutil.copyfile", full_disk)
    run = make_run(port=known_teacher.port)
    with pytest.raises(TrainerError, match=r"saved and not published: .*No space left"):
        train_student(run, *split_tail(packed), autoencoder)
    assert published(run) == []
    assert list((run.settings.checkpoints_dir / run.name).iterdir()) == []


def test_it_learns_what_the_teacher_knows(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    overrides = {
        "student.optim.steps": 60,
        "student.optim.batch_size": 8,
        "student.optim.lr": 0.01,
        "student.validate_every": 60,
    }
    run = make_run(port=known_teacher.port, overrides=overrides)
    train, held_out = split_tail(packed)
    result: Any = train_student(run, train, held_out, autoencoder)
    first, last = result.curve[0], result.curve[-1]
    assert last.kd < 0.8 * first.kd
    assert last.ce < 0.8 * first.ce
    assert result.tokens == 60 * 8 * 32
    counts = np.bincount(train.tokens, minlength=260)
    batches = [StudentBatch(torch.from_numpy(held_out.sequence(0))[None], torch.ones(1, 32, dtype=torch.bool))]
    assert result.unigram_ce == pytest.approx(unigram_ce(counts, batches), rel=0.2)
    # Almost none of the text is what this teacher would write.
    assert result.teacher.held_out_nll > 5


# Norms keep their weights in float32, and torch says that this costs speed.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("objective", ["chunk-kd", "chunk-kd-energy", "regressed-latent"])
def test_in_bfloat16_it_learns_the_same(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, objective: str
) -> None:
    data, steps = split_tail(packed), {"student.optim.steps": 20, "student.validate_every": 20}
    curves: dict[str, Any] = {
        precision: train_student(
            make_run(
                precision,
                port=known_teacher.port,
                overrides={**steps, "precision": precision, "student.objective": objective},
            ),
            *data,
            autoencoder,
        ).curve
        for precision in ("float32", "bfloat16")
    }
    for exact, rounded in zip(curves["float32"], curves["bfloat16"], strict=True):
        assert rounded.ce == pytest.approx(exact.ce, abs=0.01)
        assert rounded.kd == pytest.approx(exact.kd, abs=0.01)
    assert curves["float32"][0].kd - curves["float32"][-1].kd > 0.1


def test_a_second_run_is_served_from_the_cache(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    first: Any = train_student(make_run("a", port=known_teacher.port), *data, autoencoder).cache
    second: Any = train_student(make_run("b", port=known_teacher.port), *data, autoencoder).cache
    assert second.hits == first.hits + first.misses
    assert second.misses == 0


def test_without_kd_no_rows_are_asked_for_training(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    run = make_run(port=known_teacher.port, overrides={"student.weights.kd": 0.0})
    result: Any = train_student(run, *split_tail(packed), autoencoder)
    assert len(known_teacher.requests) == 1
    assert result.curve[-1].kd > 0


def test_a_finished_student_needs_no_teacher(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    result: Any = train_student(make_run(port=known_teacher.port), *data, autoencoder)
    assert train_student(make_run(port=9), *data, autoencoder) == result


def test_another_tokenizer_is_refused_with_both_fingerprints(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    known_teacher.fingerprint = "feedface"
    run = make_run(port=known_teacher.port)
    with pytest.raises(TrainerError, match=f"feedface, the data was packed with {run.tokenizer.fingerprint}"):
        train_student(run, *split_tail(packed), autoencoder)


@pytest.mark.parametrize(
    ("overrides", "latent_size", "message"),
    [
        ({"chunk_size": 8}, None, r"chunk_size \(K\) 4, this run has 8"),
        ({}, 32, r"latent_size \(D\) 16, this run has 32"),
        ({"vocab_size": 300}, None, r"vocab_size 260, this run has 300"),
    ],
)
def test_an_autoencoder_that_does_not_fit_is_refused_with_both_values(
    make_run: Any,
    packed: PackedData,
    autoencoder: Path,
    overrides: dict[str, Any],
    latent_size: int | None,
    message: str,
) -> None:
    with pytest.raises(TrainerError, match=message):
        train_student(make_run(overrides=overrides), *split_tail(packed), autoencoder, latent_size)


def test_a_missing_or_torn_autoencoder_says_how_to_get_one(
    make_run: Any, packed: PackedData, autoencoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match="trainer train autoencoder"):
        train_student(make_run(), *split_tail(packed), tmp_path / "none")
    save_file({}, autoencoder / "model.safetensors")
    with pytest.raises(TrainerError, match=r"model\.safetensors"):
        train_student(make_run(), *split_tail(packed), autoencoder)


def test_a_teacher_lost_for_good_leaves_a_saved_state(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(port=known_teacher.port, patience=0.1)
    original = known_teacher.rows

    def rows(ids: list[int], k: int) -> Any:
        if len(known_teacher.requests) >= 8:
            known_teacher.fail_with = grpc.StatusCode.RESOURCE_EXHAUSTED
        return original(ids, k)

    monkeypatch.setattr(known_teacher, "rows", rows)
    with pytest.raises(TeacherLostError, match="run the same command to resume"):
        train_student(run, *split_tail(packed), autoencoder)
    assert list((run.folder / "state" / "student").glob("step-*"))


def test_another_teacher_under_way_is_refused(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed)
    with pytest.raises(Interrupted):
        train_student(make_run(port=known_teacher.port, stop_at=("student", 5)), *data, autoencoder)
    known_teacher.revision = "2"
    with pytest.raises(TrainerError, match=r"'revision': '1'.* is .*'revision': '2'"):
        train_student(make_run(port=known_teacher.port), *data, autoencoder)


def test_a_teacher_that_changes_ends_the_run_which_the_first_one_resumes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher answers as a gateway that does not look at the expected revision: what it says of answers counts."""
    data, original = split_tail(packed), known_teacher.rows
    result = train_student(make_run("whole", port=known_teacher.port), *data, autoencoder)
    known_teacher.forget()

    def changing(ids: list[int], k: int) -> Any:
        if len(known_teacher.requests) >= 8:
            known_teacher.revision = "2"
        return original(ids, k)

    monkeypatch.setattr(known_teacher, "rows", changing)
    run = make_run("cut", port=known_teacher.port)
    with pytest.raises(TeacherChangedError, match=r"expected_revision is '1', .* closed-form '2'.*to resume"):
        train_student(run, *data, autoencoder)
    monkeypatch.setattr(known_teacher, "rows", original)
    known_teacher.revision = "1"
    resumed = train_student(make_run("cut", port=known_teacher.port), *data, autoencoder)
    assert resumed.curve == result.curve


# Room for a byte-level chat.
GENERATE = {"teacher.targets": "generate", "teacher.generate.n": 2, "data.sequence_length": 64}


def test_generated_resume_equals_no_interruption_bit_for_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed, 30)
    whole = make_run("whole", port=known_teacher.port, overrides=GENERATE)
    result: Any = train_student(whole, *data, autoencoder)
    cuts = 0
    # Once while it is collected, then after some steps: each time from what the last one left.
    for stop_at in (("generate", 3), ("student", 2), ("student", 5), ("student", 9)):
        cut = make_run("cut", port=known_teacher.port, overrides=GENERATE, stop_at=stop_at)
        try:
            train_student(cut, *data, autoencoder)
        except Interrupted:
            cuts += 1
    assert cuts == 4
    resumed = train_student(make_run("cut", port=known_teacher.port, overrides=GENERATE), *data, autoencoder)
    ours, theirs = (load_file(published(run)[-1] / "student" / "model.safetensors") for run in (whole, cut))
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name
    assert resumed.curve == result.curve
    assert resumed.generated == result.generated
    assert resumed.targets == "generate"


def test_it_learns_from_what_the_teacher_writes(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    overrides = {
        "teacher.targets": "auto",
        "data.sequence_length": 64,
        "teacher.generate.prompts": 40,
        "teacher.generate.n": 8,
        "student.optim.steps": 60,
        "student.optim.batch_size": 8,
        "student.optim.lr": 0.01,
        "student.validate_every": 60,
    }
    known_teacher.can_score = False
    result: Any = train_student(
        make_run(port=known_teacher.port, overrides=overrides), *split_tail(packed, 30), autoencoder
    )
    assert known_teacher.requests == []
    first, last = result.curve[0], result.curve[-1]
    assert last.kd < 0.8 * first.kd
    assert last.ce < 0.8 * first.ce
    # The text is the teacher's own, so it is nearly as likely as its entropy says.
    assert 1 < result.teacher.held_out_nll < 3
    assert last.ce < result.unigram_ce
    assert result.cache is None


def test_other_generated_text_under_way_is_refused(
    known_teacher: Any, make_run: Any, packed: PackedData, autoencoder: Path
) -> None:
    data = split_tail(packed, 30)
    with pytest.raises(Interrupted):
        train_student(make_run(port=known_teacher.port, overrides=GENERATE, stop_at=("student", 2)), *data, autoencoder)
    run = make_run(port=known_teacher.port, overrides=GENERATE)
    assert list((run.folder / "state" / "student").glob("step-*"))
    shutil.rmtree(run.folder / "generated")
    known_teacher.drop = lambda messages, index: "odd" if index else ""
    with pytest.raises(TrainerError, match=r"begun with .*'generated_sha256': '(\w+)'.* now it is"):
        train_student(run, *data, autoencoder)
