"""KL from a teacher's sparse rows to the student, with a bucket for everything that a row leaves out."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Stands for a logit of minus infinity: exp() of it is 0, and no difference of two such is a NaN.
NEVER = -1e30


class Buckets(NamedTuple):
    """A teacher's row as a distribution over k+2 buckets: k top tokens, the realised token, all other tokens.

    Attributes:
        kept_ids: int64 [n, k+1]; the last one is the realised token, and so are entries that do not hold.
        kept: bool [n, k+1]; True for buckets in use, each of a token of its own. The realised token's bucket is in use
            where it is not among the top ones.
        teacher: float32 [n, k+2]; the teacher's mass in each bucket, the tail last. Sums to 1, or is all 0.
    """

    kept_ids: Tensor
    kept: Tensor
    teacher: Tensor


def make_buckets(
    ids: Tensor,
    logprobs: Tensor,
    counts: Tensor,
    realised_ids: Tensor,
    realised_logprobs: Tensor,
    tail_mass: Tensor,
    vocab_size: int,
) -> Buckets:
    """Sorts rows into buckets; arguments as in :func:`sparse_kd`."""
    held = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
    realised_apart = ~((ids == realised_ids[:, None]) & held).any(1)
    kept_ids = torch.cat([torch.where(held, ids, realised_ids[:, None]), realised_ids[:, None]], 1)
    kept = torch.cat([held, realised_apart[:, None]], 1)
    kept_mass = torch.cat([logprobs.float(), realised_logprobs.float()[:, None]], 1).masked_fill(~kept, NEVER).exp()
    tail = (tail_mass.float() - torch.where(realised_apart, kept_mass[:, -1], 0)).clamp(min=0)
    tail = torch.where(kept.sum(1) < vocab_size, tail, 0)
    # Rounding on the wire leaves the sum near 1; a KL wants it at 1.
    teacher = torch.cat([kept_mass, tail[:, None]], 1)
    return Buckets(kept_ids, kept, teacher / teacher.sum(1, keepdim=True).clamp(min=1e-30))


def text_buckets(realised_ids: Tensor) -> Buckets:
    """Those of a text that no teacher has seen, int64 [n]: the realised tokens alone, for cross-entropy."""
    kept_ids = realised_ids[:, None]
    kept = torch.ones_like(kept_ids, dtype=torch.bool)
    return Buckets(kept_ids, kept, F.pad(kept.float(), (0, 1)))


def sparse_kd(
    logits: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    counts: Tensor,
    realised_ids: Tensor,
    realised_logprobs: Tensor,
    tail_mass: Tensor,
) -> Tensor:
    """KL(teacher ‖ student) over k+1 buckets at temperature 1, nats, float32 [n].

    The buckets are the teacher's top-k tokens, the realised token where it is not among them, and all other tokens
    together. With that last one it is a true KL: never negative, and a lower bound of the KL over the whole vocabulary.
    The student's tail is summed from its own logits, not taken as 1 - Σ kept: nothing cancels, however small it is.

    Args:
        logits: the student's, float [n, V].
        ids: the teacher's likeliest tokens, int64 [n, k]; all different within a row.
        logprobs: their log probabilities, float32 [n, k].
        counts: how many entries of a row hold, int64 [n]; what stands behind them is ignored.
        realised_ids: the tokens of the text, int64 [n].
        realised_logprobs: the teacher's log probabilities of them, float32 [n].
        tail_mass: the teacher's mass outside the top ``counts``, float32 [n].
    """
    buckets = make_buckets(ids, logprobs, counts, realised_ids, realised_logprobs, tail_mass, logits.shape[1])
    logits = logits.float()
    kept_logits = logits.gather(1, buckets.kept_ids)
    tail_lse = logits.scatter(1, buckets.kept_ids, NEVER).logsumexp(1)
    return bucket_losses(buckets, kept_logits, tail_lse)[1]


def bucket_losses(buckets: Buckets, kept_logits: Tensor, tail_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy [n], KL [n] and the student's normaliser [n].

    Args:
        buckets: of the teacher.
        kept_logits: the student's logits of ``kept_ids``, float32 [n, k+1].
        tail_lse: logsumexp of the student's other logits, float32 [n].
    """
    lse = torch.logaddexp(kept_logits.masked_fill(~buckets.kept, NEVER).logsumexp(1), tail_lse)
    student_log = torch.cat([kept_logits, tail_lse[:, None]], 1) - lse[:, None]
    teacher = buckets.teacher
    kd = (torch.xlogy(teacher, teacher) - teacher * student_log).sum(1)
    return lse - kept_logits[:, -1], kd, lse
