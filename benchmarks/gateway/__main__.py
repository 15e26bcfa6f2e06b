"""python -m benchmarks.gateway: all that is compared, in one run on one machine; exit code 0 whatever the figures."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer

from benchmarks.benchmark_results import BenchmarkResults, asked_ids, command_line, machine
from benchmarks.gateway import report
from benchmarks.gateway.callers import BARS, NOTES, QUICK, CallersBench, CallersPlan
from benchmarks.gateway.clients import ClientError, Clients, CompletionsServer
from benchmarks.gateway.litellm import WAYS, ProxyFinding, best_way, try_ways
from benchmarks.gateway.measures import Bench, GatewayMeasures, Plan, vocab_size_of
from benchmarks.gateway.servers import Dtype, MissingError, Servers, cpu_flags, fast_dtype, wait_for_vllm
from benchmarks.gateway.workload import held_out_sequences, tokenizer_of
from benchmarks.progress import BenchProgress
from latentforge.core.command_line import errors_reported
from latentforge.core.results import Result, cpu_description
from latentforge.teacher_client.errors import TeacherError
from tools import litellm_env, vllm_env
from tools.processes import ChildError, StoppedError, stop_on_signals

_LOGS = Path("runs") / "logs" / "bench-gateway"
# Sequences of MAX_BATCH_TOKENS tokens together travel in one of the gateway's own requests.
_MAX_BATCH_TOKENS = 2048
_DEFAULT = Plan()
_QUICK = Plan(sequences=16, per_request=2, repeats=1, cached_passes=4, shared_sequences=4)

app = typer.Typer(add_completion=False)


class GatewayBenchResults(BenchmarkResults):
    """``bench_gateway_<time>.json``.

    Attributes:
        setting: the plan, the model and what vLLM computed in.
        versions: of vLLM and of LiteLLM, where that was measured.
        litellm: what each way of asking LiteLLM did.
    """

    setting: dict[str, Any]
    versions: dict[str, str | None]
    litellm: list[dict[str, Any]]


@app.command()
def main(
    model: Annotated[Path, typer.Option(help="The teacher that vLLM serves.")] = Path("models/stdlib-teacher"),
    sequences: Annotated[int, typer.Option(min=8, help="Different sequences.")] = _DEFAULT.sequences,
    length: Annotated[int, typer.Option(min=2, max=1023, help="Tokens of each.")] = _DEFAULT.length,
    top_k: Annotated[int, typer.Option(min=2, max=64, help="Entries of a row.")] = _DEFAULT.top_k,
    clients: Annotated[int, typer.Option(min=1, help="Client processes.")] = _DEFAULT.clients,
    per_request: Annotated[int, typer.Option(min=1, help="Sequences of one request.")] = _DEFAULT.per_request,
    repeats: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = _DEFAULT.repeats,
    cached_passes: Annotated[
        int, typer.Option(min=1, help="Times that a repeat asks the gateway for every cached sequence.")
    ] = _DEFAULT.cached_passes,
    shared_sequences: Annotated[
        int, typer.Option(min=1, help="Sequences that several clients ask for at the same time.")
    ] = _DEFAULT.shared_sequences,
    shared_clients: Annotated[int, typer.Option(min=1, help="How many clients do.")] = _DEFAULT.shared_clients,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="What vLLM computes in; auto is bfloat16 where the processor has units for it."),
    ] = "auto",
    litellm: Annotated[bool, typer.Option(help="Measure LiteLLM's proxy too.")] = True,
    only: Annotated[
        str | None,
        typer.Option(
            help=f"Ids of what is measured, separated by commas, without vLLM and LiteLLM: {', '.join(BARS.figures)}."
        ),
    ] = None,
    quick: Annotated[bool, typer.Option(help="A look whether it works: few sequences, one repeat.")] = False,
    results: Annotated[Path, typer.Option(help="Folder for bench_gateway_<time>.json.")] = Path("results"),
) -> None:
    """Measures the teacher-gateway beside a vLLM asked directly and beside LiteLLM's proxy with its Redis cache.

    Starts Redis, a real vLLM on this machine's CPU, two gateways (with a cache and without) and the proxy, asks all of
    them for the same sequences of real text, and stops them. Needs .venv-vllm and .venv-litellm.
    """
    plan = Plan(
        sequences=sequences,
        length=length,
        top_k=top_k,
        clients=clients,
        per_request=per_request,
        repeats=repeats,
        cached_passes=cached_passes,
        shared_sequences=min(shared_sequences, sequences),
        shared_clients=min(shared_clients, clients),
    )
    failures = ChildError, ClientError, MissingError, OSError, TeacherError, TimeoutError, ValueError, httpx.HTTPError
    try:
        with errors_reported(*failures), stop_on_signals():
            _run(
                _QUICK if quick else plan,
                model,
                fast_dtype(cpu_flags()) if dtype == "auto" else dtype,
                results,
                with_litellm=litellm,
                only=None if only is None else asked_ids(only, list(BARS.figures), "gateways without vLLM"),
            )
    except StoppedError as stopped:
        typer.echo(f"bench-gateway: {stopped}; everything it started is stopped", err=True)
        raise typer.Exit(stopped.exit_code) from None


def _run(
    plan: Plan, model: Path, dtype: Dtype, results: Path, *, with_litellm: bool, only: Sequence[str] | None
) -> None:
    started = time.monotonic()
    before = machine()
    callers_plan = QUICK if plan is _QUICK else CallersPlan(repeats=plan.repeats)
    callers = list(BARS.figures) if only is None else only
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gateway-")))
        progress = stack.enter_context(
            BenchProgress((0 if only is not None else plan.loads) + len(callers) * callers_plan.repeats)
        )
        beside = (
            None if only is not None else _beside_vllm(plan, model, dtype, scratch, progress, with_litellm=with_litellm)
        )
        found = _among_callers(callers_plan, callers, model, scratch, progress)
    _report(plan, model, dtype, beside, found, results, machine=before, seconds=time.monotonic() - started)


def _beside_vllm(
    plan: Plan, model: Path, dtype: Dtype, scratch: Path, progress: BenchProgress, *, with_litellm: bool
) -> tuple[GatewayMeasures, list[ProxyFinding]]:
    ids = held_out_sequences(plan.sequences, plan.length, model)
    vocab_size = vocab_size_of(model)
    with ExitStack() as stack:
        servers = Servers(stack, _LOGS, scratch)
        clients = stack.enter_context(Clients(plan.clients))
        progress.begin("starting Redis and vLLM")
        redis = servers.start_redis()
        vllm, children = servers.start_vllm(model, dtype, max_model_len=plan.length + 1, max_logprobs=64)
        wait_for_vllm(vllm, children)
        progress.begin("starting gateways")
        plain = servers.start_gateway("gateway-without-cache", vllm, model, "none")
        cache_url = f"redis://127.0.0.1:{redis.port}/0"
        cached = servers.start_gateway("gateway-with-cache", vllm, model, cache_url)
        redis_only = servers.start_gateway("gateway-redis-only", vllm, model, cache_url, cache_memory_mb="0")
        findings: list[ProxyFinding] = []
        asked: CompletionsServer | None = None
        if with_litellm:
            progress.begin("starting LiteLLM, trying what it caches")
            proxy = servers.start_litellm(vllm, redis, WAYS)
            findings = try_ways(proxy.url, vllm.url, ids[0], tokenizer_of(model), plan.top_k)
            if (way := best_way(findings)) is not None:
                asked = CompletionsServer(proxy.url, way.way, vocab_size, plan.top_k)
        bench = Bench(plan, ids, clients, vocab_size, scratch, progress.figure)
        progress.begin("comparing answers")
        bench.compare_answers(vllm, plain)
        bench.measure_wire(vllm, cached)
        bench.measure_uncached(vllm, plain)
        bench.measure_shared(vllm, plain)
        bench.measure_orjson(vllm, max(1, _MAX_BATCH_TOKENS // plan.length))
        bench.measure_cached(cached, redis_only, asked, vllm)
    return bench.measured, findings


def _among_callers(
    plan: CallersPlan, ids: Sequence[str], model: Path, scratch: Path, progress: BenchProgress
) -> tuple[list[Result], dict[str, Any]]:
    """What clients cost each other: the results of these ids, and every repeat's figures."""
    sequences = held_out_sequences(plan.clients * plan.scores, 64, model)
    found: list[Result] = []
    measured: dict[str, Any] = {}
    for name in ids:
        progress.begin(name)
        # Servers of one figure do not run beside the next.
        with ExitStack() as stack:
            bench = CallersBench(plan, Servers(stack, _LOGS, scratch), model, sequences, progress.figure)
            found.append(bench.measure(name))
        measured |= bench.measured
    return found, measured


