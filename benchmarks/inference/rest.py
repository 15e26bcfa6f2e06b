"""What clients of a server get, measured from outside."""

import time
from collections.abc import Callable
from functools import partial

from benchmarks.inference.bench import InferenceBench
from benchmarks.inference.clients import (
    ClientProcess,
    ask,
    checked,
    latencies_ms,
    percentile,
    tokens_per_second,
)
from benchmarks.inference.decoding import fastest_threads
from benchmarks.inference.load import LoadJob
from benchmarks.inference.models import shipped_checkpoint, transformers_twin
from benchmarks.inference.servers import InferenceServer
from benchmarks.inference.swaps import publish_copies
from benchmarks.inference.transformers_baseline import generated
from benchmarks.inference.workload import PLAIN, bodies, text_prompt_ids, text_prompts
from latentforge.core.results import Result
from latentforge.model.io import load_student
from latentforge.model.token_level import token_level_config

_HOST = "127.0.0.1"
_SMALL_TOKENS = 8
_SMALL_PROMPT = 8
_SHARE = 0.99


def rest_16(bench: InferenceBench) -> Result:
    """Many clients beside one."""
    many, one = (_pace(bench, bench.student(), clients) for clients in (bench.plan.clients, 1))
    return bench.compare("rest_16", many, one, name="one client of the same server")


def rest_16_vs_token_level(bench: InferenceBench) -> Result:
    """The shipped student beside its token-level twin in the same server."""
    ours = _pace(bench, bench.student(), bench.plan.clients)
    bench.report.begin("starting the server of the token-level twin")
    twin = bench.servers.start_token_level(bench.scratch / "no-checkpoints")
    name = f"its token-level twin in the same server, {bench.plan.clients} clients"
    return bench.compare("rest_16_vs_token_level", ours, _pace(bench, twin, bench.plan.clients), name=name)


def rest_16_vs_hf(bench: InferenceBench) -> Result:
    """The shipped student over REST beside transformers without a server."""
    plan = bench.plan
    config = token_level_config(load_student(shipped_checkpoint() / "student").config)
    model = transformers_twin(config, bench.device)
    prompts = text_prompt_ids(plan.clients, plan.prompt_tokens)
    baseline = partial(generated, model, prompts, plan.new_tokens, PLAIN)
    ours = _pace(bench, bench.student(), plan.clients)
    bench.report.begin("trying transformers' threads")
    threads = fastest_threads(baseline, bench.threads)
    name = f"transformers' generate() of its token-level twin, static batch of {plan.clients}, {threads} threads"
    return bench.compare("rest_16_vs_hf", ours, baseline, name=name)


def http_ms(bench: InferenceBench) -> Result:
    """What a small request costs beside the engine's own time."""
    job = _small_requests(bench, bench.student(), clients=1)

    def measure() -> float:
        answers = checked(ask(job))
        return percentile([1000 * (a.ended - a.began) - a.server_ms for a in answers], 0.5)

    measure()
    return bench.repeated("http_ms", measure, unit="ms")


def hostile(bench: InferenceBench) -> Result:
    """Small requests while others post large prompts and hold bodies open."""
    plan, server = bench.plan, bench.student()
    seconds = 2 * plan.window
    small = _small_requests(bench, server, clients=2, seconds=seconds)
    attack = LoadJob(_HOST, server.port, [], 0, seconds + 3, flooding=plan.flooding, half_open=plan.half_open)

    def measure() -> float:
        attackers = ClientProcess(attack)
        try:
            # Until all of them are there.
            time.sleep(min(2.0, plan.window))
            answers = checked(ask(small))
            posted = attackers.answers()
        finally:
            attackers.stop()
        statuses = {str(status): 0 for status in sorted({a.status for a in posted})}
        for answer in posted:
            statuses[str(answer.status)] += 1
        bench.measured.setdefault("hostile", {}).setdefault("floods", []).append(statuses)
        return percentile(latencies_ms(answers), _SHARE)

    return bench.repeated("hostile", measure, unit="ms")


def swap_p99(bench: InferenceBench) -> Result:
    """Latencies while checkpoints are swapped, over those without."""
    plan = bench.plan
    root = bench.scratch / "swapped"
    root.mkdir()
    bench.report.begin("starting a server whose checkpoints are swapped")
    server = bench.servers.start_student(root, "swapped")
    seconds = max(plan.window, 0.5 * plan.swaps + 1)
    prompts = text_prompts(plan.clients, plan.prompt_tokens)
    job = LoadJob(_HOST, server.port, bodies(prompts, max(1, plan.new_tokens // 4), PLAIN), plan.clients, seconds)
    calm: list[float] = []
    swapping: list[float] = []
    failures = swaps = 0

    def measure(during: Callable[[], None]) -> float:
        nonlocal failures
        clients = ClientProcess(job)
        try:
            during()
            answers = clients.answers()
        finally:
            clients.stop()
        failures += sum(answer.status != 200 for answer in answers)
        return percentile(latencies_ms([answer for answer in answers if answer.status == 200]), _SHARE)

    def publish() -> None:
        nonlocal swaps
        before = server.num_swaps()
        pause = (seconds - 1) / plan.swaps
        time.sleep(0.5)
        for _ in publish_copies(shipped_checkpoint(), root, plan.swaps):
            time.sleep(pause)
        # The last one is seen and loaded.
        until = time.monotonic() + 30
        while server.num_swaps() - before < plan.swaps and time.monotonic() < until:
            time.sleep(0.1)
        swaps += server.num_swaps() - before

    measure(lambda: None)
    for repeat in range(plan.repeats):
        for with_swaps in (True, False) if repeat % 2 == 0 else (False, True):
            figure = measure(publish if with_swaps else lambda: None)
            (swapping if with_swaps else calm).append(figure)
            bench.report.figure(f"swap_p99, {'with' if with_swaps else 'without'} swaps: {figure:.0f} ms")
    bench.measured["swap_p99"] = {"with_ms": swapping, "without_ms": calm, "failures": failures, "swaps": swaps}
    bench.notes.append(f"swap_p99: {swaps} swaps of {plan.swaps * plan.repeats} published, {failures} failures")
    return bench.alone("swap_p99", [a / b for a, b in zip(swapping, calm, strict=True)], unit="times")


def _pace(bench: InferenceBench, server: InferenceServer, clients: int) -> Callable[[], float]:
    """Tokens per second of so many clients of a server together."""
    plan = bench.plan
    prompts = text_prompts(bench.plan.clients, plan.prompt_tokens)
    warm_up = 0.2 * plan.window
    job = LoadJob(_HOST, server.port, bodies(prompts, plan.new_tokens, PLAIN), clients, plan.window + warm_up)
    return lambda: tokens_per_second(checked(ask(job)), warm_up)


def _small_requests(
    bench: InferenceBench, server: InferenceServer, *, clients: int, seconds: float | None = None
) -> LoadJob:
    prompts = text_prompts(16, _SMALL_PROMPT)
    return LoadJob(_HOST, server.port, bodies(prompts, _SMALL_TOKENS, PLAIN), clients, seconds or bench.plan.window)
