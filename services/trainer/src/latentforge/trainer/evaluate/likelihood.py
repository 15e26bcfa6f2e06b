"""Held-out likelihood of a model, token by token, beside the teacher's rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.model.metrics.acceptance import TokenAcceptance, token_acceptance
from latentforge.model.metrics.calibration import expected_calibration_error
from latentforge.model.output_loss import OutputLayer
from latentforge.model.sparse_kd import sparse_losses
from latentforge.model.token_level import TokenLevelModel
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate.estimate import Estimate, mean, ratio_of_sums
from latentforge.trainer.training.validation import to_device

Model = LatentModel | TokenLevelModel

_LOGITS_AT_ONCE_CPU = 2**22
_LOGITS_AT_ONCE_GPU = 2**27


@dataclass(frozen=True)
class Likelihood:
    """Figures of n held-out tokens, on the CPU; two models on the same batches have them in the same order.

    Attributes:
        nats: negative log-likelihood, float64 [n].
        tokens: int64 [n].
        sequences: which sequence each is of, int64 [n].
        positions: its place in its chunk, int64 [n].
        chunk_size: K, 1 for a token-level model.
        confidence: probability of the likeliest token, float32 [n]; None for a bound.
        correct: whether that is the text's token, bool [n]; None for a bound.
        kl: to the teacher, nats, float32 [n], NaN where it has no row; None without rows.
        teacher_nats: the teacher's own negative log-likelihood, likewise.
        acceptance: of drafts of these tokens, float32 [n] each, likewise.
    """

    nats: Tensor
    tokens: Tensor
    sequences: Tensor
    positions: Tensor
    chunk_size: int
    confidence: Tensor | None = None
    correct: Tensor | None = None
    kl: Tensor | None = None
    teacher_nats: Tensor | None = None
    acceptance: TokenAcceptance | None = None

    def mean(self, seed: int = 0) -> Estimate:
        """Nats per token; the interval redraws sequences."""
        return mean(self.nats, self.sequences, seed)

    def by_position(self, seed: int = 0) -> list[Estimate]:
        """Nats per token at each of the K places in a chunk."""
        found = [self.positions == k for k in range(self.chunk_size)]
        return [mean(self.nats[at], self.sequences[at], seed) for at in found]

    def mean_kl(self, seed: int = 0) -> Estimate | None:
        """KL(teacher ‖ model) in nats per token that has a row."""
        return self._mean_where_row(self.kl, seed)

    def mean_teacher(self, seed: int = 0) -> Estimate | None:
        """The teacher's nats per token that has a row."""
        return self._mean_where_row(self.teacher_nats, seed)

    def mean_acceptance(self, seed: int = 0) -> dict[str, Estimate]:
        """What ``training.validation.acceptance_figures`` says, with intervals; empty without rows."""
        if self.acceptance is None:
            return {}
        low, high, accepted_low, accepted_high = self.acceptance
        figures = {"acceptance": self._mean_where_row(high, seed), "acceptance_low": self._mean_where_row(low, seed)}
        if self.chunk_size > 1:
            for k in range(self.chunk_size):
                at = torch.where(self.positions == k, high, torch.nan)
                figures[f"acceptance_k{k}"] = self._mean_where_row(at, seed)
            # The mean of a chunk's sums.
            figures["mean_accepted"] = self._mean_where_row(accepted_high * self.chunk_size, seed)
            figures["mean_accepted_low"] = self._mean_where_row(accepted_low * self.chunk_size, seed)
        return {name: estimate for name, estimate in figures.items() if estimate is not None}

    def bits_per_byte(self, count_bytes: Callable[[list[int]], int], seed: int = 0) -> Estimate:
        """Bits of the counted tokens over the UTF-8 bytes of exactly those tokens.

        Args:
            count_bytes: bytes of the text that ids stand for, such as ``TextTokenizer.num_bytes``.
            seed: of the interval, which redraws sequences.
        """
        ids = torch.unique(self.sequences)
        of = [self.sequences == i for i in ids]
        bits = torch.stack([self.nats[at].sum() for at in of]) / math.log(2)
        sizes = torch.tensor([count_bytes(self.tokens[at].tolist()) for at in of])
        return ratio_of_sums(bits, sizes, ids, seed)

    def calibration_error(self) -> float | None:
        """Expected calibration error of the likeliest token, 0 to 1."""
        if self.confidence is None or self.correct is None:
            return None
        return expected_calibration_error(self.confidence, self.correct)

    def _mean_where_row(self, values: Tensor | None, seed: int) -> Estimate | None:
        if values is None:
            return None
        there = ~values.isnan()
        if not there.any():
            return None
        return mean(values[there], self.sequences[there], seed)


