"""vLLM's CPU build, in a process and environment of its own, on a model of given sizes with random weights."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.inference.models import transformers_config
from latentforge.model.config import TokenLevelConfig
from latentforge.model.sampling import SamplingParams
from tools import vllm_env

VllmDtype = Literal["float32", "bfloat16"]
_SCRIPT = Path(__file__).with_name("vllm_script.py")
_LONGEST_SECONDS = 1800
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class VllmError(RuntimeError):
    """vLLM is not there, or did not do it."""


@dataclass(frozen=True)
class VllmPaces:
    """Tokens per second of every repeat, and vLLM's version."""

    tokens_per_second: list[float]
    version: str


def vllm_paces(
    config: TokenLevelConfig,
    dtype: VllmDtype,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    params: SamplingParams,
    repeats: int,
    folder: Path,
    *,
    behind_prompts: bool = False,
    cache_gib: int = 2,
) -> VllmPaces:
    """All prompts at once, each continued by ``new_tokens``, again and again.

    Args:
        config: sizes of the model.
        dtype: of its weights and of what is computed.
        prompts: ids.
        new_tokens: that each is continued by.
        params: temperature and top_p.
        repeats: figures; one more comes first and does not count.
        folder: for the job and vLLM's log.
        behind_prompts: counts only the time in which all prompts have been read and none has ended; the prompts' keys
            and values are kept from one repeat to the next.
        cache_gib: memory for keys and values.

    Raises:
        VllmError: it is not installed, or failed; the message has the end of its log.
    """
    if not vllm_env.VENV_PYTHON.exists():
        raise VllmError(f"{vllm_env.VENV.name} is missing; run python -m tools.vllm_env")
    folder.mkdir(parents=True, exist_ok=True)
    transformers_config(config).save_pretrained(folder / "model")
    job = {
        "model": str(folder / "model"),
        "dtype": dtype,
        "prompts": [list(ids) for ids in prompts],
        "new_tokens": new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "repeats": repeats,
        "behind_prompts": behind_prompts,
        "out": str(folder / "out.json"),
    }
    path, log = folder / "job.json", folder / f"vllm-{dtype}.log"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [str(vllm_env.VENV_PYTHON), str(_SCRIPT), str(path)]
    with log.open("w") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(cache_gib)},
            cwd=folder,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise VllmError(f"vLLM in {dtype} ended with exit code {done.returncode}:\n{end}")
    return VllmPaces(**json.loads((folder / "out.json").read_text()))
