"""Expected calibration error (Guo et al., arXiv 1706.04599)."""

import torch
from torch import Tensor


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """``Σ_b n_b/n · |accuracy_b - mean confidence_b|``, from 0 (calibrated) to 1.

    Bins have equal width and hold their upper edge, ``(b/bins, (b+1)/bins]``; a confidence of 0 is in the first. With
    few values it is biased upwards by sampling noise, about ``½·√(bins/n)`` at most: compare at equal n.

    Args:
        confidence: float [n], the probability of the most likely token.
        correct: bool [n], whether that token is the text's.
        bins: how many.

    Raises:
        ValueError: no values, or a confidence that is not in [0, 1].
    """
    assert confidence.shape == correct.shape == (len(confidence),), (confidence.shape, correct.shape)
    assert correct.dtype == torch.bool, correct.dtype
    if not len(confidence):
        raise ValueError("confidence is empty; calibration wants at least one token")
    confidence = confidence.double()
    # Written so that NaN is refused too.
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("confidence must be in [0, 1]; give probabilities, not logits or log probabilities")
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gaps.index_add_(0, torch.bucketize(confidence, inner_edges), correct.double() - confidence)
    return gaps.abs().sum().item() / len(confidence)
