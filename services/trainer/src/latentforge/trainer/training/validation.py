"""Figures on held-out data."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from latentforge.model.ablation import part_worth
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import LossCounts, ObjectiveWeights, StudentBatch, StudentLoss, loss_of
from latentforge.model.metrics.acceptance import TokenAcceptance, greedy_accepted, token_acceptance
from latentforge.model.token_level import TokenLevelModel
from latentforge.text.packed import PackedData
from latentforge.trainer.data.sequence_order import step_generator

_CHUNKS_AT_ONCE = 256
# As evaluations draft, whatever K is: a draft goes on over a chunk's border.
_DRAFTED = 8


@torch.no_grad()
def evaluate_autoencoder(
    autoencoder: Autoencoder, data: PackedData, seed: int, max_chunks: int | None = None
) -> dict[str, float]:
    """Reconstruction of held-out chunks by argmax.

    Args:
        autoencoder: left in evaluation mode.
        data: held-out sequences, cut at phase 0.
        seed: of the posterior noise.
        max_chunks: chunks looked at, evenly spread; None takes all.

    Returns:
        token_exact and chunk_exact, shares from the posterior's mean; token_exact_noisy and chunk_exact_noisy, from a
        sample of it; chunks, how many were looked at.
    """
    autoencoder.eval()
    k = autoencoder.config.chunk_size
    device = autoencoder.mask_embedding.device
    num_chunks = len(data.tokens) // k
    count = min(num_chunks, max_chunks or num_chunks)
    picked = np.linspace(0, num_chunks - 1, count).astype(np.int64)
    exact = torch.zeros(2, 2, dtype=torch.int64)
    for i in range(0, count, _CHUNKS_AT_ONCE):
        rows = picked[i : i + _CHUNKS_AT_ONCE]
        chunks_nk = torch.from_numpy(data.tokens.reshape(-1, k)[rows].astype(np.int64)).to(device)
        posterior = autoencoder.encode(chunks_nk)
        generator = step_generator(seed, i, device)
        for noisy, latents in enumerate((posterior.mean, posterior.sample(generator))):
            right = autoencoder.decode(latents).argmax(-1) == chunks_nk
            exact[noisy, 0] += int(right.sum())
            exact[noisy, 1] += int(right.all(-1).sum())
    tokens, chunks = count * k, count
    return {
        "token_exact": int(exact[0, 0]) / tokens,
        "chunk_exact": int(exact[0, 1]) / chunks,
        "token_exact_noisy": int(exact[1, 0]) / tokens,
        "chunk_exact_noisy": int(exact[1, 1]) / chunks,
        "chunks": chunks,
    }


@torch.no_grad()
def evaluate_student(
    model: LatentModel | TokenLevelModel, batches: Sequence[StudentBatch], seed: int, device: torch.device
) -> dict[str, float]:
    """Figures on held-out batches: CE in nats per token, KD where there are rows, MSE per dimension of a latent.

    CE is over the valid tokens, those that the teacher has rows for, so that it compares with the teacher's and the
    unigram's. Where there are rows, :func:`acceptance_figures` and :func:`greedy_figures` are added.

    Args:
        model: left in evaluation mode.
        batches: all with rows, or none.
        seed: of an energy head's noise.
        device: the model's.
    """
    model.eval()
    k = model.chunk_size
    weights = ObjectiveWeights(ce=1.0, kd=float(batches[0].kd is not None), mse=float(isinstance(model, LatentModel)))
    terms = [name for name, weight in vars(weights).items() if weight]
    sums, amounts = dict.fromkeys(terms, 0.0), dict.fromkeys(terms, 0)
    acceptance: list[TokenAcceptance] = []
    greedy: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, batch in enumerate(batches):
        moved = to_device(batch, device)
        # The same noise at every validation: points of a curve differ by the weights alone.
        loss = loss_of(model, moved, weights, step_generator(seed, i, device))
        counts = LossCounts.of(batch, k)
        of_terms = {"ce": int(counts.tokens), "kd": int(counts.rows), "mse": int(counts.chunks)}
        for name in terms:
            sums[name] += of_terms[name] * float(getattr(loss, name))
            amounts[name] += of_terms[name]
        if moved.kd is not None:
            acceptance.append(_acceptance(loss, moved, k))
            assert loss.agrees is not None
            greedy.append((loss.agrees.view_as(moved.tokens), moved.valid & moved.kd.has_row))
    figures = {name: value / max(amounts[name], 1) for name, value in sums.items()}
    return figures | (acceptance_figures(acceptance, k) | greedy_figures(greedy) if acceptance else {})


def _acceptance(loss: StudentLoss, batch: StudentBatch, chunk_size: int) -> TokenAcceptance:
    assert batch.kd is not None
    assert loss.by_token is not None
    overlap, tv = (x.view_as(batch.tokens) for x in (loss.by_token.overlap, loss.by_token.tv))
    return token_acceptance(overlap, tv, batch.valid & batch.kd.has_row, chunk_size)


def acceptance_figures(found: Sequence[TokenAcceptance], chunk_size: int) -> dict[str, float]:
    """How the teacher would receive the student's drafts (see ``metrics.acceptance``).

    Returns:
        acceptance and acceptance_low, the upper and lower bound of what is accepted of one drafted token, mean over all
        that have a row; acceptance_k0 …, the upper bound at each place in the chunk; mean_accepted and
        mean_accepted_low, of a draft of a whole chunk. The last three only where K > 1, and where there are chunks with
        all of their rows.
    """
    low, high, accepted_low, accepted_high = (
        torch.cat([x.reshape(-1, chunk_size) for x in bound]).double() for bound in zip(*found, strict=True)
    )
    figures = {"acceptance": high.nanmean(), "acceptance_low": low.nanmean()}
    if chunk_size > 1:
        figures |= {f"acceptance_k{k}": high[:, k].nanmean() for k in range(chunk_size)}
        figures["mean_accepted"] = accepted_high.sum(1).nanmean()
        figures["mean_accepted_low"] = accepted_low.sum(1).nanmean()
    # A mean over nothing is no figure.
    return {name: float(value) for name, value in figures.items() if not value.isnan()}


def greedy_figures(found: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """How a teacher that writes greedily would receive the student's greedy drafts; exact along its own greedy text.

    Args:
        found: of batches, whether the student's likeliest token is the teacher's, and which tokens have a row.

    Returns:
        greedy_agreement, the share of tokens; greedy_accepted, the mean of what is accepted of a draft of 8 tokens,
        where each begins behind what the one before it gave.
    """
    hits = torch.cat([agrees[known] for agrees, known in found]).double()
    accepted = torch.cat([greedy_accepted(agrees, known, _DRAFTED) for agrees, known in found]).double()
    figures = {"greedy_agreement": hits.mean(), "greedy_accepted": accepted.mean()}
    return {name: float(value) for name, value in figures.items() if not value.isnan()}


def evaluate_parts(
    model: LatentModel | TokenLevelModel, batches: Sequence[StudentBatch], seed: int
) -> dict[str, float]:
    """``worth_<part>`` of every part of a model: nats that a valid token costs more without it, see ``model.ablation``.

    It takes as long as several times :func:`evaluate_student`, whose arguments and noise these are.
    """
    worth = part_worth(model, batches, lambda index: step_generator(seed, index, model.device))
    return {f"worth_{part}": float(lost.mean()) for part, lost in worth.items()}


def to_device(batch: StudentBatch, device: torch.device) -> StudentBatch:
    if device.type == "cpu":
        return batch
    kd = type(batch.kd)(**{n: v.to(device, non_blocking=True) for n, v in vars(batch.kd).items()}) if batch.kd else None
    chunk_valid = batch.chunk_valid.to(device) if batch.chunk_valid is not None else None
    return StudentBatch(batch.tokens.to(device), batch.valid.to(device), kd, chunk_valid, batch.on_policy)


def unigram_ce(token_counts: NDArray[np.int64], batches: Sequence[StudentBatch]) -> float:
    """Cross-entropy of held-out tokens under the training text's token frequencies, nats per token.

    Args:
        token_counts: int64 [V], how often each token stands in what is learnt; one is added to each.
        batches: held-out; the valid tokens count.
    """
    counts = token_counts + 1.0
    logprobs = np.log(counts / counts.sum())
    return float(-logprobs[torch.cat([b.tokens[b.valid] for b in batches]).numpy()].mean())


def teacher_nll(batches: Sequence[StudentBatch]) -> float:
    """The teacher's own cross-entropy of the valid tokens of held-out batches that have a row, nats per token."""
    found = [b.kd.realised_logprobs[b.valid & b.kd.has_row] for b in batches if b.kd is not None]
    return float(-torch.cat(found).mean())
