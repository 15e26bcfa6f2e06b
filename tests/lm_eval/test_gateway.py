"""lm-evaluation-harness on the gateway's HTTP API, beside transformers on the teacher's weights."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from latentforge.teacher_client.sync_client import SyncTeacherClient
from latentforge.text.tokenizer import TextTokenizer
from tests.gateway_process import GatewayProcess, gateway_process
from tests.lm_eval.harness import documents, run_task
from tools.pip_env import ROOT

pytestmark = [pytest.mark.lm_eval, pytest.mark.timeout(600)]

_TEACHER = ROOT / "models" / "stdlib-teacher"
Logprobs = Callable[[list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with gateway_process(tmp_path_factory.mktemp("gateway"), embedded_teacher_path=str(_TEACHER)) as process:
        yield process


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(_TEACHER)


@pytest.fixture(scope="module")
def logprobs() -> Logprobs:
    """Float64 [L−1, v]: ln p(· | tokens before it) for tokens 1 … L−1."""
    model: Any = AutoModelForCausalLM.from_pretrained(_TEACHER, dtype=torch.float32).eval()

    def of(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(torch.tensor([ids])).logits[0, :-1]
        return logits.double().log_softmax(-1)

    return of


def test_continuations_have_the_likelihood_that_the_weights_give_them(
    gateway: GatewayProcess, tokenizer: TextTokenizer, logprobs: Logprobs, tmp_path: Path
) -> None:
    metrics, samples = run_task(gateway.url, "latentforge_continuation", _TEACHER, tmp_path)
    sums, greedy = [], []
    for document in documents("continuations.jsonl"):
        context, continuation = (tokenizer.encode(document[name]) for name in ("context", "continuation"))
        rows = logprobs([*context, *continuation])[len(context) - 1 :]
        sums.append(float(rows.gather(-1, torch.tensor(continuation)[:, None]).sum()))
        greedy.append(rows.argmax(-1).tolist() == continuation)
    for sample, expected, likeliest in zip(samples, sums, greedy, strict=True):
        value, is_greedy = sample["filtered_resps"][0]
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert str(is_greedy) == str(likeliest)
    assert metrics["perplexity,none"] == pytest.approx(math.exp(-sum(sums) / len(sums)), rel=1e-5)


def test_documents_have_theirs_and_are_read_from_the_cache_the_second_time(
    gateway: GatewayProcess, tokenizer: TextTokenizer, logprobs: Logprobs, tmp_path: Path
) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    metrics, samples = run_task(gateway.url, "latentforge_rolling", _TEACHER, first)
    texts = [document["text"] for document in documents("documents.jsonl")]
    for sample, text in zip(samples, texts, strict=True):
        # The harness puts the end of text before a document.
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        expected = float(logprobs(ids).gather(-1, torch.tensor(ids[1:])[:, None]).sum())
        assert float(sample["filtered_resps"][0]) == pytest.approx(expected, rel=1e-5)
    with SyncTeacherClient(gateway.target) as client:
        misses = client.cache_stats().misses
        assert run_task(gateway.url, "latentforge_rolling", _TEACHER, again)[0] == metrics
        assert client.cache_stats().misses == misses
