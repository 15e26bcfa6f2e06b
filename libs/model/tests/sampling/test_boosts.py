"""What copy boosts come to at each temperature, beside a plain reference."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentforge.model.sampling import BatchSampler, SamplingParams, TextSampling
from tests.slow_sampling import chi_square, probabilities

V, COLUMNS, PROMPT = 24, 40, [3, 5, 5, 8]
TEMPERATURES = (0.3, 0.7, 1.0, 2.0, 0.0)
MORE: dict[str, dict[str, Any]] = {
    "whole": {},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 4, "min_p": 0.02},
    "penalties": {"repetition_penalty": 1.4, "logit_bias": {7: 2.0}},
}
NUM_DRAWS = 1500


def made() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [V] without boosts, and boosts [COLUMNS] of ids [COLUMNS], most of which stand there more than once."""
    rng = torch.Generator().manual_seed(4)
    base, ids = 2 * torch.randn(V, generator=rng), torch.randint(V, (COLUMNS,), generator=rng)
    base[1] = -torch.inf
    return base, ids, torch.rand(COLUMNS, generator=rng) - 0.2


def whole(base: Tensor, ids: Tensor, boosts: Tensor, share: float = 1.0) -> Tensor:
    """Logits with that share of every boost, one after another."""
    logits = base.clone()
    for token, boost in zip(ids.tolist(), boosts.tolist(), strict=True):
        logits[token] += share * boost
    return logits


@pytest.mark.parametrize("name", MORE)
def test_a_temperature_below_1_leaves_boosts_as_they_are(name: str) -> None:
    """Texts of all temperatures in one batch."""
    base, ids, boosts = made()
    settings = [SamplingParams(temperature=t, **MORE[name]) for t in TEMPERATURES]
    rows = [params for params in settings for _ in range(NUM_DRAWS)]
    texts = [TextSampling(params.model_copy(update={"seed": i}), PROMPT, V) for i, params in enumerate(rows)]
    logits, n = whole(base, ids, boosts).expand(len(texts), -1), len(texts)
    before = logits.clone()
    sampler = BatchSampler(texts)
    assert sampler.asks_for_boosts
    drawn = sampler.draw(logits, boosted=(ids.expand(n, -1), boosts.expand(n, -1))).view(len(settings), -1)
    assert logits.equal(before)
    for params, tokens in zip(settings, drawn.tolist(), strict=True):
        # Divided by the temperature, as all is, that share is the boost itself.
        share = params.temperature if 0 < params.temperature < 1 else 1.0
        wanted = probabilities(whole(base, ids, boosts, share).tolist(), params, PROMPT)
        assert chi_square(tokens, wanted) > 1e-3
        if name == "whole" and 0 < params.temperature < 1:
            plain = np.exp(base.double().numpy() / params.temperature + whole(0 * base, ids, boosts).double().numpy())
            assert np.allclose(np.nan_to_num(plain / np.nansum(plain)), wanted, atol=1e-6)


def test_texts_of_other_temperatures_keep_their_bits() -> None:
    base, ids, boosts = made()
    logits, boosted = whole(base, ids, boosts).expand(3, -1), (ids.expand(3, -1), boosts.expand(3, -1))
    params = [SamplingParams(temperature=t, seed=i) for i, t in enumerate((1.0, 0.5, 1.7))]
    beside, alone = (BatchSampler([TextSampling(p, [], V) for p in some]) for some in (params, params[::2]))
    assert not alone.asks_for_boosts
    assert beside._boosts.apply(logits, *boosted)[::2].equal(logits[::2])
    for _ in range(30):
        assert beside.draw(logits, boosted=boosted)[::2].equal(alone.draw(logits[::2]))
