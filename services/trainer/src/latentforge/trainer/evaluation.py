"""Figures on held-out data."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentforge.core.sparse_rows import SparseRows
from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import ObjectiveWeights, StudentBatch, student_loss
from latentforge.trainer.order import step_generator
from latentforge.trainer.packing import PackedData
from latentforge.trainer.teacher_rows import kd_targets

_CHUNKS_AT_ONCE = 256


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
        token_exact and chunk_exact, shares from the posterior's mean; token_exact_noisy and chunk_exact_noisy, from
        a sample of it;
        chunks, how many were looked at.
    """
    autoencoder.eval()
    k = autoencoder.config.chunk_size
    device = autoencoder.log_scale.device
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
    model: LatentModel, sequences: Sequence[Tensor], rows: Sequence[SparseRows] | None, seed: int, device: torch.device
) -> dict[str, float]:
    """CE and KD in nats per token and MSE per dimension, over held-out sequences at phase 0.

    CE is over the tokens that the teacher was asked about (all but each sequence's first), so that it compares with
    the teacher's and the unigram's.

    Args:
        model: left in evaluation mode.
        sequences: int64 [L] each.
        rows: the teacher's, or None where KD is not wanted.
        seed: of an energy head's noise.
        device: the model's.
    """
    model.eval()
    weights = ObjectiveWeights(ce=1.0, kd=1.0 if rows is not None else 0.0, mse=1.0)
    sums: dict[str, float] = {"ce": 0.0, "kd": 0.0, "mse": 0.0}
    for i, sequence in enumerate(sequences):
        valid = torch.ones(1, len(sequence), dtype=torch.bool)
        valid[:, 0] = False
        kd = kd_targets([rows[i]], len(sequence), [0]) if rows is not None else None
        batch = to_device(StudentBatch(sequence[None], valid, kd), device)
        loss = student_loss(model, batch, weights, step_generator(seed, i, device))
        for name in sums:
            sums[name] += float(getattr(loss, name))
    if rows is None:
        del sums["kd"]
    return {name: value / len(sequences) for name, value in sums.items()}


def to_device(batch: StudentBatch, device: torch.device) -> StudentBatch:
    if device.type == "cpu":
        return batch
    kd = type(batch.kd)(**{n: v.to(device, non_blocking=True) for n, v in vars(batch.kd).items()}) if batch.kd else None
    return StudentBatch(batch.tokens.to(device), batch.valid.to(device), kd)


def unigram_ce(token_counts: NDArray[np.int64], sequences: Sequence[Tensor]) -> float:
    """Cross-entropy of held-out tokens under the training data's token frequencies, nats per token.

    Args:
        token_counts: int64 [V], how often each token stands in the training data; one is added to each.
        sequences: held-out ids, int64 [L] each; first tokens are left out.
    """
    counts = token_counts + 1.0
    logprobs = np.log(counts / counts.sum())
    return float(-logprobs[torch.cat([s[1:] for s in sequences]).numpy()].mean())


def teacher_nll(rows: Sequence[SparseRows]) -> float:
    """The teacher's own cross-entropy of the tokens that it scored, nats per token."""
    return float(-np.concatenate([r.realised_logprobs for r in rows]).mean())
