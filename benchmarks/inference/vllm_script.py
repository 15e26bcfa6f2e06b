"""Run by .venv-vllm's Python, which has nothing of ours: tokens per second of a Qwen3 with random weights in vLLM.

Usage: python vllm_script.py JOB.json; the job has model (a folder with config.json), dtype, prompts (lists of ids),
new_tokens, temperature, top_p, repeats, behind_prompts and out, a file that gets {"tokens_per_second": [...],
"version": "..."}.
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
        # What is read behind the same prompts again and again is to be read once.
        enable_prefix_caching=job["behind_prompts"],
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
    # It compiles and allocates.
    _with_prompts(engine, prompts, params)
    measure = _behind_prompts if job["behind_prompts"] else _with_prompts
    figures = [measure(engine, prompts, params) for _ in range(job["repeats"])]
    answer = {"tokens_per_second": figures, "version": vllm.__version__}
    Path(job["out"]).write_text(json.dumps(answer), encoding="utf-8")


def _with_prompts(engine: Any, prompts: list[Any], params: Any) -> float:
    """Tokens per second from the prompts on."""
    started = time.perf_counter()
    answers = engine.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    written = sum(len(answer.outputs[0].token_ids) for answer in answers)
    assert written == len(prompts) * params.max_tokens
    return written / seconds


def _behind_prompts(engine: Any, prompts: list[Any], params: Any) -> float:
    """Tokens per second from when every text has its first new token until the first one ends."""
    core = engine.llm_engine
    params = params.clone()
    # generate() has set it to the whole text at its end.
    params.output_kind = type(params.output_kind).CUMULATIVE
    for index, prompt in enumerate(prompts):
        core.add_request(str(index), prompt, params)
    written: dict[str, int] = {}
    first = last = (0.0, 0)
    has_ended = False
    while core.has_unfinished_requests():
        answers = core.step()
        now = time.perf_counter()
        for answer in answers:
            written[answer.request_id] = len(answer.outputs[0].token_ids)
        if len(written) == len(prompts) and not has_ended:
            last = now, sum(written.values())
            first = first if first[1] else last
        has_ended = has_ended or any(answer.finished for answer in answers)
    return (last[1] - first[1]) / (last[0] - first[0])


if __name__ == "__main__":
    main()
