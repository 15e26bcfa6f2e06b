"""The shipped student drafts for the shipped teacher: estimates of acceptance beside speculative sampling itself.

``pytest -s -m slow tests/models/test_drafting.py`` prints the figures.
"""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from latentforge.core.checkpoints import list_checkpoints
from latentforge.model.batch_generation import generate_batch
from latentforge.model.metrics.acceptance import accepted_of_drafts, token_acceptance
from latentforge.model.sampling import SamplingParams
from latentforge.snapshots.snapshot import load_snapshot
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.data.corpus import source_files, stdlib_root

MODELS = Path(__file__).resolve().parents[2] / "models"
CONTEXTS, LENGTH, K, DRAFTS = 64, 128, 8, 4


def contexts() -> Tensor:
    """Whole chunks of held-out files and the chunk behind them, int64 [64, 136]."""
    tokenizer = TextTokenizer(MODELS / "stdlib-teacher")
    files = [f.text for f in source_files(stdlib_root(), "held-out") if len(f.text) > 10_000]
    rng = np.random.default_rng(0)
    texts = tokenizer.encode_texts(files)
    starts = [(text, K * int(rng.integers((len(text) - LENGTH - K) // K))) for text in texts for _ in range(9)]
    return torch.tensor([text[start : start + LENGTH + K] for text, start in starts])[:CONTEXTS]


@pytest.mark.slow
@torch.no_grad()
def test_estimates_agree_with_speculative_sampling() -> None:
    model = load_snapshot(list_checkpoints(MODELS / "stdlib-student")[-1], torch.device("cpu")).model
    teacher = AutoModelForCausalLM.from_pretrained(MODELS / "stdlib-teacher").eval()
    texts = contexts()
    assert len(texts) == CONTEXTS

    def of_teacher(texts: Tensor) -> Tensor:
        """Distributions of the last K tokens, float64 [n, K, V]."""
        return torch.cat([teacher(part).logits[:, -K - 1 : -1].double().softmax(-1) for part in texts.split(CONTEXTS)])

    # Along the text, with both distributions whole.
    logits = model.logits(texts.unflatten(1, (-1, K))).logits[:, -1].double()
    logits[..., model.student.config.pad_id] = -torch.inf
    p, q = of_teacher(texts), logits.softmax(-1)
    overlap = torch.minimum(p, q).sum(-1)
    along = token_acceptance(overlap, 1 - overlap, torch.ones(overlap.shape, dtype=torch.bool), K)
    estimate = along.accepted_high.sum(1)
    # Without bias along a teacher's text, but this is people's.
    ratio = (q / p).gather(2, texts[:, LENGTH:, None])[..., 0].clamp(max=1)
    weighted = (overlap * torch.nn.functional.pad(ratio[:, :-1], (1, 0), value=1.0).cumprod(1)).sum(1)

    prompts = texts[:, :LENGTH].repeat(DRAFTS, 1)
    made = generate_batch(model, prompts, K, SamplingParams(seed=1), stop_at_eos=False)
    p = of_teacher(torch.cat([prompts, made.token_ids], 1)).log().gather(2, made.token_ids[..., None])[..., 0]
    q = made.logprobs.double()
    expected = accepted_of_drafts(p, q).sum(1)
    accepts = torch.rand(p.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) < (p - q).exp()
    sampled = accepts.long().cumprod(1).sum(1).double()

    def error(values: Tensor) -> float:
        """Of the mean; drafts of one context are no draws of their own."""
        return float(values.view(-1, CONTEXTS).mean(0).std()) / math.sqrt(CONTEXTS)

    found = {"along the text": estimate, "prefixes weighted": weighted, "of drafts": expected, "sampled": sampled}
    for name, values in found.items():
        sys.stdout.write(f"accepted of {K}, {name}: {float(values.mean()):.3f} ± {error(values):.3f}\n")
    # Of the same drafts: what is left is the noise of accepting.
    assert abs(float((sampled - expected).mean())) < 4 * error(sampled - expected)
    assert 2.8 < float(expected.mean()) < 4.2
    assert float(estimate.mean()) == pytest.approx(float(expected.mean()), rel=0.3)
