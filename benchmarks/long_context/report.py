"""What was measured: ratios with their bars, and every model's figures beside what the device allows."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.benchmark import Benchmark
from benchmarks.benchmark_results import Bars, BenchmarkResults
from benchmarks.long_context.cells import LongContextFigures
from benchmarks.long_context.device_speed import DeviceSpeed
from benchmarks.long_context.plan import K8, TWIN
from latentforge.core.results import Result

BARS = Bars({"kv_16x2k": 6.0, "kv_16x8k": 8.0})
_MIB = 2**20

NOTES = """\
All models have the same backbone and random weights. Contexts are random ids, read by the engine before anything is
  measured; a figure is the tokens of some steps of all texts behind them, sampled at T = 1 from the whole distribution.
  Models take turns, and each has the number of torch threads that suits it in that cell. Medians over the repeats; low
  and high bound the ratio of two figures taken together.
Needed: what one token needs at least, its share of a step of all texts. Weights are read once a step, keys and values
  at every use; nothing but matrix products is counted. Allowed are the tokens/s of a device that takes for each product
  only as long as it takes to read its weights, keys and values at the bandwidth of a large copy or sum, or to multiply
  at the pace of a large product, whichever is longer.
Cache: memory that the engine has taken for keys and values, the induction heads' among them, which every token has
  whatever K is.
vLLM: the twin in a process of its own before the others, in bfloat16, with as many threads as it takes; its time is
  that between the first new token of the last text and the end of the first.
""".splitlines()


class LongContextResults(BenchmarkResults):
    """``long_context_<time>.json``.

    Attributes:
        plan: how much was measured.
        speed: of the device.
        figures: of every model in every cell.
    """

    plan: dict[str, Any]
    speed: DeviceSpeed
    figures: tuple[LongContextFigures, ...]


def compared(bench: Benchmark, figures: Sequence[LongContextFigures]) -> list[Result]:
    """A cell's ratios: tokens/s of every student beside the twin, of K = 8 beside vLLM, and of the caches."""
    of = {each.model: each for each in figures}
    results = []
    for each in figures:
        cell = each.cell
        suffix = "" if each.model == K8.key else f"_{each.model}"
        if each.chunk_size > 1:
            twin = of[TWIN.key]
            results.append(bench.compared(cell + suffix, each.paces, twin.paces, name=twin.name))
            results.append(_caches(f"{cell}{suffix}_cache", each, twin))
        elif each.cost is None:
            results.append(bench.compared(cell + suffix, of[K8.key].paces, each.paces, name=each.name))
    return results


def _caches(id: str, ours: LongContextFigures, twin: LongContextFigures) -> Result:  # noqa: A002
    assert ours.cache_bytes is not None
    assert twin.cache_bytes is not None
    size, other = ours.cache_bytes / _MIB, twin.cache_bytes / _MIB
    return Result.compared(id, size, "MiB", baseline=twin.name, baseline_value=other, smaller_is_better=True)


def figures_table(results: LongContextResults) -> Table:
    """Every model in every cell, beside the least that a token needs and what the device allows with it."""
    speed = results.speed
    out = Table(
        title=f"What a token needs at least; {speed.bytes_per_second / 1e9:,.1f} GB/s, "
        f"{speed.flops_per_second / 1e9:,.0f} GFLOP/s"
    )
    out.add_column("cell", no_wrap=True)
    out.add_column("model", no_wrap=True)
    for name in (
        "tokens/s",
        "allowed",
        "share",
        "over twin",
        "allowed",
        "weights MB",
        "cache MB",
        "attention MFLOP",
        "all MFLOP",
        "cache MiB",
        "bytes a token",
        "threads",
    ):
        out.add_column(name, justify="right", no_wrap=True)
    twins = {each.cell: each for each in results.figures if each.model == TWIN.key}
    for each in results.figures:
        twin, cost = twins[each.cell], each.cost
        row = [each.cell, each.name, f"{each.pace:,.4g}"]
        if cost is None or twin.cost is None:
            row += ["", "", f"{each.pace / twin.pace:.2f}", *[""] * 5]
        else:
            row += [f"{cost.pace:,.4g}", f"{each.pace / cost.pace:.0%}", f"{each.pace / twin.pace:.2f}"]
            row += [f"{cost.pace / twin.cost.pace:.2f}", f"{cost.weight_bytes / 1e6:,.1f}"]
            row += [f"{cost.cache_bytes / 1e6:,.1f}", f"{cost.attention_flops / 1e6:,.1f}", f"{cost.flops / 1e6:,.1f}"]
        row += ["" if each.cache_bytes is None else f"{each.cache_bytes / _MIB:,.1f}"]
        row += ["" if each.cache_bytes_per_token is None else f"{each.cache_bytes_per_token:,.0f}"]
        out.add_row(*row, "" if each.threads is None else str(each.threads))
    return out


def print_figures(results: LongContextResults) -> None:
    """Prints the table as wide as it is."""
    console = Console()
    console.width = max(console.width, 200)
    console.print(figures_table(results))