def _report(
    plan: Plan,
    model: Path,
    dtype: Dtype,
    beside_vllm: tuple[GatewayMeasures, list[ProxyFinding]] | None,
    callers: tuple[list[Result], dict[str, Any]],
    results: Path,
    *,
    machine: dict[str, Any],
    seconds: float,
) -> None:
    found, measured = list(callers[0]), dict(callers[1])
    notes = list(NOTES)
    title, findings = "clients of one gateway", list[ProxyFinding]()
    if beside_vllm is not None:
        figures, findings = beside_vllm
        found = [*report.results_of(figures, report.name_of(best_way(findings), findings)), *found]
        measured = asdict(figures) | measured
        title = f"{plan.sequences} sequences x {plan.length} tokens, k={plan.top_k}, {plan.clients} clients, "
        title += f"{plan.repeats} repeats, vLLM in {dtype}"
        said = [*report.note_on_misses(figures), *report.notes_on_litellm(findings)]
        notes = [*said, *report.NOTES, *notes]
    GatewayBenchResults(
        name="bench_gateway",
        command=command_line("benchmarks.gateway"),
        device=cpu_description(),
        seed=0,
        results=tuple(found),
        setting=asdict(plan) | {"model": str(model), "vllm_dtype": dtype},
        versions={
            "vllm": None if beside_vllm is None else f"{vllm_env.PACKAGE} {vllm_env.VERSION}",
            "litellm": litellm_env.VERSION if findings else None,
        },
        litellm=[finding.record() for finding in findings],
        measured=measured,
        bars=report.BARS | dict(BARS.figures),
        notes=notes,
        machine=machine,
        seconds=round(seconds, 1),
    ).show(results, report.table(found, title, "\n".join(notes)))


if __name__ == "__main__":
    app()
