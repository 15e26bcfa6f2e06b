"""Drawing on a GPU: as the reference says, as alone, and without waiting for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling
from tests.slow_sampling import chi_square, probabilities

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PROMPT = [3, 5]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"top_k": 5},
    {"min_p": 0.1},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
    {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {7: 2}},
]
NUM_TOKENS = 100


def sampler_of(settings: list[dict[str, Any]], vocab_size: int, first_seed: int = 0) -> BatchSampler:
    return BatchSampler(
        [
            TextSampling(SamplingParams(**setting, seed=first_seed + i), PROMPT, vocab_size, "cuda")
            for i, setting in enumerate(settings)
        ]
    )


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("vocab_size", [40, 6000])
def test_tokens_are_drawn_in_proportion_without_waiting(vocab_size: int) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(1)) * 2
    sampler = sampler_of(SETTINGS * 400, vocab_size)
    rows = logits.cuda().expand(len(sampler.texts), -1)
    torch.cuda.synchronize()
    with no_waiting():
        drawn = sampler.draw(rows)
    assert sampler.take_finite().all()
    for i, setting in enumerate(SETTINGS):
        p = probabilities(logits.tolist(), SamplingParams(**setting), PROMPT)
        assert chi_square(drawn[i :: len(SETTINGS)].tolist(), p) > 1e-3


def test_a_text_gets_what_it_gets_alone_for_more_tokens_than_numbers_are_moved_at_once() -> None:
    logits = torch.randn(NUM_TOKENS, len(SETTINGS), 6000, generator=torch.Generator().manual_seed(2)).cuda() * 2
    together = sampler_of(SETTINGS, 6000)
    with no_waiting():
        drawn = torch.stack([together.draw(x) for x in logits])
    for i, setting in enumerate(SETTINGS):
        alone = sampler_of([setting], 6000, first_seed=i)
        assert [int(alone.draw(x[i : i + 1])) for x in logits] == drawn[:, i].tolist()
