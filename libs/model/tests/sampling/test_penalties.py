"""Biases and penalties against a plain reference, over whole texts."""

from typing import Any

import numpy as np
import pytest
import torch

from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling
from latentforge.model.sampling.penalties import Adjustments
from tests.slow_sampling import penalised

V = 23
SETTINGS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.4},
    {"presence_penalty": 1.5},
    {"presence_penalty": -1.5},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -0.7},
    {"logit_bias": {2: 3, 5: -100}},
    {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "logit_bias": {0: 1, 22: -2}},
]


@pytest.mark.parametrize("num_draws", [1, 7, 200])
def test_they_are_what_the_reference_says_after_every_token(num_draws: int) -> None:
    """With every setting in one batch; 200 tokens are more than there was room for at first."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(V, size=rng.integers(1, 6)).tolist() for _ in SETTINGS]
    params = [SamplingParams(**setting) for setting in SETTINGS]
    texts = [TextSampling(p, prompt, V) for p, prompt in zip(params, prompts, strict=True)]
    adjustments = Adjustments(texts)
    written: list[list[int]] = [[] for _ in texts]
    for _ in range(num_draws):
        logits = torch.from_numpy(rng.normal(0, 3, (len(texts), V))).float()
        logits[:, 4] = -torch.inf
        wanted = [penalised(*row) for row in zip(logits.tolist(), params, prompts, written, strict=True)]
        assert adjustments.apply(logits).numpy() == pytest.approx(np.stack(wanted), abs=1e-3)
        ids = rng.integers(V, size=len(texts)).tolist()
        adjustments.note(torch.tensor(ids))
        for row, token in zip(written, ids, strict=True):
            row.append(token)
    kept = [row if p.is_penalised else [] for row, p in zip(written, params, strict=True)]
    assert [text.written.tolist() for text in texts] == kept


def test_rows_without_them_keep_their_logits_bit_for_bit() -> None:
    texts = [TextSampling(SamplingParams(**setting), [1, 2], V) for setting in SETTINGS]
    adjustments = Adjustments(texts)
    logits = torch.randn(len(texts), V)
    adjustments.note(torch.arange(len(texts)))
    assert adjustments.apply(logits)[0].equal(logits[0])


@pytest.mark.parametrize("others", [{}, {"top_p": 0.5}, {"top_k": 2}, {"temperature": 0}])
def test_biases_of_100_force_and_ban(others: dict[str, Any]) -> None:
    logits = torch.randn(1, 50)
    likeliest = int(logits.argmax())

    def draws(bias: dict[int, float]) -> set[int]:
        sampler = BatchSampler([TextSampling(SamplingParams(logit_bias=bias, seed=1, **others), [], 50)])
        return {int(sampler.draw(logits)) for _ in range(100)}

    assert likeliest in draws({})
    assert draws({17: 100}) == {17}
    assert likeliest not in draws({likeliest: -100})


def test_a_bias_does_not_unmask() -> None:
    logits = torch.zeros(1, 50).index_fill_(1, torch.tensor([17]), -torch.inf)
    sampler = BatchSampler([TextSampling(SamplingParams(logit_bias={17: 100}, seed=1), [], 50)])
    assert 17 not in {int(sampler.draw(logits)) for _ in range(100)}


def test_the_least_repetition_penalty_and_temperature_stay_finite() -> None:
    params = SamplingParams(repetition_penalty=1e-40, temperature=1e-5, seed=1)
    sampler = BatchSampler([TextSampling(params, [3], 50)])
    logits = torch.zeros(1, 50).index_fill_(1, torch.tensor([3]), 5)
    assert sampler.draw(logits).tolist() == [3]
    assert sampler.take_finite().all()


def test_a_text_is_not_told_of_its_neighbours_tokens() -> None:
    params = SamplingParams(temperature=0, presence_penalty=2)
    sampler = BatchSampler([TextSampling(params, [], 4), TextSampling(params, [], 4)])
    logits = torch.tensor([[3.0, 2.5, 2.0, 0.0], [0.0, 2.0, 2.5, 3.0]])
    assert [sampler.draw(logits).tolist() for _ in range(4)] == [[0, 3], [1, 2], [2, 1], [0, 3]]
