"""With data.mask_documents nothing of a document is seen by another, and the teacher is asked about each alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.io import load_autoencoder
from latentforge.model.losses import ObjectiveWeights, StudentBatch, loss_of
from latentforge.text.held_out import split_tail
from latentforge.text.packed import PackedData
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.run.interrupt import Interrupted
from latentforge.trainer.run.ranks import Ranks
from latentforge.trainer.targets.batches import training_batch, training_indices
from latentforge.trainer.targets.documents import document_texts, held_out_documents, training_documents
from latentforge.trainer.targets.scored import ScoredTargets
from latentforge.trainer.targets.text import TextTargets
from latentforge.trainer.teacher.connection import TeacherLink
from latentforge.trainer.teacher.rows import TeacherRows
from latentforge.trainer.training.learners import latent_learner, token_level_learner
from latentforge.trainer.training.student import train_student

MASKED = {"data.mask_documents": True}


def test_a_sequence_is_cut_where_documents_begin(short_documents: PackedData) -> None:
    data = short_documents
    starts = set(data.document_starts().tolist())
    for part in (data, data.part(5, 20)):
        offset = 5 * 32 if part is not data else 0
        for index in range(len(part)):
            parts = part.document_parts(index)
            assert np.concatenate(parts).tolist() == part.sequence(index).tolist()
            borders = offset + 32 * index + np.cumsum([len(p) for p in parts[:-1]])
            begin = offset + 32 * index
            assert set(borders.tolist()) == {s for s in starts if begin < s < begin + 32}
            assert all(p[-1] == data.meta.eos_id for p in parts[:-1])


@pytest.mark.parametrize("phase_probability", [0.0, 1.0])
def test_rows_of_a_batch_are_the_documents_and_pads(
    short_documents: PackedData, make_run: Any, phase_probability: float
) -> None:
    run = make_run(overrides=MASKED | {"student.phase_probability": phase_probability})
    pads = set()
    for step in range(8):
        batch = training_batch(run, short_documents, step, None)
        texts = [
            t for i in training_indices(run, short_documents, step) for t in document_texts(run, short_documents, i)
        ]
        assert batch.tokens.shape[1] % 4 == 0
        assert batch.chunk_valid is not None
        for row, text in enumerate(texts):
            [places] = batch.valid[row].nonzero(as_tuple=True)
            first, length = int(places[0]), len(places)
            assert places.tolist() == list(range(first, first + length))
            assert batch.tokens[row][batch.valid[row]].tolist() == text[:length].tolist()
            # Only what goes beyond the sequence's length is cut off.
            assert length == len(text) or first + length == 32
            assert (batch.tokens[row][~batch.valid[row]] == run.tokenizer.pad_id).all()
            whole = [t for t in range(batch.tokens.shape[1] // 4) if first < 4 * t + 4 <= first + length]
            assert batch.chunk_valid[row].nonzero()[:, 0].tolist() == whole
            pads.add(first)
    assert pads == ({0} if not phase_probability else {1, 2, 3})


@pytest.fixture(params=["latent", "token-level"])
def learner(request: pytest.FixtureRequest, make_run: Any, autoencoder: Path) -> Any:
    counts = torch.ones(260, dtype=torch.int64)
    run = make_run(overrides=MASKED)
    if request.param == "token-level":
        return token_level_learner(run, counts)
    return latent_learner(run, load_autoencoder(autoencoder), counts)


def randomised(model: torch.nn.Module) -> Any:
    """With every path open: some parts begin at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    if model.chunk_size == 1:
        found: torch.Tensor = model.logits(tokens)
        return found
    out = model.logits(tokens.view(len(tokens), -1, model.chunk_size))
    return torch.cat([out.logits.flatten(1, 2), out.hidden.repeat_interleave(model.chunk_size, 1)], -1)


@torch.no_grad()
def test_a_change_in_a_document_changes_nothing_of_the_others(learner: Any, make_run: Any) -> None:
    run, model = make_run(overrides=MASKED), randomised(learner.model)
    texts = [torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 13, 10)]
    weights = ObjectiveWeights(ce=1.0, kd=0.0, mse=0.0)

    def looked_at() -> tuple[torch.Tensor, list[float]]:
        batch = training_documents(run, texts, 0, len(texts), 3, None)
        losses = []
        for row in range(len(texts)):
            alone = torch.zeros_like(batch.valid)
            alone[row] = batch.valid[row]
            losses.append(float(loss_of(model, replace(batch, valid=alone), weights).ce))
        return logits_of(model, batch.tokens), losses

    before, losses_before = looked_at()
    texts[0] = texts[0].clone()
    texts[0][4] = (texts[0][4] + 7) % 260
    after, losses_after = looked_at()
    assert not torch.equal(before[0], after[0])
    assert losses_before[0] != losses_after[0]
    assert torch.equal(before[1:], after[1:])
    assert losses_before[1:] == losses_after[1:]


@torch.no_grad()
def test_in_one_sequence_the_change_is_seen_without_the_mask(learner: Any) -> None:
    """The test above can fail: as a packed sequence the same documents do see one another."""
    model = randomised(learner.model)
    tokens = torch.randint(4, 260, (1, 32), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 4] = (other[0, 4] + 7) % 260
    assert not torch.equal(logits_of(model, tokens)[0, 12:], logits_of(model, other)[0, 12:])


