"""On-policy steps: what the student wrote, the teacher's rows for exactly that, and a resume that repeats them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.io import save_pretrained
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, loss_of
from latentforge.model.student import Student
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.results import StudentResult
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.targets.on_policy import OnPolicyText
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.failures import Failures
from latentforge.trainer.teacher.rows import TeacherRows
from latentforge.trainer.training.student import train_student, train_token_level

K, PAD, EOS = 4, 1, 0
SOME = {
    "student.on_policy.share": 0.5,
    "student.on_policy.begin": 0.25,
    "student.on_policy.prompt_tokens": 6,
    "student.on_policy.max_tokens": 10,
}


def make_model(run: Any, kind: str) -> LatentModel | TokenLevelModel:
    torch.manual_seed(0)
    if kind == "token-level":
        return TokenLevelModel(run.recipe.token_level_config(260, PAD, EOS))
    autoencoder = Autoencoder(run.recipe.autoencoder_config(260, PAD))
    return LatentModel(autoencoder, Student(run.recipe.student_config(PAD, EOS, autoencoder.config)))


@contextmanager
def on_policy_text(run: Any, packed: PackedData) -> Iterator[OnPolicyText]:
    with TeacherLink.of(run.settings, run.stop) as link:
        rows = TeacherRows(link, run.recipe.teacher.top_k, dtype="float32")
        yield OnPolicyText(run, packed, rows, Failures(run.recipe.teacher))


@pytest.mark.parametrize("kind", ["latent", "token-level"])
def test_the_rows_are_the_teachers_for_what_the_student_wrote(
    known_teacher: Any, make_run: Any, packed: PackedData, kind: str
) -> None:
    run = make_run(port=known_teacher.port, overrides=SOME)
    model = make_model(run, kind)
    with on_policy_text(run, packed) as source:
        batch = source.batch(5, model)
        again = source.batch(5, model)
        other = source.batch(6, model)
    assert model.training
    assert batch.on_policy
    assert batch.tokens.equal(again.tokens)
    assert not batch.tokens.equal(other.tokens)
    assert batch.kd is not None
    # 64 tokens of a step hold three texts of 6 + 10 tokens and a chunk of pads.
    assert len(batch.tokens) == source.per_batch == 3
    text = packed.tokens.astype(np.int64)
    for row, valid in enumerate(batch.valid):
        pads = int((batch.tokens[row] != PAD).nonzero()[0])
        first = int(valid.nonzero()[0])
        # The prompt is training text; what is learnt begins a chunk, as what inference writes.
        assert (first, pads) == (8, 2)
        prompt = batch.tokens[row, pads:first].numpy()
        assert any(np.array_equal(text[i : i + 6], prompt) for i in range(len(text)))
        learnt = batch.tokens[row, valid]
        assert len(learnt) == 10 or learnt[-1] == EOS
        assert batch.kd.has_row[row][valid].all()
    assert known_teacher.divergence(batch).abs().max() < 1e-5


def test_of_its_own_text_it_learns_only_what_the_teacher_would_have_written(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides=SOME)
    model = make_model(run, "latent")
    with on_policy_text(run, packed) as source:
        batch = source.batch(5, model)
    with torch.no_grad():
        loss = loss_of(model, batch, ObjectiveWeights(ce=3.0, kd=2.0, mse=1.0))
    assert float(loss.kd) > 0
    assert float(loss.total) == pytest.approx(2 * float(loss.kd), rel=1e-5)


def test_rows_stay_with_their_batches_where_the_two_kinds_take_turns(
    known_teacher: Any, make_run: Any, packed: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides=SOME | {"student.optim.steps": 40})
    train, held_out = split_tail(packed)
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, TeacherRows(link, run.recipe.teacher.top_k, "float32"), train, held_out)
        batches = source.training_batches(range(2, 40), make_model(run, "latent"), with_rows=True)
        found = [(batch.on_policy, float(known_teacher.divergence(batch).abs().max())) for batch in batches]
    assert len(found) == 38
    kinds = [own for own, _ in found]
    assert kinds.count(True) > 8
    assert not all(kinds[kinds.index(True) :])
    assert max(worst for _, worst in found) < 1e-5


def test_steps_are_due_by_share_and_not_before_their_time(make_run: Any, packed: PackedData) -> None:
    def due(share: float) -> list[int]:
        overrides = SOME | {"student.optim.steps": 400, "student.on_policy.share": share}
        run = make_run(overrides=overrides)
        nobody: Any = None
        source = OnPolicyText(run, packed, nobody, nobody)
        found = [step for step in range(400) if source.is_due(step)]
        assert source.num_tokens(400) == len(found) * 3 * 10
        return found

    assert due(0.0) == []
    assert due(1.0) == list(range(100, 400))
    half = due(0.5)
    assert 110 < len(half) < 190
    assert min(half) >= 100


@pytest.mark.parametrize("kind", ["latent", "token-level"])
def test_resume_equals_no_interruption_bit_for_bit(
    known_teacher: Any, make_run: Any, packed: PackedData, tmp_path: Path, kind: str
) -> None:
    data, stage = split_tail(packed), "student" if kind == "latent" else "token-level"
    save_pretrained(Autoencoder(make_run().recipe.autoencoder_config(260, PAD)), tmp_path / "ae")

    def train(name: str, stop_at: int | None = None) -> StudentResult:
        at = (stage, stop_at) if stop_at else None
        run = make_run(name, port=known_teacher.port, overrides=SOME, stop_at=at)
        return train_student(run, *data, tmp_path / "ae") if kind == "latent" else train_token_level(run, *data)

    def weights(name: str) -> dict[str, torch.Tensor]:
        run = make_run(name)
        if kind == "latent":
            return load_file(list_checkpoints(run.settings.checkpoints_dir / name)[-1] / "student/model.safetensors")
        return load_file(run.folder / "token-level" / "model.safetensors")

    whole = train("whole")
    with pytest.raises(Interrupted):
        train("cut", stop_at=7)
    assert train("cut").curve == whole.curve
    for (name, ours), theirs in zip(weights("whole").items(), weights("cut").values(), strict=True):
        assert ours.equal(theirs), name
    lines = [json.loads(line) for line in (make_run("whole").folder / "metrics.jsonl").read_text().splitlines()]
    own = [line["step"] for line in lines if "on_policy_kd" in line]
    assert own
    assert min(own) > 3
    assert len(own) < 9
    assert whole.tokens == (12 - len(own)) * 64 + len(own) * 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student.weights.kd": 0, "student.weights.ce": 1}, "student.weights.kd=0"),
        ({"teacher.targets": "generate"}, "teacher.targets='generate'"),
        ({"student.on_policy.max_tokens": 30}, "max_tokens=30 take 40 with a chunk of pads"),
        ({"student.on_policy.share": 1.5}, "student.on_policy.share is 1.5"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make_run: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        make_run(overrides=SOME | values)


def test_a_teacher_that_cannot_score_is_refused(known_teacher: Any, make_run: Any, packed: PackedData) -> None:
    known_teacher.can_score = False
    run = make_run(port=known_teacher.port, overrides=SOME)
    with pytest.raises(TrainerError, match=r"cannot score, but student.on_policy.share=0.5"):
        train_token_level(run, *split_tail(packed))
