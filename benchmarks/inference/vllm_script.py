"""Run by .venv-vllm's Python, which has nothing of ours: tokens per second of a Qwen3 with random weights in vLLM.

Usage: python vllm_script.py JOB.json; the job has model (a folder with config.json), dtype, prompts (lists of ids),
new_tokens, temperature, top_p, repeats and out, a file that gets {"tokens_per_second": [...], "version": "..."}.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    vllm: Any = importlib.import_module("vllm")

    longest = max(map(len, job["prompts"])) + job["new_tokens"]
    engine = vllm.LLM(
        model=job["model"],
        dtype=job["dtype"],
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=longest,
        max_num_seqs=len(job["prompts"]),
        enable_prefix_caching=False,
        seed=0,
    )
    params = vllm.SamplingParams(
        temperature=job["temperature"],
        top_p=job["top_p"],
        max_tokens=job["new_tokens"],
        min_tokens=job["new_tokens"],
        ignore_eos=True,
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    figures = []
    for _ in range(job["repeats"] + 1):
        started = time.perf_counter()
        answers = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        written = sum(len(answer.outputs[0].token_ids) for answer in answers)
        assert written == len(prompts) * job["new_tokens"]
        figures.append(written / seconds)
    # The first one compiles and allocates.
    answer = {"tokens_per_second": figures[1:], "version": vllm.__version__}
    Path(job["out"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
