"""How many of a student's drafted tokens its teacher would accept, without drawing any.

In speculative sampling (Leviathan et al., arXiv 2211.17192) a student q drafts x_1 … x_K, and the teacher p accepts x_i
with probability min(1, p(x_i)/q(x_i)), given those before it, until the first that it rejects. Behind a prefix x_<i the
probability is a_i = Σ_x min(p(x), q(x)) = 1 - TV, and over all prefixes the expected number of accepted tokens is

    E[accepted] = Σ_i P(x_1 … x_i accepted) = Σ_i Σ_{x_<i} Π_{j<i} min(p(x_j), q(x_j)) · a_i(x_<i)

The sum over prefixes is a mean under whoever wrote them, once each is weighted by min(p, q) over that writer's own
probability:

    over drafts,  x ~ q:  E[accepted] = E[Σ_i Π_{j≤i} min(1, p(x_j)/q(x_j))]           :func:`accepted_of_drafts`
    over text,    x ~ p:  E[accepted] = E[Σ_i a_i · Π_{j<i} min(1, q(x_j)/p(x_j))]     :func:`token_acceptance`

Both are without bias; neither is the product of mean acceptances, since a token that was accepted tells of an easy
place. The second needs no drafts, so every validation has it; it has a bias where the text is not the teacher's but
people's. All is at temperature 1, and without the token that the teacher adds behind the last accepted one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenAcceptance(NamedTuple):
    """Bounds for each token of texts; NaN where there is no row.

    The teacher's row leaves out a tail, in which it and the student may share anything between nothing and the smaller
    of both masses.

    Attributes:
        low, high: of the probability that a draft of this token is accepted behind the text before it.
        accepted_low, accepted_high: of the probability that a draft of the chunk is accepted up to this token, in
            expectation over a teacher's text: their sum over a chunk is how many tokens are. NaN where a chunk has not
            all of its rows.
    """

    low: Tensor
    high: Tensor
    accepted_low: Tensor
    accepted_high: Tensor


def token_acceptance(
    overlap: Tensor, tv: Tensor, student_logprobs: Tensor, teacher_logprobs: Tensor, known: Tensor, chunk_size: int
) -> TokenAcceptance:
    """Acceptance of drafts along texts, float [b, L] each.

    Args:
        overlap, tv: of ``sparse_kd.BucketLosses``, [b, L].
        student_logprobs, teacher_logprobs: of the text's tokens, [b, L].
        known: which tokens have a row, bool [b, L].
        chunk_size: K, of which L is a multiple.
    """
    nan = torch.nan
    low, high = (torch.where(known, x, nan).unflatten(-1, (-1, chunk_size)) for x in (overlap, 1 - tv))
    ratio = torch.where(known, student_logprobs - teacher_logprobs, nan).clamp(max=0)
    # Of the tokens before each one in its chunk; a product over the last is of no use.
    before = F.pad(ratio.unflatten(-1, (-1, chunk_size))[..., :-1], (1, 0)).cumsum(-1).exp()
    whole = known.unflatten(-1, (-1, chunk_size)).all(-1, keepdim=True)
    accepted_low, accepted_high = (torch.where(whole, x * before, nan) for x in (low, high))
    return TokenAcceptance(*(x.flatten(-2) for x in (low, high, accepted_low, accepted_high)))


def accepted_of_drafts(teacher_logprobs: Tensor, draft_logprobs: Tensor) -> Tensor:
    """Probability that drafts are accepted up to each of their tokens, [..., n]; its sum is how many tokens are.

    Args:
        teacher_logprobs: of the drafted tokens, each behind those before it, float [..., n].
        draft_logprobs: with which they were drawn, [..., n].
    """
    return (teacher_logprobs - draft_logprobs).clamp(max=0).cumsum(-1).exp()
