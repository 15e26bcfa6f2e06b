"""Divergences between a teacher's sparse rows and the student, with a bucket for everything that a row leaves out.

A row holds the teacher's k likeliest tokens, the realised token and the mass of all others. With a bucket for each of
these tokens and one for all others, teacher t and student s are proper distributions, and

    forward KL(t ‖ s) = Σ_b t_b · (log t_b - log s_b)
    reverse KL(s ‖ t) = Σ_b s_b · (log s_b - log t_b)
    TV(t, s)          = ½ Σ_b |t_b - s_b| = Σ_b max(t_b - s_b, 0) = 1 - Σ_b min(t_b, s_b)

are lower bounds of the same over the whole vocabulary: merging tokens into a bucket can only lose divergence (the
data-processing inequality). They are exact where the tail is a single token, where the teacher has no mass in it (TV,
forward KL) or the student has none (TV, reverse KL). Renormalising over the k tokens instead would leave the student's
tail unpunished: Sparse Logit Sampling, arXiv 2503.16870, measures what that costs.

1 - TV over the vocabulary is the probability that the teacher accepts the student's draft of a token in speculative
sampling (Leviathan et al., arXiv 2211.17192, corollary 3.6), so 1 - TV over buckets bounds it from above; from below
does the overlap Σ min(t_b, s_b) of the kept tokens alone, as if teacher and student shared nothing in the tail.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for a logit of minus infinity: exp() of it is 0, and no difference of two such is a NaN.
NEVER = -1e30
_TAIL_FLOOR = 1e-7


@dataclass(frozen=True)
class KdTargets:
    """The teacher's sparse rows for tokens of any shape, here [...]; each is its distribution for that very token.

    Attributes:
        ids: the likeliest tokens, all different within a row, int64 [..., k].
        logprobs: their log probabilities, float32 [..., k].
        counts: how many entries of a row hold, int64 [...]; what stands behind them is ignored.
        realised_logprobs: the teacher's log probabilities of the tokens of the text, float32 [...].
        tail_mass: the teacher's mass outside the held entries, float32 [...].
        has_row: whether there is a row, bool [...]; where there is none, the other fields are ignored.
    """

    ids: Tensor
    logprobs: Tensor
    counts: Tensor
    realised_logprobs: Tensor
    tail_mass: Tensor
    has_row: Tensor

    def select(self, index: Any) -> "KdTargets":
        """Those of some of the tokens; ``index`` as for a tensor of the tokens' shape."""
        return KdTargets(**{name: value[index] for name, value in vars(self).items()})

    def flatten(self) -> "KdTargets":
        """Those of tokens [b, L] as of [b·L]."""
        return KdTargets(**{name: value.flatten(0, 1) for name, value in vars(self).items()})


class Buckets(NamedTuple):
    """A teacher's row as a distribution over k+2 buckets: k top tokens, the realised token, all other tokens.

    Attributes:
        kept_ids: int64 [n, k+1]; the last one is the realised token, and so are entries that do not hold.
        kept: bool [n, k+1]; True for buckets in use, each of a token of its own. The realised token's bucket is in use
            where it is not among the top ones.
        teacher: float32 [n, k+2]; the teacher's mass in each bucket, the tail last. Sums to 1.
    """

    kept_ids: Tensor
    kept: Tensor
    teacher: Tensor


def make_buckets(rows: KdTargets, realised_ids: Tensor, vocab_size: int) -> Buckets:
    """Sorts the rows of n tokens into buckets; where there is no row, the realised token has all of the mass.

    Args:
        rows: of n tokens.
        realised_ids: the tokens of the text, int64 [n].
        vocab_size: V; where every id is kept, there is no tail.
    """
    has_row = rows.has_row
    counts = torch.where(has_row, rows.counts, 0)
    held = torch.arange(rows.ids.shape[1], device=rows.ids.device) < counts[:, None]
    realised_apart = ~((rows.ids == realised_ids[:, None]) & held).any(1)
    kept_ids = torch.cat([torch.where(held, rows.ids, realised_ids[:, None]), realised_ids[:, None]], 1)
    kept = torch.cat([held, realised_apart[:, None]], 1)
    realised_logprobs = torch.where(has_row, rows.realised_logprobs, 0).float()
    kept_mass = torch.cat([rows.logprobs.float(), realised_logprobs[:, None]], 1).masked_fill(~kept, NEVER).exp()
    # A row's tail is what its k entries leave: the realised token's mass, if that stands apart, is part of it.
    tail_mass = torch.where(has_row, rows.tail_mass, 0).float()
    tail = (tail_mass - torch.where(realised_apart, kept_mass[:, -1], 0)).clamp(min=0)
    tail = torch.where(kept.sum(1) < vocab_size, tail, 0)
    # Rounding on the wire leaves the sum near 1; a KL wants it at 1.
    teacher = torch.cat([kept_mass, tail[:, None]], 1)
    return Buckets(kept_ids, kept, teacher / teacher.sum(1, keepdim=True).clamp(min=1e-30))


def text_buckets(realised_ids: Tensor) -> Buckets:
    """Those of a text that no teacher has seen, int64 [n]: the realised tokens alone, for cross-entropy."""
    kept_ids = realised_ids[:, None]
    kept = torch.ones_like(kept_ids, dtype=torch.bool)
    return Buckets(kept_ids, kept, F.pad(kept.float(), (0, 1)))


