"""Run by .venv-vllm's Python: a vLLM engine that writes what it is asked to over a socket, until that is closed.

Usage: python engine_script.py JOB.json; the job has socket (a path that somebody listens at) and engine (arguments of
vllm.LLM). Messages are lines of JSON. The first says {"version": ...}; then each request with prompts (lists of ids),
params (arguments of vllm.SamplingParams), seeds (one for each prompt, or null), at_once (prompts that are continued
together) and forget is answered with {"token_ids", "seconds", "passes", "top", "drafters"}: top has for each text the
likeliest first tokens and their log-probabilities, where params ask for logprobs; drafters are the checkpoints that
drafted, in order.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if os.getpgrp() == os.getpid():
        # Whoever started us may be killed, and then only we are told; what vLLM started is in our group.
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
    vllm: Any = importlib.import_module("vllm")
    engine = vllm.LLM(**job["engine"])
    engine.collective_rpc("record_passes")
    with socket.socket(socket.AF_UNIX) as parent:
        parent.connect(job["socket"])
        with parent.makefile("rwb") as messages:
            _say(messages, {"version": vllm.__version__})
            for line in messages:
                _say(messages, _write(vllm, engine, json.loads(line)))


def _say(messages: Any, answer: dict[str, Any]) -> None:
    messages.write(json.dumps(answer).encode() + b"\n")
    messages.flush()


def _write(vllm: Any, engine: Any, asked: dict[str, Any]) -> dict[str, Any]:
    if asked["forget"]:
        engine.collective_rpc("forget_texts")
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    seeds = asked["seeds"] or [None] * len(prompts)
    params = [vllm.SamplingParams(**asked["params"], seed=seed) for seed in seeds]
    engine.collective_rpc("take_passes")
    engine.collective_rpc("take_drafters")
    started = time.perf_counter()
    answers = []
    for start in range(0, len(prompts), asked["at_once"]):
        some = slice(start, start + asked["at_once"])
        answers += engine.generate(prompts[some], params[some], use_tqdm=False)
    seconds = time.perf_counter() - started
    (passes,) = engine.collective_rpc("take_passes")
    (drafters,) = engine.collective_rpc("take_drafters")
    outputs = [answer.outputs[0] for answer in answers]
    return {
        "token_ids": [list(output.token_ids) for output in outputs],
        "seconds": seconds,
        "passes": passes,
        "top": [_top(output) for output in outputs],
        "drafters": drafters,
    }


def _top(output: Any) -> list[Any]:
    if not output.logprobs:
        return []
    likeliest = sorted(output.logprobs[0].items(), key=lambda entry: -entry[1].logprob)
    return [[token, entry.logprob] for token, entry in likeliest]


if __name__ == "__main__":
    main()
