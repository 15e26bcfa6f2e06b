"""Log probabilities as callers see them: before biases, penalties, temperature and truncation."""

from torch import Tensor

from latentforge.model.sampling.likeliest import likeliest


def logprobs_of(logits: Tensor, ids: Tensor, num_likeliest: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Those of given ids, and the likeliest ids with theirs.

    Args:
        logits: float [b, V]; -inf where there is no token.
        ids: int64 [b].
        num_likeliest: as many of the likeliest as are wanted.

    Returns:
        float32 [b], int64 [b, num_likeliest], float32 [b, num_likeliest]; most likely first, of equally likely ones
        lower ids first.
    """
    logits = logits.float()
    whole = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(1, ids[:, None]) - whole
    if not num_likeliest:
        empty = ids.new_empty(len(ids), 0)
        return own[:, 0], empty, empty.float()
    values, top_ids = likeliest(logits, min(num_likeliest, logits.shape[-1]))
    return own[:, 0], top_ids, values - whole
