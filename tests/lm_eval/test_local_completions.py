"""lm-evaluation-harness on a server with the shipped student, beside what `trainer evaluate` measures."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from latentforge.core.checkpoint_files import CheckpointFiles
from latentforge.model.checkpoint import load_checkpoint
from latentforge.text.tokenizer import TextTokenizer
from latentforge.trainer.evaluate.likelihood import evaluate_likelihood
from latentforge.trainer.targets.batches import held_out_batch
from tools.lm_eval_env import LM_EVAL
from tools.pip_env import ROOT

pytestmark = [pytest.mark.lm_eval, pytest.mark.timeout(600)]

_FOLDER = Path(__file__).resolve().parent
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


def _run(url: str, task: str, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The harness's metrics of a task, and its samples in their order."""
    arguments = {
        "model": "latentforge",
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(_PLACE / "tokenizer"),
        "max_length": str(httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["max_model_len"]),
        "num_concurrent": "2",
    }
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [str(LM_EVAL.command), "run", "--model", "local-completions", "--model_args", given, "--tasks", task]
    command += ["--include_path", str(_FOLDER), "--output_path", str(out), "--log_samples", "--batch_size", "3"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "hf"), "NO_PROXY": "*"}
    done = subprocess.run(
        command, cwd=_FOLDER, env=os.environ | offline, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    [results], [samples] = list(out.rglob("results_*.json")), list(out.rglob("samples_*.jsonl"))
    listed = [json.loads(line) for line in samples.read_text().splitlines()]
    metrics: dict[str, Any] = json.loads(results.read_text())["results"][task]
    return metrics, sorted(listed, key=lambda sample: int(sample["doc_id"]))


def _documents(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (_FOLDER / name).read_text().splitlines()]


def test_rolling_likelihood_is_that_of_trainer_evaluate(
    url: str, tokenizer: TextTokenizer, nats: Nats, tmp_path: Path
) -> None:
    metrics, samples = _run(url, "latentforge_rolling", tmp_path)
    documents = [document["text"] for document in _documents("documents.jsonl")]
    # The harness puts the end of text before a document.
    of_each = [float(nats([tokenizer.eos_id, *tokenizer.encode(text)]).sum()) for text in documents]
    for sample, expected in zip(samples, of_each, strict=True):
        assert -float(sample["filtered_resps"][0]) == pytest.approx(expected, rel=1e-5)
    num_bytes = sum(len(text.encode()) for text in documents)
    bits = sum(of_each) / math.log(2) / num_bytes
    assert metrics["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert metrics["byte_perplexity,none"] == pytest.approx(2**bits, rel=1e-5)


def test_likelihood_of_a_continuation_is_that_of_trainer_evaluate(
    url: str, tokenizer: TextTokenizer, nats: Nats, tmp_path: Path
) -> None:
    metrics, samples = _run(url, "latentforge_continuation", tmp_path)
    of_each = []
    for document in _documents("continuations.jsonl"):
        context, continuation = (tokenizer.encode(document[name]) for name in ("context", "continuation"))
        of_each.append(float(nats([*context, *continuation])[len(context) - 1 :].sum()))
    for sample, expected in zip(samples, of_each, strict=True):
        assert -float(sample["filtered_resps"][0][0]) == pytest.approx(expected, rel=1e-5)
    assert metrics["perplexity,none"] == pytest.approx(math.exp(sum(of_each) / len(of_each)), rel=1e-5)
