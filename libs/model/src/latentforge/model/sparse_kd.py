"""KL from a teacher's sparse rows to the student, with a bucket for everything that a row leaves out.

A row holds the teacher's k likeliest tokens, the realised token and the mass of all others. With a bucket for each of
these tokens and one for all others, teacher t and student s are proper distributions, and

    KL(t ‖ s) = Σ_b t_b · (log t_b - log s_b)

is never negative and a lower bound of the KL over the whole vocabulary: merging tokens into a bucket can only lose
divergence (the log sum inequality). Renormalising over the k tokens instead would leave the student's tail unpunished:
Sparse Logit Sampling, arXiv 2503.16870, measures what that costs.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for a logit of minus infinity: exp() of it is 0, and no difference of two such is a NaN.
NEVER = -1e30


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


def sparse_kd(logits: Tensor, rows: KdTargets, realised_ids: Tensor) -> Tensor:
    """KL(teacher ‖ student) over the buckets at temperature 1, nats, float32 [n].

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
    return bucket_losses(buckets, kept_logits, tail_lse)[1]


def bucket_losses(buckets: Buckets, kept_logits: Tensor, tail_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, KL and the student's normaliser (logsumexp of all logits), float32 [n] each.

    With the logits split into kept ones ℓ and the tail's logsumexp λ, lse = log(Σ exp ℓ + exp λ), the cross-entropy is
    lse - ℓ_realised, and a bucket's log probability ℓ - lse or λ - lse.

    Args:
        buckets: of the teacher.
        kept_logits: the student's logits of ``kept_ids``, float32 [n, k+1].
        tail_lse: logsumexp of the student's other logits, float32 [n].
    """
    lse = torch.logaddexp(kept_logits.masked_fill(~buckets.kept, NEVER).logsumexp(1), tail_lse)
    student_log = torch.cat([kept_logits, tail_lse[:, None]], 1) - lse[:, None]
    teacher = buckets.teacher
    # xlogy: an empty bucket gives 0 · log 0 = 0.
    kd = (torch.xlogy(teacher, teacher) - teacher * student_log).sum(1)
    return lse - kept_logits[:, -1], kd, lse