class BucketLosses(NamedTuple):
    """Of n tokens, float32 [n] each.

    Attributes:
        ce: cross-entropy, nats.
        kd: KL(teacher ‖ student), nats.
        tv: total variation, 0 to 1.
        reverse_kl: KL(student ‖ teacher), nats.
        overlap: Σ min(t_b, s_b) over the kept tokens, the lower bound of the acceptance; 1 - tv is the upper one.
    """

    ce: Tensor
    kd: Tensor
    tv: Tensor
    reverse_kl: Tensor
    overlap: Tensor


class StudentBuckets(NamedTuple):
    """The student's distribution over a teacher's buckets.

    Attributes:
        log_mass: log of its mass in each, the tail last, float32 [n, k+2]; of a bucket not in use it means nothing.
        mass: 0 for a bucket not in use, float32 [n, k+2].
        lse: logsumexp of all logits, float32 [n].
    """

    log_mass: Tensor
    mass: Tensor
    lse: Tensor


def sparse_losses(logits: Tensor, rows: KdTargets, realised_ids: Tensor) -> BucketLosses:
    """Losses over the buckets at temperature 1; differentiable.

    The student's tail is summed from its own logits, not taken as 1 - Σ kept: nothing cancels, however small it is.

    Args:
        logits: the student's, float [n, V].
        rows: the teacher's, of the same n tokens.
        realised_ids: the tokens of the text, int64 [n].
    """
    buckets = make_buckets(rows, realised_ids, logits.shape[1])
    logits = logits.float()
    kept_logits = logits.gather(1, buckets.kept_ids)
    tail_lse = logits.scatter(1, buckets.kept_ids, NEVER).logsumexp(1)
    return bucket_losses(buckets, student_buckets(buckets, kept_logits, tail_lse))


def student_buckets(buckets: Buckets, kept_logits: Tensor, tail_lse: Tensor) -> StudentBuckets:
    """The student's side: with kept logits ℓ and the tail's logsumexp λ, lse = log(Σ exp ℓ + exp λ).

    A bucket's log probability is ℓ - lse or λ - lse.

    Args:
        buckets: of the teacher.
        kept_logits: the student's logits of ``kept_ids``, float32 [n, k+1].
        tail_lse: logsumexp of the student's other logits, float32 [n].
    """
    lse = torch.logaddexp(kept_logits.masked_fill(~buckets.kept, NEVER).logsumexp(1), tail_lse)
    log_mass = torch.cat([kept_logits, tail_lse[:, None]], 1) - lse[:, None]
    return StudentBuckets(log_mass, log_mass.masked_fill(F.pad(~buckets.kept, (0, 1)), NEVER).exp(), lse)


def bucket_losses(buckets: Buckets, student: StudentBuckets) -> BucketLosses:
    """Losses of n tokens from both sides' masses; the realised token is the last kept one."""
    teacher = buckets.teacher
    # xlogy: an empty bucket gives 0 · log 0 = 0.
    kd = (torch.xlogy(teacher, teacher) - teacher * student.log_mass).sum(1)
    reverse_kl = (student.mass * (student.log_mass - teacher_log_mass(teacher))).sum(1)
    tv = (teacher - student.mass).clamp(min=0).sum(1)
    overlap = torch.minimum(teacher, student.mass)[:, :-1].sum(1)
    return BucketLosses(-student.log_mass[:, -2], kd, tv, reverse_kl, overlap)


def teacher_log_mass(teacher: Tensor) -> Tensor:
    """Log of the teacher's mass in each bucket [n, k+2], finite where that is 0, so that a reverse KL is.

    A tail is 1 - Σp in float32: below 1e-7 it cannot be told from 0, and stands for 1e-7. A smaller kept mass is known
    from its own log probability, down to the least number of float32. A floor can only lower the reverse KL.
    """
    floor = torch.full_like(teacher[:1], torch.finfo(torch.float32).tiny)
    floor[:, -1] = _TAIL_FLOOR
    return torch.maximum(teacher, floor).log()


def divergence_factors(
    buckets: Buckets, student: StudentBuckets, losses: BucketLosses, tv_weights: Tensor, reverse_kl_weights: Tensor
) -> Tensor:
    """f [n, k+2] such that the gradient of w·TV + r·reverse KL to the logit of an id v of bucket b is p_v·f_b.

    The student's mass s_b = Σ_{v ∈ b} p_v has ∂s_b/∂ℓ_v = p_v·(1{v ∈ b} - s_b), so a loss g(s) has
    ∂g/∂ℓ_v = p_v·(g'_b - Σ_c s_c·g'_c) with g' its derivatives to the masses: -1{s_b < t_b} of TV, and
    log s_b - log t_b + 1 of the reverse KL, of which Σ_c s_c·g'_c is the reverse KL itself + 1.
    """
    below = (student.mass < buckets.teacher).float()
    tv = (below * student.mass).sum(1, keepdim=True) - below
    reverse_kl = student.log_mass - teacher_log_mass(buckets.teacher) - losses.reverse_kl[:, None]
    return tv_weights[:, None] * tv + reverse_kl_weights[:, None] * reverse_kl
