"""lm-evaluation-harness on a server with the shipped student, beside what `trainer evaluate` measures."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.model.checkpoint import load_checkpoint
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.evaluate.likelihood import evaluate_likelihood
from latentforge.trainer.targets.batches import held_out_batch
from tests.lm_eval.harness import documents, run_task
from tools.pip_env import ROOT

pytestmark = [pytest.mark.lm_eval, pytest.mark.timeout(600)]

_PLACE = ROOT / "models" / "stdlib-student" / "step-00000330"
Nats = Callable[[list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    environment = os.environ | {
        "CHECKPOINTS_DIR": str(folder / "checkpoints"),
        "FALLBACK_RUN": str(_PLACE.parent),
        "INFERENCE_DEVICE": "cpu",
    }
    command = [str(Path(sys.executable).parent / "inference"), "serve", "--port", "0"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stderr=log, cwd=folder)
    try:
        yield _address(folder / "log")
    finally:
        server.terminate()
        server.wait(60)


def _address(log: Path) -> str:
    """Where the server listens, as it says itself, once it serves."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        said = [
            word.strip('",') for word in log.read_text().split() if word.strip('",').startswith("http://127.0.0.1:")
        ]
        if said and _is_ready(said[0].rstrip("/")):
            return said[0].rstrip("/")
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(_PLACE / "tokenizer")


@pytest.fixture(scope="module")
def nats() -> Nats:
    """Of each token but a sequence's first, negative and as `trainer evaluate` has it; of whole chunks."""
    model = load_checkpoint(CheckpointFiles(_PLACE))[1]
    return lambda ids: evaluate_likelihood(model, [held_out_batch(torch.tensor(ids), None)]).nats


def test_rolling_likelihood_is_that_of_trainer_evaluate(
    url: str, tokenizer: TextTokenizer, nats: Nats, tmp_path: Path
) -> None:
    metrics, samples = run_task(url, "latentforge_rolling", _PLACE / "tokenizer", tmp_path)
    texts = [document["text"] for document in documents("documents.jsonl")]
    # The harness puts the end of text before a document.
    of_each = [float(nats([tokenizer.eos_id, *tokenizer.encode(text)]).sum()) for text in texts]
    for sample, expected in zip(samples, of_each, strict=True):
        assert -float(sample["filtered_resps"][0]) == pytest.approx(expected, rel=1e-5)
    num_bytes = sum(len(text.encode()) for text in texts)
    bits = sum(of_each) / math.log(2) / num_bytes
    assert metrics["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert metrics["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-5)


def test_likelihood_of_a_continuation_is_that_of_trainer_evaluate(
    url: str, tokenizer: TextTokenizer, nats: Nats, tmp_path: Path
) -> None:
    metrics, samples = run_task(url, "latentforge_continuation", _PLACE / "tokenizer", tmp_path)
    of_each = []
    for document in documents("continuations.jsonl"):
        context, continuation = (tokenizer.encode(document[name]) for name in ("context", "continuation"))
        of_each.append(float(nats([*context, *continuation])[len(context) - 1 :].sum()))
    for sample, expected in zip(samples, of_each, strict=True):
        assert -float(sample["filtered_resps"][0][0]) == pytest.approx(expected, rel=1e-5)
    assert metrics["perplexity,none"] == pytest.approx(math.exp(sum(of_each) / len(of_each)), rel=1e-5)
