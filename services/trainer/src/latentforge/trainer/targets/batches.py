"""Packed sequences as the batches of a step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentforge.model.chunks import shift_right
from latentforge.model.losses import StudentBatch
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import batch_indices, phase
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.documents import document_texts, held_out_documents, training_documents
from latentforge.trainer.targets.kd_targets import kd_targets


def held_out_batch(sequence: Tensor, rows: SparseRows | None) -> StudentBatch:
    """One held-out sequence [L] by itself, at phase 0.

    The first token has no context, so the teacher says nothing about it, and it does not count.
    """
    valid = torch.ones(1, len(sequence), dtype=torch.bool)
    valid[:, 0] = False
    kd = kd_targets([rows], len(sequence), [0]) if rows is not None else None
    return StudentBatch(sequence[None], valid, kd)


def held_out_indices(data: PackedData, count: int) -> list[int]:
    """Up to ``count`` sequences, evenly spread."""
    picked: list[int] = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.int64)).tolist()
    return picked


def held_out_sequences(data: PackedData, count: int) -> list[Tensor]:
    """Those sequences, int64 [L] each."""
    return [torch.from_numpy(data.sequence(i)) for i in held_out_indices(data, count)]


def held_out_texts_batch(run: RunContext, texts: Sequence[Tensor], rows: Sequence[SparseRows] | None) -> StudentBatch:
    """One held-out sequence: as it is packed, or its documents apart, see :func:`document_texts`."""
    if run.recipe.data.mask_documents:
        return held_out_documents(run, texts, rows)
    return held_out_batch(texts[0], None if rows is None else rows[0])


def training_indices(run: RunContext, data: PackedData, step: int) -> list[int]:
    """Which sequences this process takes in one step."""
    batch_size = run.recipe.student.optim.batch_size
    indices = batch_indices(len(data), batch_size, run.recipe.seed, step)[run.ranks.share(batch_size)]
    found: list[int] = indices.tolist()
    return found


def training_sequences(run: RunContext, data: PackedData, step: int) -> list[Tensor]:
    """This process's sequences of one step as they are packed: what the teacher is asked about."""
    return [torch.from_numpy(data.sequence(i)) for i in training_indices(run, data, step)]


@dataclass(frozen=True)
class StepTexts:
    """This process's part of what one step learns as texts of their own, and what the teacher is asked about.

    Attributes:
        first, of: which of the step's texts is the first one here, and how many that has.
        indices: which sequence each is of.
        texts: int64 [n] each.
    """

    first: int
    of: int
    indices: Sequence[int]
    texts: Sequence[Tensor]


def step_texts(run: RunContext, data: PackedData, step: int) -> StepTexts:
    """The step's sequences, or the documents in them where those are hidden from one another."""
    batch_size = run.recipe.student.optim.batch_size
    if not run.recipe.data.mask_documents:
        first = run.ranks.share(batch_size).start
        return StepTexts(first, batch_size, training_indices(run, data, step), training_sequences(run, data, step))
    taken: list[int] = batch_indices(len(data), batch_size, run.recipe.seed, step).tolist()
    every = [(index, text) for index in taken for text in document_texts(run, data, index)]
    # Texts are shared, not sequences: processes have as many but for one.
    share = run.ranks.share(len(every))
    mine = every[share]
    return StepTexts(share.start, len(every), [index for index, _ in mine], [text for _, text in mine])


def training_batch(run: RunContext, data: PackedData, step: int, rows: Sequence[SparseRows] | None) -> StudentBatch:
    """This process's part of a step's batch: sequences, masks and rows, each sequence shifted by its own phase.

    ``rows`` has a block for each of the :func:`step_texts`.
    """
    recipe, seed = run.recipe, run.recipe.seed
    if recipe.data.mask_documents:
        share = step_texts(run, data, step)
        return training_documents(run, share.texts, share.first, share.of, step, rows)
    batch_size = recipe.student.optim.batch_size
    first = run.ranks.share(batch_size).start
    sequences = training_sequences(run, data, step)
    pads = [
        phase(recipe.student.phase_probability, recipe.chunk_size, seed, step, first + row)
        for row in range(len(sequences))
    ]
    shifted = list(zip(sequences, pads, strict=True))
    tokens = torch.stack([shift_right(s, p, run.tokenizer.pad_id) for s, p in shifted])
    valid = torch.stack([shift_right(torch.ones(len(s), dtype=torch.bool), p, False) for s, p in shifted])
    kd = kd_targets(rows, tokens.shape[1], pads) if rows is not None else None
    return StudentBatch(tokens, valid, kd, first=first, of=batch_size)