@torch.no_grad()
def evaluate_likelihood(
    model: Model, batches: Sequence[StudentBatch], *, seed: int = 0, on_batch: Callable[[], None] = lambda: None
) -> Likelihood:
    """Likelihood of the valid tokens of held-out batches, and KL to the teacher where there are rows.

    With an energy head it is the likelihood under one drawn latent for each chunk, which no text model is measured by;
    :func:`~latentforge.trainer.evaluate.mixture.evaluate_mixture` bounds the one under all of them.

    Args:
        model: left in evaluation mode.
        batches: each row of each is a sequence of its own.
        seed: of an energy head's noise.
        on_batch: called after every batch.

    Raises:
        TrainerError: sequences that are no multiple of K, or longer than the model's context.
    """
    model.eval()
    device = model.device
    parts: list[Likelihood] = []
    num_sequences = 0
    for index, batch in enumerate(batches):
        check_lengths(model, batch.tokens.shape[1])
        moved = to_device(batch, device)
        layer = _output(model, moved.tokens, step_generator(seed, index, device))
        parts.append(_figures(layer, moved, model.chunk_size, num_sequences))
        num_sequences += len(batch.tokens)
        on_batch()
    return _joined(parts)


def teacher_likelihood(batches: Sequence[StudentBatch]) -> Likelihood:
    """The teacher's own likelihood of the valid tokens that it has rows for; batches as above, with rows."""
    parts: list[Likelihood] = []
    num_sequences = 0
    for batch in batches:
        assert batch.kd is not None
        kd = batch.kd
        rows, columns = (batch.valid & kd.has_row).nonzero(as_tuple=True)
        tokens = batch.tokens[rows, columns]
        parts.append(
            Likelihood(
                nats=-kd.realised_logprobs[rows, columns].double(),
                tokens=tokens,
                sequences=rows + num_sequences,
                positions=torch.zeros_like(tokens),
                chunk_size=1,
                confidence=kd.logprobs[rows, columns, 0].exp().clamp(max=1),
                correct=kd.ids[rows, columns, 0] == tokens,
            )
        )
        num_sequences += len(batch.tokens)
    return _joined(parts)


def check_lengths(model: Model, length: int) -> None:
    """Raises TrainerError unless the model can read sequences of so many tokens."""
    k = model.chunk_size
    if length % k:
        raise TrainerError(f"sequences of {length} tokens are no multiple of K={k}; pack the data with --k {k}")
    if length > model.max_tokens:
        raise TrainerError(
            f"sequences of {length} tokens, but the model's context is {model.max_tokens}; "
            f"pack the data with --sequence-length {model.max_tokens} or less"
        )


