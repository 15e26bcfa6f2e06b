"""The student's objective: a weighted sum of CE, divergences from the teacher, MSE and energy, and its terms."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from latentforge.model.autoencoder import Posterior
from latentforge.model.energy import energy_loss
from latentforge.model.latent_model import LatentModel
from latentforge.model.logit_passes import LogitPasses
from latentforge.model.noise import Noise, RowNoise
from latentforge.model.output_loss import OutputLayer, TokenWeights, token_losses
from latentforge.model.sparse_kd import BucketLosses, Buckets, KdTargets, make_buckets, text_buckets
from latentforge.model.token_level import TokenLevelModel


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of values [...] where mask [...] is True, a scalar; 0 where it is nowhere.

    With ``count``, int64 scalar, their sum over that: a part's share of a mean over more.
    """
    return torch.where(mask, values, 0).sum() / (mask.sum() if count is None else count).clamp(min=1)


def latent_mse(latents: Tensor, targets: Tensor, mask: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean squared error per dimension of latents and targets [..., D] over True positions of mask [...]; a scalar.

    ``count`` as in :func:`masked_mean`.
    """
    return masked_mean((latents - targets).square().mean(-1), mask, count)


@dataclass(frozen=True)
class ObjectiveWeights:
    """Weights of the loss terms; a term with weight 0 is not computed where that saves work.

    Attributes:
        ce: of the cross-entropy.
        kd, tv, reverse_kl: of KL(teacher ‖ student), total variation and KL(student ‖ teacher), over a row's buckets.
        mse, energy: of the latents.
    """

    ce: float = 1.0
    kd: float = 1.0
    mse: float = 1.0
    energy: float = 0.0
    tv: float = 0.0
    reverse_kl: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"the weight of {name} is {value}; set a finite number of at least 0")

    @property
    def of_rows(self) -> dict[str, float]:
        """Those of the terms that need the teacher's rows, by name."""
        return {"kd": self.kd, "tv": self.tv, "reverse_kl": self.reverse_kl}


@dataclass(frozen=True)
class StudentBatch:
    """Sequences of L = t·K tokens.

    Attributes:
        tokens: int64 [b, L].
        valid: bool [b, L]; False on pads, and on what is context only.
        kd: the teacher's rows, row i that of token i: its distribution given the tokens before; or None.
        chunk_valid: bool [b, t], the chunks of MSE and energy; None takes those with at least one valid token.
        on_policy: the model wrote the tokens itself; all that :func:`loss_of` learns of them is what the teacher would
            have written.
        first, of: where the sequences begin in the batch that they are a part of, and how many that has; ``of`` is None
            for a whole batch.
    """

    tokens: Tensor
    valid: Tensor
    kd: KdTargets | None = None
    chunk_valid: Tensor | None = None
    on_policy: bool = False
    first: int = 0
    of: int | None = None

    def rows(self, part: slice) -> "StudentBatch":
        """Some of the sequences, ``part`` with a start and a stop."""
        kd = None if self.kd is None else self.kd.select(part)
        chunk_valid = None if self.chunk_valid is None else self.chunk_valid[part]
        of = len(self.tokens) if self.of is None else self.of
        first = self.first + part.start
        return StudentBatch(self.tokens[part], self.valid[part], kd, chunk_valid, self.on_policy, first, of)

    def chunks(self, chunk_size: int) -> Tensor:
        """The chunks of MSE and energy, bool [b, t]: latents have no padding of their own."""
        if self.chunk_valid is not None:
            return self.chunk_valid
        return self.valid.view(len(self.tokens), -1, chunk_size).any(-1)


class LossCounts(NamedTuple):
    """How many a batch's means are over, int64 scalars: tokens for CE, tokens with a row for KD, chunks for the rest.

    Parts of a batch that all divide by the whole batch's counts have losses, and so gradients, that sum to its own.
    """

    tokens: Tensor
    rows: Tensor
    chunks: Tensor

    @classmethod
    def of(cls, batch: StudentBatch, chunk_size: int) -> "LossCounts":
        valid = batch.valid
        rows = valid.new_zeros(()) if batch.kd is None else valid & batch.kd.has_row
        return cls(valid.sum(), rows.sum(), batch.chunks(chunk_size).sum())


class StudentLoss(NamedTuple):
    """Scalars; the terms are unweighted means, 0 where they were not computed; of a part, its share of them.

    Attributes:
        total: the weighted sum.
        ce, kd, reverse_kl: nats per token.
        tv: per token, 0 to 1.
        mse: per dimension of a latent.
        energy: per chunk.
        tokens: how many were valid.
        by_token: of each of the batch's tokens, float32 [b·L]; what is not valid or has no row means nothing there.
            None where nothing of the tokens was wanted.
        agrees: likewise, whether the student's likeliest token is the teacher's, bool [b·L].
    """

    total: Tensor
    ce: Tensor
    kd: Tensor
    mse: Tensor
    energy: Tensor
    tokens: Tensor
    tv: Tensor
    reverse_kl: Tensor
    by_token: BucketLosses | None
    agrees: Tensor | None


def loss_of(
    model: LatentModel | TokenLevelModel,
    batch: StudentBatch,
    weights: ObjectiveWeights,
    generator: torch.Generator | None = None,
    counts: LossCounts | None = None,
) -> StudentLoss:
    """:func:`student_loss` or :func:`token_level_loss`, as the model wants; on-policy text teaches its rows alone.

    Of a part of a batch, ``generator`` is as the whole batch would have got it, and ``counts`` are the whole batch's.
    """
    if batch.on_policy:
        weights = replace(weights, ce=0, mse=0, energy=0)
    if isinstance(model, TokenLevelModel):
        return token_level_loss(model, batch, weights, counts)
    return student_loss(model, batch, weights, generator, counts)


def student_loss(
    model: LatentModel,
    batch: StudentBatch,
    weights: ObjectiveWeights,
    generator: torch.Generator | None = None,
    counts: LossCounts | None = None,
    *,
    energy_samples: int = 8,
    energy_draws: int = 100,
) -> StudentLoss:
    """Computes the objective; with the energy head all but energy use the first of its samples.

    CE is the mean over valid tokens, KD, TV and reverse KL over valid tokens that have a row, MSE and energy over
    ``chunk_valid``.

    Args:
        model: the autoencoder's posterior is the target of MSE (its mean) and energy (its samples), without a gradient.
        batch: L is a multiple of K.
        weights: of the terms.
        generator: draws the energy head's noise, then the posterior's.
        counts: what the means are over; None takes those of the batch itself.
        energy_samples: latents of each chunk that the energy score compares, at least 2.
        energy_draws: samples of the posterior that it compares them with.

    Raises:
        ValueError: L is not a multiple of K, or the weights want a term that the model or the batch cannot give.
    """
    k = model.chunk_size
    if batch.tokens.shape[1] % k:
        raise ValueError(f"sequences of {batch.tokens.shape[1]} tokens are no multiple of K={k}; pack them with this K")
    if weights.energy and model.student.config.head != "energy":
        raise ValueError(
            f"energy weight {weights.energy} with head={model.student.config.head!r}: "
            "set the weight to 0 or head to 'energy'"
        )
    counts = counts or LossCounts.of(batch, k)
    noise: Noise = generator
    if generator is not None and batch.of is not None:
        noise = RowNoise(generator, batch.first, len(batch.tokens), batch.of)
    tokens_btk = batch.tokens.view(batch.tokens.shape[0], -1, k)
    states = model.student.text_states(tokens_btk)
    hidden_bth = model.hidden(tokens_btk, states)
    num_samples = energy_samples if weights.energy else 1
    latents_sbtd = model.student.head(hidden_bth, num_samples, noise)
    zero = hidden_bth.new_zeros((), dtype=torch.float32)
    terms, mse, energy = _TokenTerms(zero, zero, zero, zero, zero, None, None), zero, zero
    if weights.ce or any(weights.of_rows.values()):
        layer = model.output(tokens_btk, hidden_bth, latents_sbtd[0], states)
        terms = _token_terms(layer, batch, weights, counts, model.logit_passes)
    if weights.mse or weights.energy:
        chunk_valid = batch.chunks(k)
        with torch.no_grad():
            posterior = model.autoencoder.encode(tokens_btk)
        mse = latent_mse(latents_sbtd[0], posterior.mean, chunk_valid, counts.chunks)
        if weights.energy:
            flat = Posterior(posterior.mean.flatten(0, 1), posterior.log_std.flatten(0, 1))
            per_chunk = energy_loss(latents_sbtd.flatten(1, 2), flat, energy_draws, noise)
            energy = masked_mean(per_chunk, chunk_valid.flatten(), counts.chunks)
    total = terms.total + weights.mse * mse + weights.energy * energy
    return _student_loss(terms._replace(total=total), mse, energy, batch)


def token_level_loss(
    model: TokenLevelModel, batch: StudentBatch, weights: ObjectiveWeights, counts: LossCounts | None = None
) -> StudentLoss:
    """The same objective for a token-level student, which has no latent: the terms of its tokens alone.

    Raises:
        ValueError: the weights want a term that the model or the batch cannot give.
    """
    if weights.mse or weights.energy:
        raise ValueError(
            f"mse weight {weights.mse} and energy weight {weights.energy}, but a token-level student has no latent; "
            "set both to 0"
        )
    counts = counts or LossCounts.of(batch, 1)
    terms = _token_terms(model.output(batch.tokens), batch, weights, counts, model.logit_passes)
    zero = terms.ce.new_zeros(())
    return _student_loss(terms, zero, zero, batch)


class _TokenTerms(NamedTuple):
    """The weighted sum of the terms of all of a batch's tokens, those terms, and their values by token."""

    total: Tensor
    ce: Tensor
    kd: Tensor
    tv: Tensor
    reverse_kl: Tensor
    by_token: BucketLosses | None
    agrees: Tensor | None


def _student_loss(terms: _TokenTerms, mse: Tensor, energy: Tensor, batch: StudentBatch) -> StudentLoss:
    return StudentLoss(**terms._asdict(), mse=mse, energy=energy, tokens=batch.valid.sum())


def _token_terms(
    layer: OutputLayer, batch: StudentBatch, weights: ObjectiveWeights, counts: LossCounts, passes: LogitPasses
) -> _TokenTerms:
    if batch.kd is None:
        for name, weight in weights.of_rows.items():
            if weight:
                raise ValueError(
                    f"{name} weight {weight}, but the batch has no teacher rows; set the weight to 0 or score the batch"
                )
    buckets, has_row = _buckets(batch, len(layer.bias))
    # Weights that are shares make one weighted sum over tokens of means over different tokens.
    valid = batch.valid.flatten()
    ce_share, row_share = _share(valid, counts.tokens), _share(valid & has_row, counts.rows)
    tv, reverse_kl = (w * row_share if w else None for w in (weights.tv, weights.reverse_kl))
    of_tokens = TokenWeights(weights.ce * ce_share, weights.kd * row_share, tv, reverse_kl)
    losses = token_losses(layer, buckets, of_tokens, passes, valid)
    each = losses.each
    ce = (ce_share * each.ce).sum()
    kd, tv_mean, reverse_kl_mean = ((row_share * x).sum() for x in (each.kd, each.tv, each.reverse_kl))
    return _TokenTerms(losses.total, ce, kd, tv_mean, reverse_kl_mean, each, losses.agrees)


def _buckets(batch: StudentBatch, vocab_size: int) -> tuple[Buckets, Tensor]:
    """The batch's rows as buckets, [b·L, ...], and which of them there are, bool [b·L]."""
    realised = batch.tokens.flatten()
    if batch.kd is None:
        return text_buckets(realised), torch.zeros_like(realised, dtype=torch.bool)
    rows = batch.kd.flatten()
    return make_buckets(rows, realised, vocab_size), rows.has_row


def _share(mask: Tensor, count: Tensor) -> Tensor:
    """Weights [n] that make a sum over True positions their share of a mean over ``count``."""
    return mask.float() / count.clamp(min=1)
