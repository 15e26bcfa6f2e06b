"""What was measured, as a results file and as one table."""

import statistics
from collections.abc import Sequence

from rich.table import Table

from benchmarks.benchmark_results import Bars
from benchmarks.gateway import callers
from benchmarks.gateway.litellm import WAYS, ProxyFinding
from benchmarks.gateway.measures import GatewayMeasures
from latentforge.core.results import Result

VLLM = "vLLM asked directly"
# Of the ratio; cached_positions_per_s has no baseline, so there it is of the value.
BARS = {
    "cached_vs_litellm": 10.0,
    "cached_vs_vllm": 50.0,
    "http_cached": 20.0,
    "uncached_vs_vllm": 0.95,
    "shared_vs_vllm": 3.0,
    "wire_bytes": 9.0,
    "wire_bytes_zstd": 12.0,
    "cached_positions_per_s": 500_000.0,
    "parse_cpu": 1 / 1.5,
}
# Those of what clients cost each other too.
_BARS = Bars({**BARS, **callers.BARS.figures}, callers.BARS.at_most)

NOTES = """\
All servers ran on one machine in one run, each in turn; medians over the repeats. A position is one row: k entries and
  the realised token. low and high bound the ratio of the repeats where there is a baseline, else the value.
Clients are processes with one connection and one request open at a time; they share the cores with the servers. All end
  with the same numpy rows: from a gateway through SyncTeacherClient, from vLLM and LiteLLM through httpx and the
  gateway's own parser.
The gateway is asked for several sequences a request (setting.per_request); vLLM for as many and for one a request in
  the first repeat, of which the faster counts and is taken from there on (measured.direct has both).
cached_*: one gateway process with default settings before Redis: the rows asked for last stay in its memory, and
  travel packed (zstd), as stored. *_arrays is the same with plain arrays on the wire, *_redis is packed with
  CACHE_MEMORY_MB=0: every answer is read from Redis. The baseline of cached_vs_vllm is vLLM's uncached figure of the
  same run.
http_cached: the same gateway asked over HTTP, at /v1/completions, for the same JSON as vLLM and with vLLM's client; the
  baseline is vLLM's uncached figure of the same run.
uncached_vs_vllm, shared_vs_vllm, parse_cpu: no cache, plain arrays on the wire.
wire_*: bytes of both directions through a counting TCP proxy, framing and headers of HTTP and gRPC included; wire_bytes
  is plain arrays with float16 log-probabilities, wire_bytes_zstd packed; one pass each.
parse_cpu: all CPU time of the gateway's process while it answers (HTTP, parsing, checks, gRPC) and vLLM and the clients
  use the same cores; the baseline is orjson.loads and the freeing of its result, in a process of its own on idle cores.
LiteLLM's proxy and the gateway are one process each. With --dtype auto vLLM computes in bfloat16 where the processor
  has units for it, else in float32, which is faster there.
""".splitlines()


def name_of(way: ProxyFinding | None, findings: Sequence[ProxyFinding]) -> str:
    """What LiteLLM was asked for, as the baseline's name."""
    if not findings:
        return "LiteLLM's proxy with a Redis cache, not measured"
    if way is None:
        return "LiteLLM's proxy with a Redis cache, which answers no prompt_logprobs from it"
    return f"LiteLLM's proxy with a Redis cache ({WAYS[way.way]})"


def notes_on_litellm(findings: Sequence[ProxyFinding]) -> list[str]:
    """A line for each thing that was tried."""
    lines = []
    for finding in findings:
        tried = f"LiteLLM as {WAYS[finding.way]}, prompt_logprobs of {finding.prompt}: "
        if finding.status != 200:
            lines.append(f"{tried}status {finding.status}, {finding.error}")
        elif not finding.keeps_rows:
            lines.append(f"{tried}the answer comes without them")
        elif not finding.cached:
            lines.append(f"{tried}the rows come, and never from the cache")
        else:
            kept = "the same rows come" if finding.cached_keeps_rows else "other rows come"
            mixed = "; a smaller k gets the larger one's rows" if finding.keeps_k_apart is False else ""
            lines.append(f"{tried}{kept} from the cache{mixed}")
    return lines