def logits_in_blocks(layer: OutputLayer, picked: Tensor, use: Callable[[slice, Tensor], None]) -> None:
    """Makes float32 logits [m, V] of the ``picked`` rows [n] of an output layer a few at a time.

    Args:
        layer: of all rows.
        picked: int64 [n].
        use: is given which of ``picked`` they are, and the logits, which it may overwrite.
    """
    budget = _LOGITS_AT_ONCE_CPU if layer.inputs.device.type == "cpu" else _LOGITS_AT_ONCE_GPU
    step = max(32, budget // len(layer.bias))
    for first in range(0, len(picked), step):
        part = slice(first, first + step)
        use(part, layer.logits(picked[part]))


def _output(model: Model, tokens: Tensor, generator: torch.Generator) -> OutputLayer:
    if isinstance(model, TokenLevelModel):
        return model.output(tokens)
    chunks = tokens.view(len(tokens), -1, model.chunk_size)
    states = model.student.text_states(chunks)
    hidden = model.hidden(chunks, states)
    return model.output(chunks, hidden, model.student.head(hidden, 1, generator)[0], states)


def _figures(layer: OutputLayer, batch: StudentBatch, chunk_size: int, num_before: int) -> Likelihood:
    rows, columns = batch.valid.nonzero(as_tuple=True)
    tokens = batch.tokens[rows, columns]
    device = tokens.device
    nats = torch.empty(len(tokens), dtype=torch.float64, device=device)
    confidence = torch.empty(len(tokens), device=device)
    correct = torch.empty(len(tokens), dtype=torch.bool, device=device)
    kl, overlap, tv = torch.full((3, len(tokens)), torch.nan, device=device)

    def use(part: slice, logits: Tensor) -> None:
        lse, (top, top_ids) = logits.logsumexp(1), logits.max(1)
        nats[part] = (lse - logits.gather(1, tokens[part, None])[:, 0]).double()
        confidence[part] = (top - lse).exp().clamp(max=1)
        correct[part] = top_ids == tokens[part]
        if batch.kd is not None:
            of_tokens = batch.kd.select((rows[part], columns[part]))
            losses = sparse_losses(logits, of_tokens, tokens[part])
            for values, of_part in ((kl, losses.kd), (overlap, losses.overlap), (tv, losses.tv)):
                values[part] = torch.where(of_tokens.has_row, of_part, torch.nan)

    logits_in_blocks(layer, rows * batch.tokens.shape[1] + columns, use)
    teacher_nats = acceptance = None
    if batch.kd is not None:
        has_row = batch.kd.has_row[rows, columns]
        teacher_nats = torch.where(has_row, -batch.kd.realised_logprobs[rows, columns], torch.nan)

        def placed(values: Tensor) -> Tensor:
            """Values of the tokens where those stand in the batch."""
            whole = torch.full(batch.tokens.shape, torch.nan, device=device)
            whole[rows, columns] = values
            return whole

        known = batch.valid & batch.kd.has_row
        found = token_acceptance(placed(overlap), placed(tv), known, chunk_size)
        acceptance = TokenAcceptance(*(bound[rows, columns].cpu() for bound in found))
    return Likelihood(
        nats=nats.cpu(),
        tokens=tokens.cpu(),
        sequences=rows.cpu() + num_before,
        positions=columns.cpu() % chunk_size,
        chunk_size=chunk_size,
        confidence=confidence.cpu(),
        correct=correct.cpu(),
        kl=None if batch.kd is None else kl.cpu(),
        teacher_nats=None if teacher_nats is None else teacher_nats.cpu(),
        acceptance=acceptance,
    )


def _joined(parts: list[Likelihood]) -> Likelihood:
    assert parts

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    acceptance = [part.acceptance for part in parts if part.acceptance is not None]
    return Likelihood(
        nats=torch.cat([part.nats for part in parts]),
        tokens=torch.cat([part.tokens for part in parts]),
        sequences=torch.cat([part.sequences for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        chunk_size=parts[0].chunk_size,
        confidence=joined("confidence"),
        correct=joined("correct"),
        kl=joined("kl"),
        teacher_nats=joined("teacher_nats"),
        acceptance=TokenAcceptance(*map(torch.cat, zip(*acceptance, strict=True))) if acceptance else None,
    )
