"""How well the autoencoder brings tokens back: from its own latents, and from the student's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.autoencoder import Autoencoder
from latentforge.model.latent_model import LatentModel
from latentforge.model.losses import StudentBatch
from latentforge.trainer.data.sequence_order import step_generator
from latentforge.trainer.evaluate.likelihood import check_lengths

_LOGITS_AT_ONCE_CPU = 2**22
_LOGITS_AT_ONCE_GPU = 2**27


@dataclass(frozen=True)
class Reconstruction:
    """Shares are of tokens, by argmax.

    Attributes:
        clean: right from the posterior's mean.
        noisy: right from a sample of the posterior.
        untrained_clean, untrained_noisy: the same of an autoencoder of its sizes that has learnt nothing.
        student: right from the student's predicted latent alone, without the chunk decoder.
        margin: mean difference between the two largest logits of a clean latent.
        active_dims: dimensions whose mean KL is above the autoencoder's floor.
        mse: of the predicted latent to the posterior's mean, per dimension.
        student, mse: None where the student's logit features need no latent.
        chunks: how many were looked at.
    """

    clean: float
    noisy: float
    untrained_clean: float
    untrained_noisy: float
    margin: float
    active_dims: int
    student: float | None
    mse: float | None
    chunks: int


@torch.no_grad()
def evaluate_reconstruction(
    model: LatentModel, batches: Sequence[StudentBatch], *, seed: int = 0, on_batch: Callable[[], None] = lambda: None
) -> Reconstruction:
    """Looks at all chunks of held-out batches that hold no pad.

    Args:
        model: left in evaluation mode.
        batches: held-out; no teacher's rows are needed.
        seed: of the posterior's and an energy head's noise, and of the untrained autoencoder.
        on_batch: called after every batch.

    Raises:
        TrainerError: sequences do not fit the model.
    """
    model.eval()
    autoencoder, k = model.autoencoder, model.chunk_size
    device = model.device
    predicts = model.student.config.logit_features.kind in ("autoencoder", "embeddings")
    untrained = _untrained(autoencoder, seed)
    right = torch.zeros(5, dtype=torch.int64)
    margin = squared = 0.0
    kl_d = torch.zeros(autoencoder.config.latent_size, dtype=torch.float64)
    num = 0
    for index, batch in enumerate(batches):
        check_lengths(model, batch.tokens.shape[1])
        tokens_btk = batch.tokens.to(device).unflatten(1, (-1, k))
        generator = step_generator(seed, index, device)
        hidden = model.hidden(tokens_btk)
        whole = (tokens_btk != autoencoder.config.pad_id).all(-1)
        predicted = model.student.head(hidden, 1, generator)[0][whole]
        hidden, chunks = hidden[whole], tokens_btk[whole]
        posterior = autoencoder.encode(chunks)
        noisy = posterior.sample(generator)
        kl_d += posterior.kl().double().sum(0).cpu()
        squared += float((predicted - posterior.mean).double().square().mean(-1).sum())
        before = untrained.encode(chunks)
        noisy_before = before.sample(generator)
        for part in _parts(len(chunks), k * model.vocab_size, device):
            top, ids = autoencoder.decode(posterior.mean[part]).topk(2, dim=-1)
            margin += float((top[..., 0] - top[..., 1]).double().sum())
            right[0] += _num_right(ids[..., 0], chunks[part])
            right[1] += _num_right(autoencoder.decode(noisy[part]).argmax(-1), chunks[part])
            if predicts:
                logits = F.linear(model.logit_features(hidden[part], predicted[part]), model.output_weight)
                right[2] += _num_right(logits.argmax(-1), chunks[part])
            right[3] += _num_right(untrained.decode(before.mean[part]).argmax(-1), chunks[part])
            right[4] += _num_right(untrained.decode(noisy_before[part]).argmax(-1), chunks[part])
        num += len(chunks)
        on_batch()
    assert num
    clean, noisy_right, student, untrained_clean, untrained_noisy = (right.double() / (num * k)).tolist()
    return Reconstruction(
        clean=clean,
        noisy=noisy_right,
        untrained_clean=untrained_clean,
        untrained_noisy=untrained_noisy,
        margin=margin / (num * k),
        active_dims=int((kl_d / num > autoencoder.config.kl_floor).sum()),
        student=student if predicts else None,
        mse=squared / num if predicts else None,
        chunks=num,
    )


def _untrained(trained: Autoencoder, seed: int) -> Autoencoder:
    """An autoencoder as a run begins with, unless that starts from a pretrained table."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Autoencoder(trained.config)
    return untrained.to(trained.mask_embedding.device).eval()


def _parts(total: int, logits_each: int, device: torch.device) -> list[slice]:
    budget = _LOGITS_AT_ONCE_CPU if device.type == "cpu" else _LOGITS_AT_ONCE_GPU
    step = max(1, budget // logits_each)
    return [slice(first, first + step) for first in range(0, total, step)]


def _num_right(predicted: Tensor, tokens: Tensor) -> int:
    return int((predicted == tokens).sum())