@torch.no_grad()
def test_a_document_has_the_logits_that_it_has_alone(learner: Any, make_run: Any) -> None:
    run, model = make_run(overrides=MASKED | {"student.phase_probability": 0.0}), randomised(learner.model)
    texts = [torch.randint(4, 260, (n,), generator=torch.Generator().manual_seed(n)) for n in (8, 20, 12)]
    batch = training_documents(run, texts, 0, len(texts), 0, None)
    together = logits_of(model, batch.tokens)
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row, : len(text)], logits_of(model, text[None])[0], rtol=1e-4, atol=1e-4)


def test_the_teacher_is_asked_about_each_document_and_its_rows_lie_over_it(
    known_teacher: Any, make_run: Any, short_documents: PackedData
) -> None:
    run = make_run(port=known_teacher.port, overrides=MASKED | {"student.phase_probability": 0.8})
    train, held_out = split_tail(short_documents)
    with TeacherLink.of(run.settings, run.stop) as link:
        source = ScoredTargets(run, TeacherRows(link, 4, "float32"), train, held_out)
        model: Any = None
        batches = list(source.training_batches(range(12), model, with_rows=True))
        compared = source.held_out_batches()
    asked = {tuple(ids) for request in known_teacher.requests for ids in request}
    starts = {tuple(text.tolist()) for i in range(len(train)) for text in document_texts(run, train, i)}
    starts |= {tuple(text.tolist()) for i in range(len(held_out)) for text in document_texts(run, held_out, i)}
    assert asked <= starts
    assert len(batches) == 12
    for without_row, batch in [*((1, batch) for batch in batches), *((0, batch) for batch in compared)]:
        assert batch.kd is not None
        seen = batch.valid & batch.kd.has_row
        assert known_teacher.divergence(batch).abs().max() < 1e-5
        # Every token of a document but its first has a row.
        assert (batch.valid.sum(1) - seen.sum(1)).unique().tolist() == [without_row]


def test_documents_begin_with_bos_where_sequences_do(
    bos_packed: PackedData, bos_tokenizer_folder: Path, make_run: Any
) -> None:
    run = replace(make_run(overrides=MASKED), tokenizer=TextTokenizer(bos_tokenizer_folder))
    for index in range(len(bos_packed)):
        texts = document_texts(run, bos_packed, index)
        assert all(text[0] == 2 and (text[1:] != 2).all() for text in texts)
        plain = [t for text in texts for t in text[1:].tolist()]
        assert plain == [t for part in bos_packed.document_parts(index) if len(part) > 1 for t in part if t != 2]


def test_a_part_of_one_token_is_left_out(short_documents: PackedData, make_run: Any) -> None:
    run = make_run(overrides=MASKED)
    single = [i for i in range(len(short_documents)) if min(map(len, short_documents.document_parts(i))) == 1]
    assert single
    for index in single:
        assert all(len(text) > 1 for text in document_texts(run, short_documents, index))


def test_held_out_documents_are_compared_where_there_are_rows(make_run: Any, short_documents: PackedData) -> None:
    run = make_run(overrides=MASKED)
    batches = TextTargets(run, *split_tail(short_documents)).held_out_batches()
    assert len(batches) == 2
    for batch in batches:
        assert not batch.valid[:, 0].any()
    texts = document_texts(run, short_documents, 3)
    batch = held_out_documents(run, texts, None)
    assert int(batch.valid.sum()) == sum(len(text) - 1 for text in texts)


def test_a_masked_run_resumes_bit_for_bit_and_its_recipe_says_so(
    known_teacher: Any, make_run: Any, short_documents: PackedData, autoencoder: Path
) -> None:
    data = split_tail(short_documents)
    whole = make_run("whole", port=known_teacher.port, overrides=MASKED)
    train_student(whole, *data, autoencoder)
    with pytest.raises(Interrupted):
        train_student(
            make_run("cut", port=known_teacher.port, stop_at=("student", 5), overrides=MASKED), *data, autoencoder
        )
    with pytest.raises(ValueError, match=r"mask_documents"):
        train_student(make_run("cut", port=known_teacher.port), *data, autoencoder)
    train_student(make_run("cut", port=known_teacher.port, overrides=MASKED), *data, autoencoder)
    ours, theirs = (
        load_file(list_checkpoints(whole.settings.checkpoints_dir / name)[-1] / "student" / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())
    assert "mask_documents" not in make_run().identity("student")["data"]


def test_batches_without_the_mask_are_whole_sequences(short_documents: PackedData, make_run: Any) -> None:
    run = make_run(overrides={"student.phase_probability": 0.0})
    batch: StudentBatch = training_batch(run, short_documents, 2, None)
    assert batch.tokens.tolist() == [
        short_documents.sequence(i).tolist() for i in training_indices(run, short_documents, 2)
    ]
    assert batch.valid.all()
    assert batch.chunk_valid is None


def test_processes_share_a_steps_documents(short_documents: PackedData, make_run: Any) -> None:
    run = make_run(overrides=MASKED | {"student.phase_probability": 0.7})
    whole = training_batch(run, short_documents, 3, None)
    parts = [training_batch(replace(run, ranks=Ranks(rank, 3)), short_documents, 3, None) for rank in range(3)]
    assert [part.first for part in parts] == [0, *np.cumsum([len(part.tokens) for part in parts[:-1]]).tolist()]
    assert {part.of for part in parts} == {whole.of} == {len(whole.tokens)}
    rows = [(part.tokens[i], part.valid[i]) for part in parts for i in range(len(part.tokens))]
    for row, (tokens, valid) in enumerate(rows):
        assert tokens[valid].tolist() == whole.tokens[row][whole.valid[row]].tolist()
        assert valid.nonzero()[0] == whole.valid[row].nonzero()[0]
