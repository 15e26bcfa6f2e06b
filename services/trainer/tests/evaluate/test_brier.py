from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentforge.model.batch_generation import BatchGeneration
from latentforge.model.latent_model import LatentModel
from latentforge.trainer.errors import TrainerError
from latentforge.trainer.evaluate import brier
from latentforge.trainer.evaluate.brier import (
    NUM_TARGETS,
    PrefixGroup,
    Values,
    choose_prefixes,
    evaluate_brier,
    model_values,
)
from latentforge.trainer.evaluate.likelihood import Model

PAD = 1


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


def test_prefixes_begin_with_bos_where_sequences_do() -> None:
    for ours, without in zip(choose(bos_id=7), choose(), strict=True):
        assert (ours.prefixes[:, 0] == 7).all()
        assert ours.prefixes[:, 1:].equal(without.prefixes[:, 1:])
        assert ours.targets.equal(without.targets)


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

    def always(value: float) -> Values:
        return lambda group, seed: torch.full((len(group.prefixes), NUM_TARGETS), value, dtype=torch.float64)

    score = evaluate_brier(always(1.0), groups, chunk_size=4)
    assert score.value == pytest.approx(100)
    assert score.brier_8 == pytest.approx(1)
    assert evaluate_brier(always(-0.5), groups, chunk_size=4).value == 0


def test_phases_are_those_of_the_prefixes_and_seeds_differ() -> None:
    """A model that is only right where the n-gram starts a chunk of 4 has a quarter of everything."""
    seeds = []

    def values(group: PrefixGroup, seed: int) -> Tensor:
        seeds.append(seed)
        right = float(group.prefixes.shape[1] % 4 == 0)
        return torch.full((len(group.prefixes), NUM_TARGETS), right, dtype=torch.float64)

    score = evaluate_brier(values, choose(), chunk_size=4)
    assert score.brier_n == pytest.approx((0.25,) * 8)
    assert len(set(seeds)) == 8


@torch.no_grad()
def next_probabilities(model: Model, texts: Tensor) -> Tensor:
    """Behind each of texts [b, L], teacher-forced, float64 [b, V]; pads, which it cannot see, fill the chunk."""
    length, k = texts.shape[1], model.chunk_size
    filled = F.pad(texts, (0, k - length % k), value=PAD)
    if isinstance(model, LatentModel):
        logits = model.logits(filled.unflatten(1, (-1, k))).logits.flatten(1, 2)
    else:
        logits = model.logits(filled)
    logits[..., PAD] = -torch.inf
    return logits[:, length].double().softmax(-1)


@pytest.mark.parametrize("kind", ["latent", "token-level"])
@pytest.mark.parametrize("phase", [0, 3])
def test_values_are_of_the_models_own_probabilities(kind: str, phase: int, make_latent: Any, token_level: Any) -> None:
    """Also where the n-grams start inside a chunk: from teacher-forced logits of one text after the other."""
    model = make_latent() if kind == "latent" else token_level
    first, *_ = choose(num=8 * 3)[phase::8]
    prefix, target = first.prefixes[:1], first.targets[:1]

    def of(target: Tensor, seed: int = 7) -> Tensor:
        return model_values(model, 4000)(PrefixGroup(prefix, target, torch.zeros(1)), seed)[0]

    # The same samples, so that only the text's own tokens differ.
    other = target.flip(1)
    grams = [torch.cat([prefix, of], 1) for of in (target, other)]
    at = prefix.shape[1]
    ours, theirs = (
        torch.cat([next_probabilities(model, g[:, :n])[:, g[0, n]] for n in range(at, at + NUM_TARGETS)]).cumprod(0)
        for g in grams
    )
    torch.testing.assert_close(of(target) - of(other), 2 * (ours - theirs), rtol=1e-4, atol=1e-9)

    p = next_probabilities(model, prefix)[0]
    every = torch.arange(model.vocab_size)
    second = next_probabilities(model, torch.cat([prefix.expand(len(every), -1), every[:, None]], 1))
    pairs = p[:, None] * second
    wanted = torch.stack([(p * p).sum(), (pairs * pairs).sum()])
    spread = torch.stack([(p * p * p).sum(), (pairs * pairs * pairs).sum()]) - wanted.square()
    got = 2 * ours[:2] - of(target)[:2]
    assert ((got - wanted).abs() < 4 * (spread / 4000).sqrt() + 1e-9).all()
    assert not of(target, seed=8).equal(of(target))


def test_an_energy_head_is_known_by_its_samples_alone(make_latent: Any) -> None:
    """Shares of equal pairs of 3 samples, which its n-grams behind padded prefixes are."""
    model = make_latent(head="energy", energy_noise_size=4, energy_blocks=1)
    values = model_values(model, 3)(choose()[3], 5)
    assert values.shape == (3, NUM_TARGETS)
    assert (3 * values).frac().abs().max() < 1e-9
    assert values.equal(model_values(model, 3)(choose()[3], 5))


def test_samples_are_laid_out_by_sample_and_prefix(make_latent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are made at once: these say what their prefix ended with, which the texts do not."""
    seeds = []

    def echo(model: Any, prompts: Tensor, num_tokens: int, params: Any, **more: Any) -> BatchGeneration:
        assert not more["stop_at_eos"]
        assert more["forced"].shape == (len(prompts), 0)
        seeds.append(params.seed)
        ids = prompts[:, -1:].expand(-1, num_tokens)
        return BatchGeneration(ids, torch.zeros(ids.shape), torch.full((len(prompts),), num_tokens), 1)

    monkeypatch.setattr(brier, "generate_batch", echo)
    monkeypatch.setattr(brier, "_ROWS_AT_ONCE", 4)
    prefixes = torch.tensor([[9, 10], [9, 20], [9, 30]])
    targets = torch.tensor([[10], [20], [31]]).expand(-1, NUM_TARGETS)
    model = make_latent(head="energy", energy_noise_size=4, energy_blocks=1)
    values = model_values(model, 5)(PrefixGroup(prefixes, targets, torch.arange(3)), 7)
    # All samples of a prefix agree; with the first two texts they agree too.
    assert values.tolist() == [[1.0] * NUM_TARGETS, [1.0] * NUM_TARGETS, [-1.0] * NUM_TARGETS]
    assert len(set(seeds)) == 4
