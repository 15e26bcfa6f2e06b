"""Texts that are written, and their slots."""

from dataclasses import dataclass

import torch

from latentforge.model.decoding.batch import OpenText
from latentforge.model.sampling import SamplingParams

# Whoever draws tokens with the same seed must not draw the same numbers as the noise.
_NOISE_SEED = 0x9E3779B97F4A7C15


@dataclass(eq=False)
class SlotText(OpenText):
    """A text with its slot.

    Attributes:
        slot: where its memory is; others' closing may move it.
        ids: of whole chunks, pads on the left of the first.
        num_read: tokens of it that are in memory.
        params: how its tokens are drawn.
        logprobs: None for none; else so many of the likeliest ids are wanted beside each token's own.
        generator: draws its tokens.
        noise: draws an energy head's noise for it.
    """

    slot: int
    ids: list[int]
    params: SamplingParams
    logprobs: int | None
    generator: torch.Generator
    noise: torch.Generator
    num_read: int = 0


def noise_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A generator for an energy head's noise; None draws a seed."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed ^ _NOISE_SEED) % 2**63)
    return generator
