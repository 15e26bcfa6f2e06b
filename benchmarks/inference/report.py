"""What was measured, as a results file and as one table."""

from typing import Any

from benchmarks.benchmark_results import Bars, BenchmarkResults

_BARS = {
    "rest_16": 6.0,
    "rest_16_vs_hf": 2.0,
    "rest_16_vs_token_level": 1.9,
    "decode_16_vs_vllm": 2.5,
    "decode_1": 4.0,
    "decode_1_fast": 6.0,
    "decode_1_vs_twin": 4.0,
    "step_over_floor": 3.0,
    "top_p": 0.9,
    "http_ms": 2.0,
    "swap_p99": 1.5,
    "hostile": 500.0,
}
BARS = Bars(_BARS, at_most={"step_over_floor", "http_ms", "swap_p99", "hostile"})

NOTES = """\
Both sides of a row ran on one machine in one run, in turns, with the same sampling: T = 1, the whole distribution.
  Medians over the repeats; low and high bound the ratio of two figures taken together where there is a baseline, else
  the value. Nothing but what was measured is meant to run beside it (machine.load_average says what did).
rest_*, http_ms, swap_p99, hostile: POST /generate with held-out text of the standard library; clients are one process
  of plain sockets, one request open each, asking again as soon as they are answered. Tokens are those that were
  written: texts may end before max_tokens. The twin has random weights, which its speed does not depend on.
decode_*: weights are random, prompts random ids, and no text ends before new_tokens; prompts' own processing counts.
  Each side has whichever number of torch threads suits it, vLLM what it takes by itself. vLLM runs in a process of its
  own, before ours.
step_over_floor: CPU time of this process in one step behind one text, over that of the matrix products that a step
  cannot do without, listed from the model's sizes (benchmarks/inference/floor.py) and timed in the same repeat; one
  thread.
http_ms: the median of what a client waits for a request of 8 tokens on a connection that stays open, less the
  milliseconds that the answer says were spent generating.
swap_p99: the 99th percentile of latencies while checkpoints are published and swapped in, over that without.
hostile: the 99th percentile, in ms, of requests of 8 tokens while clients post prompts of 4 MB, and others hold bodies
  that they never finish.
""".splitlines()


class InferenceBenchResults(BenchmarkResults):
    """``bench_inference_<time>.json``.

    Attributes:
        plan: how much was measured.
    """

    plan: dict[str, Any]
