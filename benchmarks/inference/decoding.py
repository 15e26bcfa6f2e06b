"""Decoding in this process: our engine without a server, beside transformers."""

import time
from collections.abc import Callable, Sequence

import torch

from latentforge.model.decoding.batch import BatchDecoding
from latentforge.model.engine.offline import run
from latentforge.model.engine.requests import GenerationRequest
from latentforge.model.sampling import SamplingParams


def engine_pace(
    decoding: BatchDecoding, prompts: Sequence[Sequence[int]], new_tokens: int, params: SamplingParams
) -> float:
    """Tokens per second of our engine in the caller's thread; no text ends before ``new_tokens``."""
    requests = [GenerationRequest(decoding, ids, new_tokens, params) for ids in prompts]
    started = time.perf_counter()
    results = run(requests)
    seconds = time.perf_counter() - started
    written = sum(len(result.token_ids) for result in results)
    assert written == len(prompts) * new_tokens
    return written / seconds


def step_cpu_seconds(decoding: BatchDecoding, prompt: Sequence[int], steps: int, params: SamplingParams) -> float:
    """CPU time of this process in one step behind one text, the mean of ``steps``."""
    text = decoding.open(prompt, params)
    while text.num_unread:
        decoding.prefill([text], text.num_unread)
    try:
        # The first ones allocate.
        decoding.step([text])
        before = time.process_time()
        for _ in range(steps):
            decoding.step([text])
        return (time.process_time() - before) / steps
    finally:
        decoding.close(text)


def fastest_threads(measure: Callable[[], float], choices: Sequence[int]) -> int:
    """Of some numbers of torch threads the one with which a figure is best; it is set when this returns."""

    def figure(threads: int) -> float:
        torch.set_num_threads(threads)
        return measure()

    torch.set_num_threads(choices[0])
    measure()
    best = max(choices, key=figure) if len(choices) > 1 else choices[0]
    torch.set_num_threads(best)
    return best
