"""Documents that do not see one another: every document of a packed sequence as a text of its own.

With ``data.mask_documents`` a batch has a row for each part of a document that lies in one of its sequences, instead of
a row for each sequence. So nothing of a document before can be seen, by attention, by the chunk decoder's window or by
induction heads, and the teacher is asked about each part alone. A row begins with bos where sequences do, at a phase of
its own, with pads on the left; pads on the right fill it up to the longest row, come after everything and are learnt by
nothing. A part of a single token says nothing of any context and is left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentforge.model.losses import StudentBatch
from latentforge.teacher_client.sparse_rows import SparseRows
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import phase
from latentforge.trainer.run.context import RunContext
from latentforge.trainer.targets.kd_targets import kd_targets


def document_texts(run: RunContext, data: PackedData, index: int) -> list[Tensor]:
    """The parts of documents that lie in a sequence, int64 [n] each; the sequence itself without mask_documents."""
    if not run.recipe.data.mask_documents:
        return [torch.from_numpy(data.sequence(index))]
    parts = [part.tolist() for part in data.document_parts(index)]
    return [torch.tensor(run.tokenizer.begin(part)) for part in parts if len(part) > 1]


def training_documents(
    run: RunContext, texts: Sequence[Tensor], first: int, of: int, step: int, rows: Sequence[SparseRows] | None
) -> StudentBatch:
    """A part of the batch of one step.

    Args:
        run: the run.
        texts: the parts of documents.
        first, of: which of the step's texts is the first one here, and how many that has.
        step: decides the phases.
        rows: the teacher's, one block for each text; None without any.
    """
    recipe = run.recipe
    pads = [
        phase(recipe.student.phase_probability, recipe.chunk_size, recipe.seed, step, first + row)
        for row in range(len(texts))
    ]
    return replace(_laid_out(run, texts, pads, rows), first=first, of=of)


def held_out_documents(run: RunContext, texts: Sequence[Tensor], rows: Sequence[SparseRows] | None) -> StudentBatch:
    """One held-out sequence's parts at phase 0. The first token of each has no row and does not count."""
    batch = _laid_out(run, texts, [0] * len(texts), rows)
    batch.valid[:, 0] = False
    return batch


def _laid_out(
    run: RunContext, texts: Sequence[Tensor], pads: Sequence[int], rows: Sequence[SparseRows] | None
) -> StudentBatch:
    k = run.recipe.chunk_size
    longest = max(pad + len(text) for pad, text in zip(pads, texts, strict=True))
    # Both are multiples of K: no chunk is cut through.
    length = min(-(-longest // k) * k, run.recipe.data.sequence_length)
    tokens = torch.full((len(texts), length), run.tokenizer.pad_id, dtype=torch.int64)
    valid = torch.zeros(len(texts), length, dtype=torch.bool)
    after = torch.zeros_like(valid)
    for row, (pad, text) in enumerate(zip(pads, texts, strict=True)):
        kept = text[: length - pad]
        tokens[row, pad : pad + len(kept)] = kept
        valid[row, pad : pad + len(kept)] = True
        after[row, pad + len(kept) :] = True
    kd = kd_targets(rows, length, pads) if rows is not None else None
    # An autoencoder knows chunks with pads on the left, and none with pads on the right.
    whole = ~after.view(len(texts), -1, k).any(-1) & valid.view(len(texts), -1, k).any(-1)
    return StudentBatch(tokens, valid, kd, whole)
