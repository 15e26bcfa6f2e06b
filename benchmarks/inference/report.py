"""What was measured, as a results file and as one table."""

from collections.abc import Sequence
from typing import Any, Literal

from rich.table import Table

from benchmarks.inference.plan import InferencePlan
from latentforge.core.results import Result, ResultsFile

# Of the ratio where there is a baseline, else of the value.
BARS = {
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
# A value that must not exceed its bar.
SMALLER_IS_BETTER = {"step_over_floor", "http_ms", "swap_p99", "hostile"}

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


class InferenceBenchResults(ResultsFile):
    """``bench_inference_<time>.json``.

    Attributes:
        plan: how much was measured.
        bars: what ratios and values are held against, by id.
        measured: every repeat's figures, by id.
        notes: how it was measured, and what could not be.
        machine: the load before, and the versions of Python, torch and transformers.
        seconds: that it took.
    """

    plan: dict[str, Any]
    bars: dict[str, float]
    measured: dict[str, dict[str, Any]]
    notes: list[str]
    machine: dict[str, Any]
    seconds: float


def meets_bar(result: Result) -> Literal["yes", "no", ""]:
    """Whether a result is as good as its bar; nothing where it has none."""
    bar = BARS.get(result.id)
    figure = result.value if result.baseline is None else result.ratio
    if bar is None or figure is None:
        return ""
    return "yes" if (figure <= bar if result.id in SMALLER_IS_BETTER else figure >= bar) else "no"


def table(results: Sequence[Result], plan: InferencePlan, notes: Sequence[str]) -> Table:
    """The results for a terminal."""
    title = f"{plan.clients} clients, prompts of {plan.prompt_tokens} tokens, {plan.new_tokens} new ones, "
    title += f"{plan.repeats} repeats"
    out = Table(title=title, caption="\n".join([*notes, *NOTES]), caption_justify="left")
    for name in ("id", "value", "unit", "baseline's", "ratio", "low", "high", "bar", "met"):
        out.add_column(name, justify="left" if name in ("id", "unit", "met") else "right", no_wrap=True)
    out.add_column("baseline")
    for result in results:
        numbers = (result.baseline_value, result.ratio, result.low, result.high, BARS.get(result.id))
        cells = ("" if n is None else f"{n:,.4g}" for n in numbers)
        value = "" if result.value is None else f"{result.value:,.4g}"
        out.add_row(result.id, value, result.unit, *cells, meets_bar(result), result.baseline or "")
    return out
