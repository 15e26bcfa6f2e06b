"""Acceptance of drafts: along the text, as validations and evaluations have it, and of real drafts."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentforge.model.losses import StudentBatch
from latentforge.trainer.evaluate.brier import PrefixGroup
from latentforge.trainer.evaluate.drafts import Drafts, evaluate_drafts
from latentforge.trainer.evaluate.likelihood import evaluate_likelihood
from latentforge.trainer.training.validation import evaluate_student

CPU = torch.device("cpu")


@torch.no_grad()
def distributions(model: Any, tokens: Tensor) -> Tensor:
    """Teacher-forced, float64 [L, V] for every token of a text."""
    k = model.chunk_size
    logits: Tensor = model.logits(tokens[None])[0] if k == 1 else model.logits(tokens.view(1, -1, k)).logits[0]
    return logits.view(len(tokens), -1).double().softmax(-1)


@pytest.mark.parametrize("kind", ["latent", "token-level"])
def test_validation_and_evaluation_have_the_figures_of_a_slow_reference(
    kind: str, make_latent: Any, token_level: Any, batches: list[StudentBatch], known_rows: Any
) -> None:
    model = make_latent() if kind == "latent" else token_level
    k = model.chunk_size
    kd = batches[1].kd
    assert kd is not None
    kd.has_row[0, 6] = False
    kd.tail_mass[0, 6] = kd.realised_logprobs[0, 6] = torch.nan
    low: list[list[float]] = [[] for _ in range(k)]
    high: list[list[float]] = [[] for _ in range(k)]
    accepted, accepted_low, greedy = [], [], []
    hits: list[list[bool]] = []
    for batch in batches:
        tokens = batch.tokens[0]
        q, p = distributions(model, tokens), known_rows.dense(tokens).double().exp()
        assert batch.kd is not None
        known = (batch.valid & batch.kd.has_row)[0].tolist()
        bounds: dict[int, tuple[float, float]] = {}
        likeliest = q.argmax(1).tolist()
        hits.append([likeliest[i] == known_rows.best(int(tokens[i - 1]), 0) for i in range(len(tokens)) if known[i]])
        for i in range(len(tokens)):
            if known[i]:
                kept = {known_rows.best(int(tokens[i - 1]), rank) for rank in range(4)} | {int(tokens[i])}
                rest = [v for v in range(260) if v not in kept]
                overlap = sum(min(float(p[i, v]), float(q[i, v])) for v in kept)
                bounds[i] = overlap, overlap + min(float(p[i, rest].sum()), float(q[i, rest].sum()))
                low[i % k].append(bounds[i][0])
                high[i % k].append(bounds[i][1])
        for first in range(0, len(tokens), k):
            if all(known[first : first + k]):
                chunk = np.array([bounds[i] for i in range(first, first + k)])
                of_low, of_high = chunk.cumprod(0).sum(0)
                accepted_low.append(of_low)
                accepted.append(of_high)
    wanted = {"acceptance": np.mean([*chain(*high)]), "acceptance_low": np.mean([*chain(*low)])}
    if k > 1:
        wanted |= {f"acceptance_k{i}": np.mean(values) for i, values in enumerate(high)}
        wanted |= {"mean_accepted": np.mean(accepted), "mean_accepted_low": np.mean(accepted_low)}
    for row in hits:
        place = 0
        while place < len(row):
            run = row[place : place + 8]
            greedy.append(run.index(False) if False in run else len(run))
            place += greedy[-1] + 1
        assert greedy[-1] < len(run)
    measured = evaluate_student(model, batches, 0, CPU)
    of_greedy = {"greedy_agreement": np.mean([*chain(*hits)]), "greedy_accepted": np.mean(greedy)}
    found = {name: value for name, value in measured.items() if "accept" in name or "greedy" in name}
    assert found == pytest.approx(wanted | of_greedy, abs=1e-5)
    evaluated = evaluate_likelihood(model, batches).mean_acceptance()
    assert {name: estimate.value for name, estimate in evaluated.items()} == pytest.approx(wanted, abs=1e-5)
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in evaluated.values())


def test_without_rows_there_is_no_acceptance(make_latent: Any, batches: list[StudentBatch]) -> None:
    without = [StudentBatch(batch.tokens, batch.valid) for batch in batches]
    assert set(evaluate_student(make_latent(), without, 0, CPU)) == {"ce", "mse"}
    assert evaluate_likelihood(make_latent(), without).mean_acceptance() == {}


def test_places_in_a_chunk_that_never_have_a_row_are_left_out(make_latent: Any, batches: list[StudentBatch]) -> None:
    for batch in batches:
        batch.valid[:, 2::4] = False
    measured = evaluate_student(make_latent(), batches, 0, CPU)
    names = {name for name in measured if "accept" in name and "greedy" not in name}
    assert names == {"acceptance", "acceptance_low", "acceptance_k0", "acceptance_k1", "acceptance_k3"}
    assert set(evaluate_likelihood(make_latent(), batches).mean_acceptance()) == names


@pytest.mark.parametrize(("kind", "phase"), [("latent", 0), ("latent", 3), ("token-level", 0)])
def test_drafts_are_accepted_with_the_probability_that_speculative_sampling_has(
    kind: str, phase: int, make_latent: Any, token_level: Any, known_rows: Any
) -> None:
    model = make_latent() if kind == "latent" else token_level
    prefix = torch.arange(40, 56 + phase)
    num = 2000
    asked: list[list[int]] = []

    def score(prompts: Any, texts: Any) -> list[Any]:
        asked.extend(texts)
        dense = [known_rows.dense(torch.tensor([prompts[0][-1], *text]))[1:] for text in texts]
        return [d.gather(1, torch.tensor(t)[:, None])[:, 0].numpy() for d, t in zip(dense, texts, strict=True)]

    group = PrefixGroup(prefix.repeat(num, 1), torch.zeros(num, 8, dtype=torch.int64), torch.arange(num))
    drafts = evaluate_drafts(model, [group], score)
    assert drafts.accepted.shape == (num, 8)
    # By the teacher-forced distributions of the drafts themselves; the pad is never written.
    for text, accepted in list(zip(asked, drafts.accepted, strict=True))[:5]:
        tokens = torch.cat([prefix, torch.tensor(text)])
        filled = torch.cat([tokens, tokens.new_full((-len(tokens) % model.chunk_size,), 1)])
        q = distributions(model, filled)[len(prefix) : len(tokens)]
        q[:, 1] = 0
        q /= q.sum(1, keepdim=True)
        p = known_rows.dense(tokens).double().exp()[len(prefix) :]
        ratio = (p / q).gather(1, tokens[len(prefix) :, None])[:, 0].clamp(max=1)
        torch.testing.assert_close(accepted.double(), ratio.cumprod(0), rtol=1e-3, atol=1e-6)
    # The first token's mean over drafts is the overlap of both distributions.
    overlap = float(torch.minimum(p[0], q[0]).sum())
    first = drafts.by_position()[0]
    assert first.low - 0.01 <= overlap <= first.high + 0.01
    assert drafts.mean_accepted().value == pytest.approx(float(drafts.accepted.sum(1).mean()))


def test_acceptance_by_position_is_of_the_drafts_that_got_there() -> None:
    accepted = torch.full((4, 8), 1e-9)
    accepted[:, 0] = torch.tensor([1.0, 0.5, 0.5, 1e-9])
    accepted[:, 1] = torch.tensor([0.5, 0.5, 1e-9, 1e-9])
    drafts = Drafts(accepted, torch.tensor([0, 0, 1, 1]))
    assert [e.value for e in drafts.by_position()[:2]] == pytest.approx([0.5, 0.5])
    assert drafts.mean_accepted().value == pytest.approx(0.75)
