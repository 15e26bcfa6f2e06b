"""lm-evaluation-harness, run on a server's /v1/completions."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tools.lm_eval_env import LM_EVAL

FOLDER = Path(__file__).resolve().parent


def run_task(url: str, task: str, tokenizer: Path, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The harness's metrics of a task of this folder, and its samples in their order."""
    model = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]
    arguments = {
        "model": model["id"],
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": str(tokenizer),
        "max_length": str(model["max_model_len"]),
        "num_concurrent": "2",
    }
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    command = [str(LM_EVAL.command), "run", "--model", "local-completions", "--model_args", given, "--tasks", task]
    command += ["--include_path", str(FOLDER), "--output_path", str(out), "--log_samples", "--batch_size", "3"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "hf"), "NO_PROXY": "*"}
    done = subprocess.run(
        command, cwd=FOLDER, env=os.environ | offline, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    [results], [samples] = list(out.rglob("results_*.json")), list(out.rglob("samples_*.jsonl"))
    listed = [json.loads(line) for line in samples.read_text().splitlines()]
    metrics: dict[str, Any] = json.loads(results.read_text())["results"][task]
    return metrics, sorted(listed, key=lambda sample: int(sample["doc_id"]))


def documents(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]
