from typing import Any

import pytest
import torch
from torch import Tensor

from latentforge.model.batch_generation import BatchGeneration
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate import brier
from latentforge.trainer.evaluate.brier import NUM_TARGETS, PrefixGroup, choose_prefixes, evaluate_brier, model_draw


def sequences(length: int = 64) -> list[Tensor]:
    """Token i of sequence s is 10 + (i + s) % 50."""
    return [10 + (torch.arange(length) + s) % 50 for s in range(5)]


def choose(**changes: Any) -> list[PrefixGroup]:
    arguments = {"num": 20, "chunk_size": 4, "prefix_tokens": 13, "eos_id": 0, "seed": 0} | changes
    return choose_prefixes(arguments.pop("sequences", sequences()), arguments.pop("num"), **arguments)


def test_every_phase_comes_equally_often_and_models_of_other_k_share_the_places() -> None:
    groups = choose()
    assert [g.prefixes.shape for g in groups] == [(3, 16 + i) for i in range(8)]
    for group in groups:
        # Each target is the text right behind its prefix.
        whole = torch.cat([group.prefixes, group.targets], 1)
        assert group.targets.shape == (3, NUM_TARGETS)
        assert ((whole[:, 1:] - whole[:, :-1]) % 50 == 1).all()
    for k in (1, 2, 8):
        for ours, theirs in zip(choose(chunk_size=k), groups, strict=True):
            assert ours.prefixes.equal(theirs.prefixes)
    assert len(choose(chunk_size=16, sequences=sequences(80))) == 16
    assert not choose(seed=1)[0].prefixes.equal(groups[0].prefixes)


def test_no_target_holds_an_end_of_text() -> None:
    texts = sequences()
    for text in texts:
        text[30] = 0
    assert not any((g.targets == 0).any() for g in choose(sequences=texts))


def test_too_short_sequences_are_refused() -> None:
    with pytest.raises(TrainerError, match="sequences of 30 tokens, but BrierLM reads prefixes of up to 23"):
        choose(sequences=sequences(30))


def test_a_model_that_knows_the_text_has_100_and_one_that_does_not_0() -> None:
    groups = choose()

    def knows(prefixes: Tensor, num_tokens: int, seed: int) -> Tensor:
        step = torch.arange(1, num_tokens + 1)
        return (10 + (prefixes[:, -1:] - 10 + step) % 50).expand(3, -1, -1)

    def wrong(prefixes: Tensor, num_tokens: int, seed: int) -> Tensor:
        return torch.full((3, len(prefixes), num_tokens), 99)

    score = evaluate_brier(knows, groups, chunk_size=4)
    assert score.value == pytest.approx(100)
    assert score.brier_8 == pytest.approx(1)
    assert evaluate_brier(wrong, groups, chunk_size=4).value == 0


@pytest.mark.parametrize("kind", ["latent", "token-level"])
def test_a_models_samples_differ_among_each_other_and_depend_on_the_seed(
    kind: str, make_latent: Any, token_level: Any
) -> None:
    model = make_latent() if kind == "latent" else token_level
    group = choose()[3]
    draw = model_draw(model, 4)
    drawn = draw(group.prefixes, 8, 5)
    assert drawn.shape == (4, 3, 8)
    assert draw(group.prefixes, 8, 5).equal(drawn)
    assert not draw(group.prefixes, 8, 6).equal(drawn)
    assert len({tuple(row.tolist()) for row in drawn[:, 0]}) == 4


def test_samples_are_laid_out_by_sample_and_prefix(token_level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are made at once."""
    seeds = []

    def echo(model: Any, prompts: Tensor, num_tokens: int, params: Any, *, stop_at_eos: bool) -> BatchGeneration:
        assert not stop_at_eos
        seeds.append(params.seed)
        return BatchGeneration(prompts[:, -1:].expand(-1, num_tokens), torch.full((len(prompts),), num_tokens), 1)

    monkeypatch.setattr(brier, "generate_batch", echo)
    monkeypatch.setattr(brier, "_ROWS_AT_ONCE", 4)
    drawn = model_draw(token_level, 5)(torch.tensor([[9, 10], [9, 20], [9, 30]]), 2, 7)
    assert drawn.equal(torch.tensor([10, 20, 30])[None, :, None].expand(5, 3, 2))
    assert len(set(seeds)) == 4
