"""Sampling written plainly: sort, cut, renormalise. What the fast one is checked against."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from latentforge.model.sampling import LEAST_TEMPERATURE, SamplingParams

Floats = npt.NDArray[np.float64]


def penalised(logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], written: Sequence[int]) -> Floats:
    """Logits with biases and penalties."""
    out = np.array(logits, dtype=np.float64)
    for token, bias in params.logit_bias.items():
        out[token] += bias
    for token in {*prompt, *written}:
        if out[token] > 0:
            out[token] /= params.repetition_penalty
        else:
            out[token] *= params.repetition_penalty
    for token in set(written):
        out[token] -= params.presence_penalty
    for token in written:
        out[token] -= params.frequency_penalty
    return out


def probabilities(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int] = (), written: Sequence[int] = ()
) -> Floats:
    """Each token's probability of being drawn."""
    scores = penalised(logits, params, prompt, written)
    if params.temperature < LEAST_TEMPERATURE:
        likeliest: Floats = np.eye(len(scores))[scores.argmax()]
        return likeliest
    scores = scores / params.temperature
    p = np.exp(scores - scores.max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda token: (-p[token], token))
    if params.top_k:
        p[order[params.top_k :]] = 0
        p /= p.sum()
    if params.top_p < 1:
        mass_before = 0.0
        whole = p.copy()
        for token in order:
            if mass_before >= params.top_p:
                p[token] = 0
            mass_before += whole[token]
        p /= p.sum()
    p[p < params.min_p * p.max()] = 0
    return p / p.sum()  # type: ignore[no-any-return]


def chi_square(ids: Sequence[int], p: Floats) -> float:
    """The chance of counts as uneven as these, or more so, were the ids drawn from p; 0 where p has none of them.

    Tokens that are expected fewer than 5 times are counted as one.
    """
    counts = np.bincount(ids, minlength=len(p))
    if counts[p == 0].any():
        return 0.0
    expected = p * len(ids)
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    if len(expected) == 1:
        return 1.0
    statistic = float(((counts - expected) ** 2 / expected).sum())
    half = torch.tensor([(len(expected) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
