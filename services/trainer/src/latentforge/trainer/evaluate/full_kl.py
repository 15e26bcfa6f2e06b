"""KL to the teacher over its whole distributions, where it gives them, beside the bound that its rows give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentforge.trainer.evaluate.estimate import Estimate
from latentforge.trainer.evaluate.likelihood import Model, evaluate_likelihood
from latentforge.trainer.evaluate.teacher import EvaluationTeacher
from latentforge.trainer.targets.batches import held_out_batch

# The beginnings of some of the sequences: a row has an entry for every id.
NUM_SEQUENCES = 8
_MOST_TOKENS = 256
_MOST_ENTRIES = 2**21


@dataclass(frozen=True)
class FullKl:
    """KL(teacher ‖ model) in nats per token of the same tokens.

    Attributes:
        full: over the whole vocabulary.
        bound: over the top entries of a row, the text's token and one bucket for all others: never more than ``full``.
    """

    full: Estimate
    bound: Estimate


def evaluate_full_kl(
    model: Model,
    sequences: Sequence[Tensor],
    teacher: EvaluationTeacher,
    *,
    top_k: int,
    seed: int,
    on_sequence: Callable[[], None] = lambda: None,
) -> FullKl:
    """Asks for whole distributions at the beginnings of up to NUM_SEQUENCES sequences, evenly spread.

    With an energy head it is the KL under one drawn latent for each chunk, in both figures the same.

    Args:
        model: left in evaluation mode.
        sequences: held-out, int64 [L] each, at least two.
        teacher: one that :attr:`EvaluationTeacher.gives_whole_rows`.
        top_k: entries of the bound.
        seed: of an energy head's noise and of the intervals.
        on_sequence: called after every sequence.

    Raises:
        TeacherError: the teacher refused, or the gateway is lost.
    """
    vocab_size, k = teacher.about.vocab_size, model.chunk_size
    most = max(2, min(_MOST_TOKENS, _MOST_ENTRIES // vocab_size))
    picked = torch.linspace(0, len(sequences) - 1, min(NUM_SEQUENCES, len(sequences))).long().tolist()
    # Whole chunks, at least one.
    beginnings = [sequences[i][: max(1, most // k) * k] for i in picked]
    whole, narrow = [], []
    for beginning in beginnings:
        (rows,) = teacher.rows([beginning.tolist()], top_k=vocab_size, on_sequence=on_sequence)
        whole.append(held_out_batch(beginning, rows))
        narrow.append(held_out_batch(beginning, rows.narrowed(top_k)))
    full, bound = (evaluate_likelihood(model, batches, seed=seed).mean_kl(seed) for batches in (whole, narrow))
    assert full is not None
    assert bound is not None
    return FullKl(full, bound)
