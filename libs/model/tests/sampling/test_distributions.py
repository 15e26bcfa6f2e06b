"""What is drawn for each setting, with rows of every other setting beside it, is distributed as a plain reference."""

from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch

from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling
from tests.slow_sampling import chi_square, probabilities

PROMPT = [3, 5, 5, 8]
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "greedy": {"temperature": 0},
    "cold": {"temperature": 0.5},
    "hot": {"temperature": 3},
    "top_k 1": {"top_k": 1},
    "top_k 3": {"top_k": 3},
    "top_k of all": {"top_k": 10_000},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.5": {"top_p": 0.5},
    "top_p 0.02": {"top_p": 0.02},
    "min_p 0.02": {"min_p": 0.02},
    "min_p 0.4": {"min_p": 0.4},
    "min_p 1": {"min_p": 1},
    "bias": {"logit_bias": {0: 1.5, 2: -100, 7: 0.5}},
    "repetition": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "presence": {"presence_penalty": 1.2},
    "frequency": {"frequency_penalty": -0.7},
    "cold top_p": {"temperature": 0.8, "top_p": 0.95},
    "hot top_k": {"temperature": 2, "top_k": 7},
    "top_k top_p": {"top_k": 9, "top_p": 0.8},
    "top_k min_p": {"top_k": 9, "min_p": 0.1},
    "top_p min_p": {"top_p": 0.9, "min_p": 0.05},
    "min_p before top_p": {"top_p": 0.6, "min_p": 0.01},
    "all truncations": {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.08},
    "bias top_p": {"logit_bias": {1: 3, 4: 2}, "top_p": 0.7},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4},
    "all": {
        "temperature": 1.4,
        "top_k": 15,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.3,
        "logit_bias": {3: 2, 6: -3},
    },
}
FORCED = [8, 6]
NUM_DRAWS, ROWS = 2000, 10


def make_logits(vocab_size: int, spread: float = 2) -> torch.Tensor:
    logits = spread * torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    logits[[1, vocab_size // 2]] = -torch.inf
    # Ties, of which some are cut off.
    logits[[4, 9, 11]] = logits.max()
    logits[[12, 13, 14, 15, 16]] = 1.0
    return logits


@cache
def third_tokens(vocab_size: int, spread: float) -> dict[str, list[int]]:
    """Draws for every setting in the same batches, behind a prompt and two tokens that are forced."""
    logits = make_logits(vocab_size, spread)
    names = [*SETTINGS] * ROWS
    drawn: dict[str, list[int]] = {name: [] for name in SETTINGS}
    for first in range(0, NUM_DRAWS, ROWS):
        texts = [
            TextSampling(SamplingParams(**SETTINGS[name], seed=1000 * first + row), PROMPT, vocab_size)
            for row, name in enumerate(names)
        ]
        sampler = BatchSampler(texts)
        for token in FORCED:
            only = torch.full_like(logits, -torch.inf).index_fill_(0, torch.tensor(token), 0)
            assert set(sampler.draw(only.expand(len(names), -1)).tolist()) == {token}
        for name, token in zip(names, sampler.draw(logits.expand(len(names), -1)).tolist(), strict=True):
            drawn[name].append(token)
    return drawn


@pytest.mark.parametrize(("vocab_size", "spread"), [(24, 2), (1500, 2), (1500, 0.3)])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_drawn_in_proportion(name: str, vocab_size: int, spread: float) -> None:
    drawn = third_tokens(vocab_size, spread)[name]
    logits = make_logits(vocab_size, spread)
    assert chi_square(drawn, probabilities(logits.tolist(), SamplingParams(**SETTINGS[name]), PROMPT, FORCED)) > 1e-3


@pytest.mark.parametrize("name", ["default", "cold top_p", "top_p min_p", "hot top_k"])
def test_one_texts_tokens_are_independent_draws(name: str) -> None:
    """A text's own numbers, thousands of them, with what truncation refused in between."""
    params = SamplingParams(**SETTINGS[name], seed=3)
    logits = make_logits(40)
    sampler = BatchSampler([TextSampling(params, [], 40)])
    drawn = [int(sampler.draw(logits[None])) for _ in range(6000)]
    p = probabilities(logits.tolist(), params)
    assert chi_square(drawn, p) > 1e-3
    pairs = [40 * a + b for a, b in zip(islice(drawn, 0, None, 2), islice(drawn, 1, None, 2), strict=True)]
    assert chi_square(pairs, (p[:, None] * p).flatten()) > 1e-3


def test_chi_square_sees_a_small_difference() -> None:
    drawn, logits = third_tokens(24, 2)["default"], make_logits(24).tolist()
    assert chi_square(drawn, probabilities(logits, SamplingParams())) > 1e-3
    assert chi_square(drawn, probabilities(logits, SamplingParams(temperature=1.2))) < 1e-3