def note_on_misses(measured: GatewayMeasures) -> list[str]:
    """Nothing, as long as the cache did what is measured."""
    counted = {"cached_*": measured.cached_misses, "LiteLLM's figures": measured.litellm_misses}
    return [
        f"{what} are too low: {misses} sequences had to be computed, which the cache did not give; measure again"
        for what, misses in counted.items()
        if misses
    ]


def results_of(measured: GatewayMeasures, litellm: str) -> list[Result]:
    """Medians over the repeats; low and high bound the ratio where there is a baseline, else the value.

    Args:
        litellm: what LiteLLM was asked for.
    """
    cached = measured.cached["packed"]
    direct = measured.direct[measured.fastest_direct]
    arrays, packed, json = (measured.wire[name].total for name in ("arrays", "packed", "vllm"))
    return [
        _beside("cached_vs_litellm", "positions/s", cached, litellm, measured.litellm),
        _beside("cached_vs_litellm_redis", "positions/s", measured.cached["redis"], litellm, measured.litellm),
        _beside("cached_vs_vllm", "positions/s", cached, VLLM, direct),
        _beside("http_cached", "positions/s", measured.http_cached, VLLM, direct),
        _beside("uncached_vs_vllm", "positions/s", measured.uncached, VLLM, direct),
        _beside("shared_vs_vllm", "positions/s", measured.shared, VLLM, measured.shared_direct),
        _beside("wire_bytes", "bytes/position", [arrays], "vLLM's JSON", [json], smaller_is_better=True),
        _beside("wire_bytes_zstd", "bytes/position", [packed], "vLLM's JSON", [json], smaller_is_better=True),
        _alone("cached_positions_per_s", "positions/s", cached),
        _alone("cached_positions_per_s_arrays", "positions/s", measured.cached["arrays"]),
        _alone("cached_positions_per_s_redis", "positions/s", measured.cached["redis"]),
        _alone("cached_positions_per_cpu_s", "positions/CPU s", measured.cached_cpu["packed"]),
        _alone("cached_positions_per_cpu_s_arrays", "positions/CPU s", measured.cached_cpu["arrays"]),
        _alone("cached_positions_per_cpu_s_redis", "positions/CPU s", measured.cached_cpu["redis"]),
        _beside(
            "parse_cpu",
            "CPU s/million positions",
            measured.gateway_cpu,
            "orjson.loads of the same answers, alone",
            measured.orjson_cpu,
            smaller_is_better=True,
        ),
    ]


def meets_bar(result: Result) -> bool | None:
    """Whether a result is as good as its bar; None where it has none."""
    return {"yes": True, "no": False, "": None}[_BARS.met(result)]


def table(results: Sequence[Result], title: str, caption: str) -> Table:
    """The results for a terminal."""
    out = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in ("id", "value", "unit", "baseline", "its value", "ratio", "low", "high", "bar", ""):
        out.add_column(
            name, justify="left" if name in ("id", "unit", "baseline", "") else "right", no_wrap=name != "baseline"
        )
    for result in results:
        numbers = (result.baseline_value, result.ratio, result.low, result.high, _BARS.figures.get(result.id))
        met = meets_bar(result)
        out.add_row(
            result.id,
            _number(result.value),
            result.unit,
            result.baseline or "",
            *map(_number, numbers),
            "" if met is None else "met" if met else "[red]missed[/red]",
        )
    return out


def _beside(
    id: str,  # noqa: A002
    unit: str,
    ours: Sequence[float],
    baseline: str,
    theirs: Sequence[float],
    *,
    smaller_is_better: bool = False,
) -> Result:
    if not theirs:
        return Result(id=id, value=statistics.median(ours), unit=unit, baseline=baseline)
    ratios = [b / a if smaller_is_better else a / b for a, b in zip(ours, theirs, strict=True)]
    return Result.compared(
        id,
        statistics.median(ours),
        unit,
        baseline=baseline,
        baseline_value=statistics.median(theirs),
        smaller_is_better=smaller_is_better,
        low=min(ratios),
        high=max(ratios),
    )


def _alone(id: str, unit: str, values: Sequence[float]) -> Result:  # noqa: A002
    return Result(id=id, value=statistics.median(values), unit=unit, low=min(values), high=max(values))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
